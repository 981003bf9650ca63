"""Averages of a suite as its benchmark reports them, in addition to the mean over tasks that hambench compares.

LongBench: the points of a task are 100 times the mean score of its rows; a category's are the mean of its tasks';
the overall figure is the macro-average, the mean of the categories'. LongBench-E also splits tasks by length.
A task without a valid score stays visible as missing, and what it belongs to says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hambench.groups import Bounds, bounds_by_group
from hambench.records import Sample, Score
from hambench.store import Run

LENGTH_BUCKETS = (("0-4k", 0, 4000), ("4-8k", 4000, 8000), ("8k+", 8000, None))
"""LongBench-E's buckets of a row's ``length`` (words, or characters in Chinese)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskAverage:
    """One metric of one task."""

    task: str
    category: str
    points: float | None
    """0..100 (100 x value / scale); ``None`` without a valid score."""
    num_scored: int
    num_failed: int
    """Answers without a value: failed generations and failed scorers. They are in no average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryAverage:
    """The mean of a category's tasks."""

    category: str
    points: float | None
    tasks: tuple[str, ...]
    """Tasks in the mean."""
    missing: tuple[str, ...]
    """Tasks of the category without a valid score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteAverage:
    """One cell's averages over one suite."""

    cell: str
    suite: str
    tasks: tuple[TaskAverage, ...]
    categories: tuple[CategoryAverage, ...]
    overall: float | None
    """The macro-average: the mean over categories."""
    missing: tuple[str, ...]
    """Tasks in no average; where there are any, ``overall`` is that of a part of the suite."""

    @property
    def num_failed(self) -> int:
        """Answers without points, of all tasks."""
        return sum(each.num_failed for each in self.tasks)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellAverages:
    """A benchmark's averages of one cell."""

    average: SuiteAverage
    lengths: dict[str, float | None]
    """Points by length bucket, the mean over tasks; empty where the benchmark doesn't split by length."""
    corrected: dict[str, float | None]
    """By task with known bounds: points with chance taken away (see :class:`hambench.groups.Bounds`)."""

    def as_dict(self) -> dict[str, Any]:
        """Returns the averages as plain values for JSON."""
        return {
            "suite": self.average.suite,
            "overall": self.average.overall,
            "categories": {each.category: each.points for each in self.average.categories},
            "tasks": {each.task: each.points for each in self.average.tasks},
            "lengths": self.lengths,
            "corrected": self.corrected,
            "missing": list(self.average.missing),
            "num_failed": self.average.num_failed,
        }


def averages_of(run: Run) -> tuple[CellAverages, ...]:
    """Returns the averages of every cell; empty if the run's suite does not define them."""
    spec = run.header.suite_spec
    kind = spec.get("averages")
    if not kind or not run.scores:
        return ()
    bounds = bounds_by_group(spec)
    return tuple(
        _cell_averages(run, cell.label, str(spec["suite"]), kind, bounds) for cell in run.header.cells
    )


def left_out(averages: Sequence[CellAverages]) -> list[str]:
    """Returns one line per cell whose averages lack tasks or answers, or one line for all if they lack the same.

    A cell that failed at a task is averaged over different tasks from the other cells.
    """
    lines: dict[str, list[str]] = {}
    for each in averages:
        parts = [f"no points in {', '.join(each.average.missing)}"] if each.average.missing else []
        failed = each.average.num_failed
        parts += [f"{failed} answer{'s' * (failed != 1)} without a score"] if failed else []
        if parts:
            lines.setdefault("; ".join(parts), []).append(each.average.cell)
    return [
        f"Not in these means: {what}{'' if len(cells) == len(averages) else f' ({listed})'}."
        for what, cells in lines.items()
        if (listed := ", ".join(cells))
    ]


def _cell_averages(run: Run, cell: str, suite: str, kind: str, bounds: Mapping[str, Bounds]) -> CellAverages:
    average = suite_average(
        run.scores, run.samples, cell=cell, suite=suite, tasks=run.header.suite_spec.get("tasks", {})
    )
    lengths: dict[str, float | None] = {}
    if "lengths" in kind:
        by_task = [
            points_by_length(run.scores, run.samples, cell=cell, task=each.task) for each in average.tasks
        ]
        for bucket, _, _ in LENGTH_BUCKETS:
            points = [found for each in by_task if (found := each[bucket]) is not None]
            lengths[bucket] = sum(points) / len(points) if points else None
    corrected = {
        each.task: bounds[f"task:{suite}/{each.task}"].corrected(each.points)
        for each in average.tasks
        if each.points is not None and f"task:{suite}/{each.task}" in bounds
    }
    return CellAverages(average=average, lengths=lengths, corrected=corrected)


