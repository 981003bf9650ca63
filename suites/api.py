"""The runner's interface: capture a suite's requests, check that they can be scored, and score stored answers.

Importing this module imports neither torch nor lm-eval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hambench.errors import DataError, HambenchError, UnknownNameError
from hambench.files import printable
from hambench.groups import prompt_hashes
from hambench.records import Edition, Sample, SampleRecord, Score
from hambench.run_notes import Note
from hambench.suites.catalogue import AVERAGES, SUITES
from hambench.suites.floors import bounds_of
from hambench.suites.offline import OFFLINE, OFFLINE_SUITES
from hambench.suites.own.capture import SOURCE, capture_own, check_rows, score_own
from hambench.suites.own.files import path_of
from hambench.suites.resolve import (
    OFFLINE_EDITION,
    Asked,
    asked_tasks,
    choose_edition,
    offline_counterparts,
)
from hambench.suites.task_requests import ChatTemplate, capture_task, scoring_task, with_long_columns


@dataclass(frozen=True, slots=True)
class CaptureRequest:
    """The requests to capture."""

    suite: str | None
    """Name of a suite, a YAML file that lists tasks, or a file or folder of one's own prompts; ``None`` for ``tasks``
    alone."""
    tasks: tuple[str, ...] = ()
    """A subset of the suite's tasks; without a suite, any tasks that generate text."""
    limit: int | None = None
    """Samples per task."""
    data: Path | None = None
    """Folder of plain files in the public schemas."""
    edition: Literal["auto", "official", "offline"] = "auto"
    preset: str | None = None
    seed: int = 0
    """Seed of the offline edition's rows."""
    apply_chat_template: ChatTemplate | None = None
    """``None`` for a model without a chat template."""
    count_tokens: Callable[[str], int] | None = None
    """Counts a text's tokens as the runner does; the suite ``efficiency`` uses it to make prompts of exact length."""
    context_length: int | None = None
    """The model's context length in tokens, for the same suite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """The captured requests of a suite, in task order and then row order."""

    suite: str
    """Name to show; the offline edition has its own names."""
    samples: tuple[Sample, ...]
    edition: Edition
    data_source: str
    """``folder``, ``hub``, ``offline edition`` or ``own prompts``."""
    data_hashes: dict[str, str]
    """The sha256 of each task's prompts, in order."""
    missing: dict[str, str]
    """Requested tasks that can't be run, with the reason."""
    spec: dict[str, Any]
    """The data that :func:`score` needs besides the samples, as plain JSON."""
    notes: tuple[Note, ...] = field(default=())
    """Notes that every report of these samples must show."""
    speed_only: bool = False
    """Whether outputs have a fixed length, ignoring end-of-sequence tokens, and are not scored."""
    num_left_out: int = 0
    """Rows that the request's limit left out."""


def capture(request: CaptureRequest) -> Capture:
    """Builds every request of the suite with lm-eval's own tasks; needs no model.

    Raises:
        UnknownNameError: If a suite, task or preset does not exist.
        DataError: If a data file is broken, or no task has data.
        HambenchError: If the request is invalid (a limit below 1).
    """
    if request.limit is not None and request.limit < 1:
        raise HambenchError(f"limit must be >= 1, got {request.limit}")
    if request.suite == "efficiency":
        return _capture_efficiency(request)
    if (path := own_suite_path(request.suite)) is not None:
        return _capture_own(request, path)
    suite, asked = asked_tasks(request.suite, request.tasks, request.preset)
    edition, source = choose_edition(asked, data=request.data, edition=request.edition)
    missing: dict[str, str] = {}
    notes: list[Note] = []
    if source == OFFLINE_EDITION:
        notes.append(Note("offline", _offline_note(suite)))
        changed = [each.entry.name for each in asked if each.settings and each.entry.name not in OFFLINE]
        if changed:
            text = f"settings of {', '.join(changed)} are not applied: the offline edition has other tasks"
            notes.append(Note("offline", text))
        suite, asked, missing = offline_counterparts(suite, asked)
    notes += [Note("unscored", text) for text in _prepare_scorers(asked)]
    samples: list[Sample] = []
    plans: dict[str, Any] = {}
    for each in asked:
        try:
            made, plan = capture_task(
                each,
                suite=suite,
                edition=edition,
                source=source,
                data=request.data,
                seed=request.seed,
                limit=request.limit,
                template=request.apply_chat_template,
            )
        except DataError:
            raise
        except HambenchError as error:
            missing[each.entry.name] = str(error)
            continue
        if isinstance(made, str):
            missing[each.entry.name] = made
            continue
        samples += made
        if source == OFFLINE_EDITION and not each.settings:
            plan["bounds"] = asdict(bounds_of(each.entry.name, request.seed))
        plans[each.entry.name] = plan
        if note := plan.get("rows_note"):
            notes.append(Note("other", f"{each.entry.name}: {note}"))
    if not samples:
        reasons = "; ".join(f"{task}: {reason}" for task, reason in missing.items())
        raise DataError(f"no task of {suite!r} can be run: {reasons}")
    return Capture(
        suite=suite,
        samples=tuple(samples),
        edition=edition,
        data_source=source,
        data_hashes=prompt_hashes(samples),
        missing=missing,
        spec={
            "version": 1,
            "suite": suite,
            "preset": request.preset,
            "averages": AVERAGES.get(suite),
            "tasks": plans,
        },
        notes=tuple(notes),
        num_left_out=sum(plan["left_out"] for plan in plans.values()),
    )


