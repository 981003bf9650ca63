"""Groups of samples that numbers are given for: ``all``, ``suite:S``, ``category:S/C`` and ``task:S/T``."""

from __future__ import annotations

from collections.abc import Iterable

from hambench.records import Sample

ALL = "all"


def groups_of(sample: Sample) -> tuple[str, str, str, str]:
    """The four groups that a sample belongs to, widest first."""
    return (
        ALL,
        f"suite:{sample.suite}",
        f"category:{sample.suite}/{sample.category}",
        f"task:{sample.suite}/{sample.task}",
    )


def in_group(sample: Sample, group: str) -> bool:
    """Whether a sample belongs to a group."""
    return group in groups_of(sample)


def group_names(samples: Iterable[Sample]) -> list[str]:
    """Every group of these samples: ``all``, then suites, categories, tasks, each in the order met."""
    levels: tuple[dict[str, None], ...] = ({ALL: None}, {}, {}, {})
    for sample in samples:
        for level, group in zip(levels, groups_of(sample), strict=True):
            level[group] = None
    return [group for level in levels for group in level]


def group_kind(group: str) -> str:
    """``all``, ``suite``, ``category`` or ``task``."""
    return group.partition(":")[0]


def group_title(group: str) -> str:
    """The group's name without its kind: ``longbench/lcc`` for ``task:longbench/lcc``."""
    return group.partition(":")[2] or group
