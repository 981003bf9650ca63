"""The samples of a user's file, and what the run header keeps of it; scores of their answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hambench.errors import BadRowsError, DataError, HambenchError, listed
from hambench.files import printable
from hambench.records import Sample, SampleRecord, Score
from hambench.run_notes import Note
from hambench.suites.harness.shims import fast_lm_eval, longbench_metrics
from hambench.suites.own.files import RawRow, read_rows
from hambench.suites.own.metrics import METRICS, value_of
from hambench.suites.own.patterns import PatternError, patterns_end
from hambench.suites.own.questions import (
    MT_BENCH,
    MT_BENCH_AS_ONE,
    SPEC_BENCH,
    Question,
    RowError,
    question_of,
)
from hambench.suites.task_requests import DEFAULT_MAX_NEW_TOKENS, ChatTemplate

SOURCE = "own prompts"
"""What a run header says where the rows came from."""
SCORER = "hambench"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSuite:
    """What a file asks."""

    name: str
    samples: tuple[Sample, ...]
    plans: dict[str, Any]
    """What the header keeps of each task."""
    notes: tuple[Note, ...]
    num_left_out: int
    """Rows that the limit left out."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A question with its place in the file and in the suite."""

    index: int
    where: str
    """File and line."""
    name: str
    question: Question
    task: str
    category: str


def capture_own(
    path: Path,
    *,
    name: str,
    tasks: tuple[str, ...],
    limit: int | None,
    template: ChatTemplate | None,
) -> OwnSuite:
    """Reads a file or folder of prompts.

    Args:
        path: The file or folder.
        name: The suite's name.
        tasks: A subset of its tasks, which are the rows' categories; empty for all.
        limit: At most this many rows of each category.
        template: The model's chat template; ``None`` without one.

    Raises:
        BadRowsError: With a line for each row that can't be asked.
        DataError: If the file can't be read, or asks nothing.
    """
    file = read_rows(path)
    with patterns_end():
        placed, num_empty = _placed(file.rows, path)
    known = tuple(dict.fromkeys(each.task for each in placed))
    for task in tasks:
        if task not in known:
            raise DataError(f"{path} has no category {task!r}; it has {listed(known, 12)}")
    wanted = [each for each in placed if not tasks or each.task in tasks]
    chosen = _first_of_each(wanted, limit)
    if not chosen:
        raise DataError(f"{path} asks nothing: no row has a question of the user")
    samples: list[Sample] = []
    problems = []
    for each in chosen:
        try:
            samples += _samples(each, suite=name, template=template)
        except HambenchError as error:  # a template may refuse a role or an order of turns
            problems.append(f"{each.where}: {error}")
    if problems:
        raise BadRowsError(str(path), problems)
    plans = {
        each.task: {
            "own": True,
            "category": each.category,
            "shown_by": "category",
            "metric": "",
            "runs_code": False,
            "origin": printable(path.name),
            "sha256": file.sha256,
            "num_rows": sum(other.task == each.task for other in placed),
        }
        for each in chosen
    }
    return OwnSuite(
        name=name,
        samples=tuple(samples),
        plans=plans,
        notes=tuple(_notes(chosen, num_empty, path)),
        num_left_out=len(wanted) - len(chosen),
    )


def check_rows(path: Path) -> None:
    """Reads every row of a file or folder of prompts.

    Raises:
        BadRowsError: With a line for each row that can't be asked.
        DataError: If the file can't be read.
    """
    with patterns_end():
        _placed(read_rows(path).rows, path)


def score_own(samples: Mapping[str, Sample], records: Iterable[SampleRecord]) -> list[Score]:
    """Scores of answers whose row had a reference; the others get none."""
    scores: list[Score] = []
    records = list(records)
    if not records:
        return scores
    longbench_metrics()  # what fast_lm_eval() makes quick must be there
    with fast_lm_eval(), patterns_end():
        for record in records:
            scores += _scores(record, samples[record.sample_id])
    return scores


def _scores(record: SampleRecord, sample: Sample) -> list[Score]:
    metric = sample.doc.get("metric")
    if record.warmup or not metric or not sample.references:
        return []
    value, error = None, None
    if record.text is None:
        error = f"not generated: {record.error or 'no text'}"
    elif metric not in METRICS:
        error = f"metric must be one of {', '.join(METRICS)}, got {metric!r}"
    else:
        try:
            value = value_of(metric, record.text, sample.references)
        except PatternError as reason:
            error = str(reason)
    score = Score(
        cell=record.cell,
        sample_id=record.sample_id,
        repeat=record.repeat,
        metric=metric,
        value=value,
        scorer=SCORER,
        error=error,
    )
    return [score]


