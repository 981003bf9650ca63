"""Acceptance by position in the draft, and draft lengths, as counts of rounds from which shares are derived.

Position 1 is the first drafted token of a round. If an answer ends inside a round's accepted tokens, the verdicts on
later tokens are not stored, so these positions count as not tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hambench.records import GenerationTrace, StepRecord


@dataclass(frozen=True, slots=True)
class PlaceCounts:
    """Counts of rounds for one position of the draft."""

    drafted: int
    """Rounds that drafted it and whose outcome there is known."""
    tried: int
    """Rounds among them that accepted all places before it."""
    accepted: int
    """Rounds among those that accepted it."""

    @property
    def conditional(self) -> float | None:
        """Acceptance given that all earlier positions were accepted: accepted / tried."""
        return self.accepted / self.tried if self.tried else None

    @property
    def joint(self) -> float | None:
        """Acceptance of this and all earlier positions: accepted / drafted."""
        return self.accepted / self.drafted if self.drafted else None


def place_counts(traces: Iterable[GenerationTrace]) -> tuple[PlaceCounts, ...]:
    """Returns counts for positions 1, 2, ... in the decode phase; empty without drafts or known counts."""
    drafted: Counter[int] = Counter()
    tried: Counter[int] = Counter()
    kept: Counter[int] = Counter()
    for trace in traces:
        for step in trace.steps[1:]:
            if step.drafted is None or step.accepted is None:
                return ()
            for place in range(1, _known_places(step) + 1):
                drafted[place] += 1
                tried[place] += step.accepted >= place - 1
                kept[place] += step.accepted >= place
    return tuple(PlaceCounts(drafted[p], tried[p], kept[p]) for p in range(1, max(drafted, default=0) + 1))


def acceptance_conditional(traces: Sequence[GenerationTrace]) -> dict[int, float]:
    """By place i of a draft: rounds with at least i accepted / rounds that drafted i tokens and accepted i - 1."""
    return _shares(place.conditional for place in place_counts(traces))


def acceptance_joint(traces: Sequence[GenerationTrace]) -> dict[int, float]:
    """By place i of a draft: rounds with at least i accepted / rounds that drafted i tokens."""
    return _shares(place.joint for place in place_counts(traces))


def drafted_histogram(traces: Iterable[GenerationTrace]) -> dict[int, int]:
    """How many decode steps drafted 0, 1, 2, ... tokens; empty where no step drafted any or it can't be known."""
    lengths = [step.drafted for trace in traces for step in trace.steps[1:]]
    known = [length for length in lengths if length is not None]
    if len(known) < len(lengths) or not any(known):
        return {}
    return dict(sorted(Counter(known).items()))


def _known_places(step: StepRecord) -> int:
    assert step.drafted is not None
    # accepted is trimmed with the tokens: at the very end of an answer nothing more is known
    is_cut = step.discarded > 0 and step.accepted == len(step.tokens)
    return min(step.drafted, len(step.tokens)) if is_cut else step.drafted


def _shares(values: Iterable[float | None]) -> dict[int, float]:
    return {place: value for place, value in enumerate(values, start=1) if value is not None}
