"""Scores stored answers with lm-eval's own filters and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from hambench.records import Sample, SampleRecord, Score
from hambench.suites.harness.code_eval import CODE_EVAL
from hambench.suites.harness.shims import fast_lm_eval


@dataclass(frozen=True, slots=True)
class Replayed:
    """All metrics of one answer, or the reason that there are none."""

    values: dict[str, float]
    """By :func:`metric_key`."""
    error: str | None = None


def metric_key(metric: str, filter_name: str) -> str:
    """Returns ``metric,filter`` as lm-eval writes it, or only the metric if the task has no filter of its own."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def replay(task: Any, sample: Sample, text: str) -> Replayed:
    """Filters and scores one stored answer with ``task``; if the scorer raises, only this answer gets an error."""
    try:
        request = task.construct_requests(
            doc=sample.doc, ctx=sample.prompt, metadata=(sample.task, sample.doc_id, 1)
        )
        request.resps = [text]
        for ensemble in task._filters:
            ensemble.apply([request])
        values: dict[str, float] = {}
        for filter_name, filtered in request.filtered_resps.items():
            for metric, value in task.process_results(sample.doc, [filtered]).items():
                values[metric_key(metric, filter_name)] = _number(value)
        return Replayed(values)
    except (
        Exception
    ) as error:  # a scorer is third-party code on arbitrary text, so show its failure as a result
        return Replayed({}, error=f"{type(error).__name__}: {error}")


def scores_of(
    records: Iterable[SampleRecord],
    *,
    samples: Mapping[str, Sample],
    tasks: Mapping[str, Any],
    primary: Mapping[str, str],
    failed: Mapping[str, str],
    allow_code_execution: bool,
    scorers: Mapping[str, str],
) -> list[Score]:
    """Scores every measured answer; scores each distinct (sample, text) once.

    Args:
        records: Records to score; warm-ups are skipped.
        samples: Samples by id.
        tasks: lm-eval tasks by name.
        primary: Headline metric by task.
        failed: Tasks whose scorer could not be built, with the reason.
        allow_code_execution: Whether programs that the model wrote may be run.
        scorers: Names and versions to write into each score, by task.
    """
    memory: dict[tuple[str, str], Replayed] = {}
    scores: list[Score] = []
    with CODE_EVAL.allow(allow_code_execution), fast_lm_eval():
        for record in records:
            if record.warmup:
                continue
            sample = samples[record.sample_id]
            if record.text is None:
                outcome = Replayed({}, error=f"not generated: {record.error or 'no text'}")
            elif sample.task in failed:
                outcome = Replayed({}, error=failed[sample.task])
            else:
                key = (record.sample_id, record.text)
                if key not in memory:
                    memory[key] = replay(tasks[sample.task], sample, record.text)
                outcome = memory[key]
            scores += _as_scores(record, outcome, primary.get(sample.task), scorers[sample.task])
    return scores


def _as_scores(record: SampleRecord, outcome: Replayed, primary: str | None, scorer: str) -> list[Score]:
    headline = primary if primary is not None else next(iter(outcome.values), "score")
    if outcome.error is not None or headline not in outcome.values:
        reason = (
            outcome.error
            or f"the task gave no metric {headline!r}, only {', '.join(outcome.values) or 'none'}"
        )
        values: dict[str, float | None] = {headline: None, **outcome.values}
    else:
        reason, values = None, dict(outcome.values)
    return [
        Score(
            cell=record.cell,
            sample_id=record.sample_id,
            repeat=record.repeat,
            metric=metric,
            value=value,
            primary=metric == headline,
            scorer=scorer,
            error=reason if value is None else None,
        )
        for metric, value in values.items()
    ]


def _number(value: Any) -> float:
    """Returns a metric's value of one answer as a number; for a list (one entry per instruction), its mean."""
    if isinstance(value, list | tuple):
        return sum(float(each) for each in value) / len(value)
    if isinstance(value, Real):
        return float(value)
    return float(value.item()) if hasattr(value, "item") else float(value)
