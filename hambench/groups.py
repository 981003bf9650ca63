"""Groups of samples for which metrics are computed.

``all``, ``suite:S``, ``category:S/C`` and ``task:S/T``; for conversations ``turn:S/turn N`` too.

A task may have bounds, the range of points in which it distinguishes models and methods.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hambench.records import Sample

ALL = "all"


def groups_of(sample: Sample) -> tuple[str, ...]:
    """Returns a sample's groups: all, its suite, category and task, and its turn if it is one."""
    return (
        ALL,
        f"suite:{sample.suite}",
        f"category:{sample.suite}/{sample.category}",
        f"task:{sample.suite}/{sample.task}",
        *([f"turn:{sample.suite}/turn {sample.turn}"] if sample.turn else []),
    )


def in_group(sample: Sample, group: str) -> bool:
    """Returns whether a sample belongs to a group."""
    return group in groups_of(sample)


def group_names(samples: Iterable[Sample]) -> list[str]:
    """Returns every group of these samples: ``all``, then suites, categories, tasks, turns, in order of appearance."""
    levels: tuple[dict[str, None], ...] = ({ALL: None}, {}, {}, {}, {})
    for sample in samples:
        for level, group in zip(levels, groups_of(sample), strict=False):
            level[group] = None
    return [group for level in levels for group in level]


def group_kind(group: str) -> str:
    """Returns ``all``, ``suite``, ``category``, ``task`` or ``turn``."""
    return group.partition(":")[0]


def group_title(group: str) -> str:
    """Returns the group's name without its kind: ``longbench/lcc`` for ``task:longbench/lcc``."""
    return group.partition(":")[2] or group


def prompt_hashes(samples: Iterable[Sample]) -> dict[str, str]:
    """The sha256 of each task's prompts, in order."""
    digests: dict[str, Any] = {}
    for sample in samples:
        digest = digests.setdefault(sample.task, hashlib.sha256())
        digest.update(sample.prompt.encode("utf-8", "surrogatepass") + b"\0")
    return {task: digest.hexdigest() for task, digest in digests.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Points of a task's best answer without reading the prompt, and of its reference answers."""

    floor: float
    """Points, 0..100, of the best answer that does not read the prompt."""
    floor_by: str
    """Description of that answer."""
    ceiling: float
    """Points, 0..100."""

    def corrected(self, points: float) -> float | None:
        """Returns points above chance, from 0 at the floor to 100 at the ceiling; ``None`` if the two are equal."""
        if self.ceiling <= self.floor:
            return None
        return 100 * (points - self.floor) / (self.ceiling - self.floor)


def bounds_by_group(suite_spec: Mapping[str, Any]) -> dict[str, Bounds]:
    """Returns bounds by group (``task:SUITE/TASK``) from a run header's ``suite_spec``, for tasks that have them."""
    suite = suite_spec.get("suite")
    return {
        f"task:{suite}/{task}": Bounds(**plan["bounds"])
        for task, plan in suite_spec.get("tasks", {}).items()
        if plan.get("bounds")
    }


def asks_accuracy(suite_spec: Mapping[str, Any]) -> bool:
    """Returns whether a run's suite has anything to score; a user's own prompts need no references."""
    return bool(suite_spec.get("asks_accuracy", True))
