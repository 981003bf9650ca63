"""Builds the prompts of one task, and the task that scores their answers, both with lm-eval's own classes."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from hambench.errors import HambenchError
from hambench.records import Edition, Sample
from hambench.suites.catalogue import TaskEntry
from hambench.suites.resolve import Asked, rows_of, task_plan
from hambench.suites.suite_file import LENGTH_KEYS, check_settings

DEFAULT_MAX_NEW_TOKENS = 256
"""lm-eval's own limit for tasks that set none."""

_LONG_COLUMNS = ("context",)


class ChatTemplate(Protocol):
    """Renders chat messages as text, with lm-eval's call signature."""

    def __call__(self, messages: list[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        """Returns the prompt; ``add_generation_prompt=False`` continues the last message, which is the assistant's."""
        ...


def capture_task(
    asked: Asked,
    *,
    suite: str,
    edition: Edition,
    source: str,
    data: Path | None,
    seed: int,
    limit: int | None,
    template: Any,
) -> tuple[list[Sample] | str, dict[str, Any]]:
    """Returns a task's samples and its entry for the run header, or the reason that there are no samples.

    Args:
        asked: The task.
        suite: Suite name for the samples.
        edition: Edition of the rows.
        source: Source of the rows; see :func:`hambench.suites.resolve.choose_edition`.
        data: Folder of data files.
        seed: Seed of built rows.
        limit: Maximum number of samples, from the first row.
        template: The model's chat template; ``None`` without one.

    Raises:
        DataError: If a data file is broken.
        HambenchError: If the task's requests can't be built.
    """
    from hambench.suites.harness.shims import fast_lm_eval

    entry = asked.entry
    found = rows_of(entry, source=source, data=data, seed=seed, limit=limit)
    if found.missing is not None:
        return found.missing, {}
    plan = task_plan(asked) | {"origin": found.origin, "sha256": found.sha256}
    if found.rows is not None:
        plan["num_rows"] = len(found.rows)
    if found.note:
        plan["rows_note"] = found.note
    template = _as_lm_eval_calls(template) if entry.chat else None
    with _own_failure():
        task = make_task(entry.name, plan, found.rows)
        # to count the rows is to prepare them all once more
        num_past = 0 if limit is None else max(0, len(task.eval_docs) - limit)
        plan["left_out"] = found.num_more + num_past
        requests = _build_prompts(task, limit=limit, chat_template=template, multiturn=entry.multiturn)
        with fast_lm_eval():
            samples = [
                _sample(task, each, entry, suite=suite, edition=edition, chat=template is not None)
                for each in requests
            ]
    return samples, plan


def _build_prompts(task: Any, *, limit: int | None, chat_template: Any, multiturn: bool) -> list[Any]:
    """Has lm-eval build the task's prompts, few-shot examples and chat template included, in the order of its rows."""
    from hambench.suites.harness.shims import fast_lm_eval, quiet_lm_eval

    with quiet_lm_eval(), fast_lm_eval():
        task.build_all_requests(
            limit=limit,
            apply_chat_template=chat_template is not None,
            fewshot_as_multiturn=multiturn and chat_template is not None,
            chat_template=chat_template,
        )
    return list(task.instances)


@contextlib.contextmanager
def _own_failure() -> Iterator[None]:
    """Turns any exception of a task's file, functions or templates into an error of that task."""
    try:
        yield
    except HambenchError:
        raise
    except Exception as error:  # task files are third-party programs and get settings unchecked
        raise HambenchError(f"can't build its requests: {type(error).__name__}: {error}") from error


def make_task(name: str, plan: Mapping[str, Any], rows: Any, **more: Any) -> Any:
    """Builds the lm-eval task over ``rows`` from a plan (:func:`hambench.suites.resolve.task_plan`) and settings."""
    from hambench.suites.harness.lm_tasks import build_task, load_config
    from hambench.suites.harness.longbench import repaired

    settings: dict[str, Any] = {}
    if plan["config"].startswith("longbench/"):
        settings |= repaired(Path(plan["config"]).stem, load_config(plan["config"]))
    return build_task(plan["config"], name=name, settings={**settings, **plan["settings"], **more}, rows=rows)


def scoring_task(name: str, plan: Mapping[str, Any], samples: Sequence[Sample]) -> Any:
    """Builds the lm-eval task over stored rows, for its filters and metrics.

    The plan may come from a run folder of others: nothing in it is code.

    Raises:
        HambenchError: If its task file, a setting or a metric is none that may be used.
    """
    from hambench.suites.harness.lm_tasks import check_own_metrics

    check_settings(plan["settings"], f"task {name!r}")
    check_own_metrics(plan["config"], plan["settings"])
    # the task's own preparation was applied to the rows when they were captured
    docs = [with_long_columns(sample).doc for sample in samples]
    return make_task(name, plan, docs, process_docs=None)


def _sample(
    task: Any,
    request: Any,
    entry: TaskEntry,
    *,
    suite: str,
    edition: Edition,
    chat: bool,
) -> Sample:
    prompt, generation = request.args[0], request.args[1]
    doc = dict(request.doc)
    until = generation.get("until") or ()
    target = task.doc_to_target(request.doc)
    keep_start = keep_end = 0
    if entry.truncation == "middle":
        keep_start, keep_end = _around(prompt, str(task.doc_to_text(request.doc)))
    return Sample(
        sample_id=f"{suite}/{entry.name}/{request.doc_id}",
        suite=suite,
        task=entry.name,
        category=entry.category,
        doc_id=request.doc_id,
        prompt=prompt,
        stop=(until,) if isinstance(until, str) else tuple(until),
        max_new_tokens=_max_new_tokens(generation),
        chat=chat,
        truncation=entry.truncation,
        references=tuple(str(each) for each in target) if isinstance(target, list) else (str(target),),
        edition=edition,
        keep_start=keep_start,
        keep_end=keep_end,
        cluster=_cluster(entry, doc, request.doc_id),
        doc=_storable(entry.name, doc if entry.truncation == "error" else _without_long_columns(doc)),
    )


def _cluster(entry: TaskEntry, doc: Mapping[str, Any], doc_id: int) -> str:
    """Returns the name of the cluster of dependent rows that ``doc`` belongs to; empty if it is independent."""
    if entry.by_document:
        text = str(doc.get("context", ""))
        return f"context/{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
    if entry.cluster:
        return f"{entry.cluster}/{doc_id}"
    return ""


def _as_lm_eval_calls(template: Any) -> ChatTemplate | None:
    """Adds lm-eval's keyword to ``template``; without native support, a begun answer is appended unchanged."""
    if template is None or "add_generation_prompt" in inspect.signature(template).parameters:
        return template  # type: ignore[no-any-return]

    def render(messages: list[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        if add_generation_prompt:
            return str(template(messages))
        return str(template(messages[:-1])) + messages[-1]["content"]

    return render


def _max_new_tokens(generation: Mapping[str, Any]) -> int:
    for key in LENGTH_KEYS:
        if generation.get(key) is not None:
            return int(generation[key])
    return DEFAULT_MAX_NEW_TOKENS


def _around(prompt: str, body: str) -> tuple[int, int]:
    """Counts the characters of ``prompt`` before and after ``body``, i.e. the chat template (which may strip it)."""
    for part in (body, body.strip()):
        start = prompt.find(part)
        if start >= 0:
            return start, len(prompt) - start - len(part)
    return 0, 0


def _without_long_columns(doc: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in doc.items() if key not in _LONG_COLUMNS}


def with_long_columns(sample: Sample) -> Sample:
    """Returns ``sample`` with empty values for the columns that were not stored, which no metric reads."""
    if sample.truncation == "error":
        return sample
    return replace(sample, doc={**dict.fromkeys(_LONG_COLUMNS, ""), **sample.doc})


def _storable(task: str, doc: dict[str, Any]) -> dict[str, Any]:
    try:
        stored: dict[str, Any] = json.loads(json.dumps(doc, ensure_ascii=False))
    except (TypeError, ValueError) as error:
        raise HambenchError(
            f"rows of task {task!r} can't be stored as JSON ({error}): hambench runs text tasks"
        ) from error
    return stored
