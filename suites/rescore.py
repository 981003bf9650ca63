"""Compares new with stored scores of the same answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hambench.errors import count
from hambench.records import Score

_CLOSE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The differences between new and stored scores."""

    num_scores: int
    num_new: int
    """Number of scores of answers and metrics that had none."""
    num_errors: int
    changed: tuple[tuple[Score, Score], ...]
    """Pairs (stored, new) with different values."""
    failures: dict[str, int]
    """Number of scores by reason of their failure."""
    scorers: tuple[str, ...]
    """Scorers of the stored scores, with versions."""
    scorer: str
    """Scorer of the new scores."""

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "scores": self.num_scores,
            "new": self.num_new,
            "errors": self.num_errors,
            "changed": len(self.changed),
            "scorer": self.scorer,
            "stored_by": list(self.scorers),
        }

    def summary(self) -> str:
        """One line."""
        line = (
            f"{self.num_scores} scores by {self.scorer or 'no scorer'}: {self.num_new} new, "
            f"{len(self.changed)} changed, {self.num_errors} failed"
        )
        others = [each for each in self.scorers if each != self.scorer]
        return f"{line}; stored ones are by {', '.join(others)}" if others else line

    def details(self) -> Iterator[str]:
        """Yields a line per change, and per reason of a failure."""
        for reason, number in self.failures.items():
            yield f"  {count(number, 'score')} failed: {' '.join(reason.split())[:300]}"
        for before, after in self.changed:
            yield f"  {after.cell} {after.sample_id} {after.metric}: {before.value} → {after.value}"


def changes(stored: Iterable[Score], new: Iterable[Score]) -> Changes:
    """Compares scores by (cell, sample, repeat, metric)."""
    before = {(each.cell, each.sample_id, each.repeat, each.metric): each for each in stored}
    after = {(each.cell, each.sample_id, each.repeat, each.metric): each for each in new}
    pairs = [(before[key], score) for key, score in after.items() if key in before]
    return Changes(
        num_scores=len(after),
        num_new=len(after) - len(pairs),
        num_errors=sum(each.points is None for each in after.values()),
        failures=Counter(each.error for each in after.values() if each.error),
        changed=tuple(pair for pair in pairs if not _same(pair[0].value, pair[1].value)),
        scorers=tuple(sorted({each.scorer for each in before.values() if each.scorer})),
        scorer=next((each.scorer for each in after.values()), ""),
    )


def _same(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return first is second
    return abs(first - second) <= _CLOSE
