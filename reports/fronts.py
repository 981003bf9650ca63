"""Which points are on the front, which are dominated, and which only seem so."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from hambench.records import Estimate


class Standing(enum.Enum):
    """A point's place relative to the front."""

    FRONT = "front"
    TIED = "tied"
    DOMINATED = "dominated"

    @property
    def words(self) -> str:
        """As a reader sees it."""
        return {"front": "on the front", "tied": "tied with the front", "dominated": "dominated"}[self.value]


def standings(
    points: Sequence[tuple[Estimate, Estimate]], *, higher_x: bool, higher_y: bool
) -> list[Standing]:
    """The standing of each point.

    A point is dominated when another is at least as good in both and better in one; equal points don't dominate each
    other. It is *tied* when it is dominated by value, but each point that dominates it has overlapping intervals with
    it wherever it is better.
    """
    signs = (1 if higher_x else -1, 1 if higher_y else -1)
    found = []
    for index, mine in enumerate(points):
        better = [
            other
            for position, other in enumerate(points)
            if position != index and _dominates(other, mine, signs)
        ]
        if not better:
            found.append(Standing.FRONT)
        elif any(_clearly(other, mine) for other in better):
            found.append(Standing.DOMINATED)
        else:
            found.append(Standing.TIED)
    return found


def _dominates(
    other: tuple[Estimate, Estimate], mine: tuple[Estimate, Estimate], signs: tuple[int, int]
) -> bool:
    gains = [sign * (a.value - b.value) for a, b, sign in zip(other, mine, signs, strict=True)]
    return min(gains) >= 0 and max(gains) > 0


def _clearly(other: tuple[Estimate, Estimate], mine: tuple[Estimate, Estimate]) -> bool:
    return any(
        a.value != b.value and (_upper(a) < _lower(b) or _upper(b) < _lower(a))
        for a, b in zip(other, mine, strict=True)
    )


def _lower(estimate: Estimate) -> float:
    return estimate.value if estimate.low is None else estimate.low


def _upper(estimate: Estimate) -> float:
    return estimate.value if estimate.high is None else estimate.high