def _placed(rows: Iterable[RawRow], path: Path) -> tuple[list[_Placed], int]:
    """Every question in order, and how many rows ask nothing.

    Raises:
        BadRowsError: With a line for each bad row.
    """
    problems: list[str] = []
    questions: list[tuple[int, str, str, Question]] = []
    names: dict[str, str] = {}
    num_empty = 0
    for index, raw in enumerate(rows):
        try:
            if raw.problem:
                raise RowError(raw.problem)
            question = question_of(raw.row)
            if not question.turns:
                num_empty += 1
                continue
            name = question.name or str(index + 1)
            if name in names:
                if question.schema != "ShareGPT":
                    raise RowError(f"has the id {name!r} of {names[name]}: give each row an id of its own")
                name = f"{name}#{index + 1}"  # public dumps repeat ids
            names[name] = raw.where
        except RowError as error:
            problems.append(f"{raw.where}: {error}")
        else:
            questions.append((index, raw.where, name, question))
    if problems:
        raise BadRowsError(str(path), problems)
    categories = {question.category for *_, question in questions}
    as_one = bool(categories & set(SPEC_BENCH)) and bool(categories & set(MT_BENCH))
    fallback = printable(path.resolve().name).partition(".")[0] or "prompts"
    placed = []
    for index, where, name, question in questions:
        task = question.category or fallback
        is_bench = question.schema == "question.jsonl" and as_one
        category = MT_BENCH_AS_ONE if is_bench and task in MT_BENCH else task
        placed.append(_Placed(index, where, name, question, task, category))
    return placed, num_empty


def _first_of_each(placed: list[_Placed], limit: int | None) -> list[_Placed]:
    """The first rows of each category, its tasks taking turns: one benchmark's share is the same at any limit."""
    if limit is None:
        return placed
    by_category: dict[str, dict[str, list[_Placed]]] = {}
    for each in placed:
        by_category.setdefault(each.category, {}).setdefault(each.task, []).append(each)
    chosen: set[int] = set()
    for by_task in by_category.values():
        # the n-th rows of all tasks before any task's next
        ranked = sorted(
            ((rank, each.index) for rows in by_task.values() for rank, each in enumerate(rows)),
        )
        chosen |= {index for _, index in ranked[:limit]}
    return [each for each in placed if each.index in chosen]


def _samples(placed: _Placed, *, suite: str, template: ChatTemplate | None) -> Iterator[Sample]:
    question = placed.question
    stem = f"{suite}/{placed.task}/{placed.name}"
    several = len(question.turns) > 1
    chat = template is not None and not question.raw
    for number, messages in enumerate(question.turns, start=1):
        references = question.references[number - 1] if question.references else ()
        if template is not None and chat and number == 1:
            prompt = template([dict(each) for each in messages])
        else:
            # a later turn's prompt has the answers before it: it is put together when it is asked
            prompt = "\n\n".join(each["content"] for each in messages)
        yield Sample(
            sample_id=f"{stem}/turn-{number}" if several else stem,
            suite=suite,
            task=placed.task,
            category=placed.category,
            doc_id=placed.index,
            prompt=prompt,
            stop=question.stop,
            max_new_tokens=question.max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
            cluster=f"conversation/{placed.name}" if several else "",
            chat=chat,
            references=references,
            doc={"metric": question.metric} if question.metric and references else {},
            conversation=stem if several else "",
            turn=number if several else 0,
            messages=messages if several else (),
        )


def _notes(chosen: list[_Placed], num_empty: int, path: Path) -> Iterator[Note]:
    shown = printable(path.name)
    scored = sum(each.question.metric is not None for each in chosen)
    with_references = sum(any(each.question.references) for each in chosen)
    if not scored:
        unread = f" ({with_references} rows have a reference without a metric)" if with_references else ""
        yield Note(
            "unscored",
            f"Accuracy was not asked: no row of {shown} has a reference and a metric{unread}. Speed, memory and "
            "regret were.",
        )
    elif scored < len(chosen):
        yield Note(
            "unscored", f"{scored} of {len(chosen)} rows have a reference: accuracy is that of these alone."
        )
    num_repeated = len(chosen) - len({repr((each.question.turns, each.question.raw)) for each in chosen})
    if num_repeated:
        yield Note(
            "other",
            f"{num_repeated} of {len(chosen)} rows of {shown} ask what an earlier row asks: greedy answers to them are "
            "the same, and intervals count each row as a sample of its own, so they are too narrow. Leave them out.",
        )
    if num_empty:
        yield Note(
            "left_out", f"{num_empty} rows of {shown} ask nothing (no text of a user) and are left out."
        )
    unread_columns = tuple(dict.fromkeys(name for each in chosen for name in each.question.unread))
    if unread_columns:
        yield Note("other", f"Columns of {shown} that are not read: {listed(unread_columns, 8)}.")