def score(
    spec: Mapping[str, Any],
    samples: Mapping[str, Sample],
    records: Iterable[SampleRecord],
    *,
    allow_code_execution: bool = False,
) -> list[Score]:
    """Scores stored answers with the tasks' official filters and metrics; needs neither a model nor a data set.

    A failed scorer or generation gives a score with the value ``None`` and the reason.
    """
    from hambench.suites.harness.lm_tasks import scorer_of
    from hambench.suites.harness.replay import scores_of

    records = list(records)
    plans = spec.get("tasks", {})
    own = [record for record in records if plans.get(samples[record.sample_id].task, {}).get("own")]
    records = [record for record in records if not plans.get(samples[record.sample_id].task, {}).get("own")]
    by_task: dict[str, list[Sample]] = {}
    for sample_id in dict.fromkeys(record.sample_id for record in records):
        by_task.setdefault(samples[sample_id].task, []).append(samples[sample_id])
    tasks, failed, primary, scorers = {}, {}, {}, {}
    for name, asked in by_task.items():
        plan = plans.get(name)
        if plan is None:
            continue  # nothing is scored: a speed-only suite
        plan = {"config": "", "settings": {}, "metric": "", **plan}
        scorers[name] = scorer_of(plan["config"])
        if plan["metric"]:
            primary[name] = plan["metric"]
        try:
            check_plans({"tasks": {name: plan}})
            tasks[name] = scoring_task(name, plan, asked)
        except (
            Exception
        ) as error:  # task modules are third-party code, and a failing one must not lose the others' scores
            failed[name] = f"can't build the scorer: {type(error).__name__}: {error}"
    scored = {*tasks, *failed}
    full = {sample.sample_id: with_long_columns(sample) for each in by_task.values() for sample in each}
    return score_own(samples, own) + scores_of(
        [record for record in records if samples[record.sample_id].task in scored],
        samples=full,
        tasks=tasks,
        primary=primary,
        failed=failed,
        allow_code_execution=allow_code_execution,
        scorers=scorers,
    )


def check_plans(spec: Mapping[str, Any]) -> None:
    """Checks that a run's header says how each of its tasks is scored.

    Raises:
        DataError: If a task names no task file of lm-eval, and is not of one's own prompts.
    """
    for name, plan in spec.get("tasks", {}).items():
        if not plan.get("own") and not plan.get("config"):
            raise DataError(
                f"the task {name!r} of this run can't be scored: its config in run.json must name a task file of "
                "lm-eval; run it again"
            )


def check(captured: Capture, *, allow_code_execution: bool = False) -> dict[str, str]:
    """Checks every scorer on one made-up answer per task; maps tasks that can't be scored to the reason.

    Call it before generating. An empty dict means that every scorer works.
    """
    first: dict[str, Sample] = {}
    for sample in captured.samples:
        first.setdefault(sample.task, sample)
    records = [
        SampleRecord(
            cell="check", sample_id=sample.sample_id, prompt_hash=sample.prompt_hash, text="no answer"
        )
        for sample in first.values()
    ]
    given = {sample.sample_id: sample for sample in first.values()}
    scores = score(captured.spec, given, records, allow_code_execution=allow_code_execution)
    return {given[each.sample_id].task: each.error for each in scores if each.primary and each.error}


