"""Groups of samples that numbers are given for.

``all``, ``suite:S``, ``category:S/C`` and ``task:S/T``; for conversations ``turn:S/turn N`` too.

A task may have bounds: between which points it can tell one model or method from another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hambench.records import Sample

ALL = "all"


def groups_of(sample: Sample) -> tuple[str, ...]:
    """The groups that a sample belongs to: all, its suite, category and task, and its turn if it is one."""
    return (
        ALL,
        f"suite:{sample.suite}",
        f"category:{sample.suite}/{sample.category}",
        f"task:{sample.suite}/{sample.task}",
        *([f"turn:{sample.suite}/turn {sample.turn}"] if sample.turn else []),
    )


def in_group(sample: Sample, group: str) -> bool:
    """Whether a sample belongs to a group."""
    return group in groups_of(sample)


def group_names(samples: Iterable[Sample]) -> list[str]:
    """Every group of these samples: ``all``, then suites, categories, tasks, turns, each in the order met."""
    levels: tuple[dict[str, None], ...] = ({ALL: None}, {}, {}, {}, {})
    for sample in samples:
        for level, group in zip(levels, groups_of(sample), strict=False):
            level[group] = None
    return [group for level in levels for group in level]


def group_kind(group: str) -> str:
    """``all``, ``suite``, ``category``, ``task`` or ``turn``."""
    return group.partition(":")[0]


def group_title(group: str) -> str:
    """The group's name without its kind: ``longbench/lcc`` for ``task:longbench/lcc``."""
    return group.partition(":")[2] or group


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What answers that read nothing get in a task, and what its right answers get."""

    floor: float
    """Points, 0..100, of the best answer that does not read the prompt."""
    floor_by: str
    """That answer, in words."""
    ceiling: float
    """Points, 0..100."""

    def corrected(self, points: float) -> float | None:
        """Points of which chance is taken away: 0 at the floor, 100 at the ceiling; ``None`` where the two meet."""
        if self.ceiling <= self.floor:
            return None
        return 100 * (points - self.floor) / (self.ceiling - self.floor)


def bounds_by_group(suite_spec: Mapping[str, Any]) -> dict[str, Bounds]:
    """Bounds by group (``task:SUITE/TASK``), from a run header's ``suite_spec``; tasks without any are left out."""
    suite = suite_spec.get("suite")
    return {
        f"task:{suite}/{task}": Bounds(**plan["bounds"])
        for task, plan in suite_spec.get("tasks", {}).items()
        if plan.get("bounds")
    }


def asks_accuracy(suite_spec: Mapping[str, Any]) -> bool:
    """Whether a run's suite has anything to score; prompts of one's own need no references."""
    return bool(suite_spec.get("asks_accuracy", True))