def suite_average(
    scores: Iterable[Score],
    samples: Mapping[str, Sample],
    *,
    cell: str,
    suite: str,
    tasks: Iterable[str] = (),
) -> SuiteAverage:
    """Averages a cell's headline metrics over a suite.

    Args:
        scores: Scores of any cells and suites; repeats of an answer count as answers.
        samples: Samples by id.
        cell: Label of the cell to average.
        suite: Name of the suite to average.
        tasks: Expected tasks; those without any sample are reported as missing.
    """
    own = [
        each
        for each in scores
        if each.cell == cell and each.primary and samples[each.sample_id].suite == suite
    ]
    category_of = {sample.task: sample.category for sample in samples.values() if sample.suite == suite}
    found = tuple(_task_average(own, samples, task, category) for task, category in category_of.items())
    categories = tuple(
        _category_average(category, [each for each in found if each.category == category])
        for category in dict.fromkeys(category_of.values())
    )
    points = [each.points for each in categories if each.points is not None]
    missing = [each.task for each in found if each.points is None]
    missing += [task for task in tasks if task not in category_of]
    return SuiteAverage(
        cell=cell,
        suite=suite,
        tasks=found,
        categories=categories,
        overall=sum(points) / len(points) if points else None,
        missing=tuple(missing),
    )


def metric_points(
    scores: Iterable[Score], samples: Mapping[str, Sample], *, cell: str, task: str, metric: str
) -> float | None:
    """Returns any metric of a task in points; ``None`` without a valid score.

    IFEval's instruction-level metrics count instructions, so that a prompt weighs as many as it has.
    """
    own = [
        each
        for each in scores
        if each.cell == cell and each.metric == metric and samples[each.sample_id].task == task
    ]
    return _mean_points(own, samples)


def points_by_length(
    scores: Iterable[Score], samples: Mapping[str, Sample], *, cell: str, task: str
) -> dict[str, float | None]:
    """Returns a task's points in each of LongBench-E's length buckets; ``None`` for an empty one."""
    own = [
        each for each in scores if each.cell == cell and each.primary and samples[each.sample_id].task == task
    ]
    found: dict[str, float | None] = {}
    for name, low, high in LENGTH_BUCKETS:
        inside = [each for each in own if _within(samples[each.sample_id].doc, low, high)]
        found[name] = _mean_points(inside, samples)
    return found


def _task_average(
    scores: list[Score], samples: Mapping[str, Sample], task: str, category: str
) -> TaskAverage:
    own = [each for each in scores if samples[each.sample_id].task == task]
    return TaskAverage(
        task=task,
        category=category,
        points=_mean_points(own, samples),
        num_scored=sum(each.points is not None for each in own),
        num_failed=sum(each.points is None for each in own),
    )


def _category_average(category: str, tasks: list[TaskAverage]) -> CategoryAverage:
    points = {each.task: each.points for each in tasks if each.points is not None}
    return CategoryAverage(
        category=category,
        points=sum(points.values()) / len(points) if points else None,
        tasks=tuple(points),
        missing=tuple(each.task for each in tasks if each.points is None),
    )


def _mean_points(scores: list[Score], samples: Mapping[str, Sample]) -> float | None:
    weighed = [(each.points, _weight(each, samples)) for each in scores if each.points is not None]
    total = sum(weight for _, weight in weighed)
    return sum(points * weight for points, weight in weighed) / total if total else None


def _weight(score: Score, samples: Mapping[str, Sample]) -> int:
    if score.metric.startswith("inst_level"):
        return len(samples[score.sample_id].doc.get("instruction_id_list", ())) or 1
    return 1


def _within(doc: Mapping[str, Any], low: int, high: int | None) -> bool:
    length = doc.get("length")
    return isinstance(length, int) and low <= length and (high is None or length < high)