def scoring_notes(captured: Capture, *, allow_code_execution: bool = False) -> tuple[Note, ...]:
    """Returns notes for a run's start: tasks that can't be scored, and how generated programs are isolated."""
    problems = check(captured, allow_code_execution=allow_code_execution)
    by_reason: dict[str, list[str]] = {}
    for task, reason in problems.items():
        by_reason.setdefault(reason, []).append(task)
    notes = [
        Note("unscored", f"{', '.join(tasks)} can't be scored here: {reason}")
        for reason, tasks in by_reason.items()
    ]
    if allow_code_execution and any(plan["runs_code"] for plan in captured.spec["tasks"].values()):
        from hambench.suites.sandbox.supervisor import isolation

        notes.append(Note("other", f"Programs that the model writes are run; isolation: {isolation()}."))
    return tuple(notes)


def _prepare_scorers(asked: Iterable[Asked]) -> list[str]:
    """Fetches data that scorers need besides Python packages; returns a note for data that can't be fetched."""
    if not any("ifeval" in each.entry.config for each in asked):
        return []
    from hambench.suites.harness.sentences import fetch_punkt

    try:
        fetch_punkt()
    except HambenchError as error:
        return [
            f"answers whose IFEval instruction counts sentences or words in capitals can't be scored: {error}"
        ]
    return []


def own_suite_path(suite: str | None) -> Path | None:
    """The file or folder of one's own prompts that ``suite`` names; ``None`` for anything else.

    A suite's name goes before a folder of that name, which is written ``./NAME``.
    """
    if suite is None or suite in SUITES or suite in OFFLINE_SUITES or suite.endswith((".yaml", ".yml")):
        return None
    return path_of(suite)


def check_own_rows(suite: str | None) -> None:
    """Refuses a file of one's own prompts with bad rows, which needs no model; any other suite passes.

    Raises:
        DataError: If a row can't be asked, or the file can't be read.
    """
    if (path := own_suite_path(suite)) is not None:
        check_rows(path)


def _capture_own(request: CaptureRequest, path: Path) -> Capture:
    for option, value in (("preset", request.preset), ("data", request.data)):
        if value is not None:
            raise HambenchError(f"--{option} says nothing about prompts of one's own ({path}): leave it out")
    if request.edition == "offline":
        raise HambenchError(
            f"--edition offline says nothing about prompts of one's own ({path}): leave it out"
        )
    stem = printable(path.resolve().name).partition(".")[0] or "prompts"
    taken = stem in SUITES or stem in OFFLINE_SUITES
    own = capture_own(
        path,
        name=f"own-{stem}" if taken else stem,
        tasks=request.tasks,
        limit=request.limit,
        template=request.apply_chat_template,
    )
    return Capture(
        suite=own.name,
        samples=own.samples,
        edition="official",
        data_source=SOURCE,
        data_hashes=prompt_hashes(own.samples),
        missing={},
        spec={
            "version": 1,
            "suite": own.name,
            "preset": None,
            "averages": None,
            "asks_accuracy": any(sample.doc.get("metric") for sample in own.samples),
            "tasks": own.plans,
        },
        notes=own.notes,
        num_left_out=own.num_left_out,
    )


def _capture_efficiency(request: CaptureRequest) -> Capture:
    from hambench.suites.efficiency import EFFICIENCY, efficiency_samples

    for task in request.tasks:
        if task not in EFFICIENCY:
            raise UnknownNameError("task of this suite", task, EFFICIENCY)
    edition, source = choose_edition((), data=request.data, edition=request.edition)
    samples, missing = efficiency_samples(
        source=source,
        edition=edition,
        data=request.data,
        seed=request.seed,
        tasks=request.tasks,
        template=request.apply_chat_template,
        count_tokens=request.count_tokens,
        context_length=request.context_length,
    )
    if not samples:
        raise DataError(f"can't make any prompt of the suite: {'; '.join(missing.values())}")
    return Capture(
        suite="efficiency",
        samples=tuple(samples),
        edition=edition,
        data_source=source,
        data_hashes=prompt_hashes(samples),
        missing=missing,
        spec={"version": 1, "suite": "efficiency", "preset": request.preset, "tasks": {}},
        speed_only=True,
    )


def _offline_note(suite: str) -> str:
    return (
        f"offline edition: rows built by hambench replace {suite!r}, whose data is not available here; "
        "scores are not comparable with published ones (give --data DIR or a reachable hub for the official data)"
    )
