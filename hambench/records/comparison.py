"""What is computed of two cells: estimates, and the comparison with the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its interval; ``low``/``high`` are ``None`` where n does not allow one."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0


Verdict = Literal["better", "worse", "equivalent", "inconclusive", "not comparable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One metric of a candidate against the baseline, paired by sample."""

    candidate: str
    baseline: str
    group: str
    metric: str
    effect: Estimate | None
    """A ratio (candidate / baseline) for speeds and bytes, a difference in points for accuracy."""
    verdict: Verdict
    p_value: float | None = None
    adjusted_p_value: float | None = None
    """The p-value after correcting for the settings of the run, or for its tasks; what the verdict rests on."""
    minimum_detectable_effect: float | None = None
    standard_error: float | None = None
    """Of the effect, of its logarithm for a ratio."""
    degrees_of_freedom: float | None = None
    num_left_out: int = 0
    """Pairs that could not be compared, e.g. answers without a token after the first step."""
    num_equal: int | None = None
    """Pairs of answers that are equal token by token; ``None`` where tokens were not compared."""
    num_answers: int | None = None
    """Pairs of answers whose tokens were compared."""
    reason: str = ""
    """Why the verdict is what it is, in one clause, where the numbers don't say it."""
