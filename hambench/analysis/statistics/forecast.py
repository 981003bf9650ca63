"""How many blocks would decide what these left open; a test measures that many and counts how often they do.

The forecast is an *assurance* (O'Hagan, Stevens and Campbell 2005): the chance of a verdict at N blocks, averaged over
the effects and spreads that the blocks at hand leave plausible, not taken at the one effect that was measured. Where
these blocks leave it open whether there is an effect at all, N must also be enough to show that there is none. No
number is named where too few blocks differ to know the spread, and none past :data:`MOST_NAMED`, which helps nobody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special

from hambench.analysis.statistics.intervals import CONFIDENCE, Array
from hambench.analysis.statistics.paired_tests import PairedResult

PROMISED = 0.8
"""How often the named number decides, at least."""
_ASSURANCE = 0.85
"""What the forecast asks of itself: its own spread is a guess, so it aims past what it promises."""
MIN_INFORMATIVE = 5
"""Blocks in which the arms differ, below which their spread is not known."""
MOST_NAMED = 5_000
"""Largest number that is named: as many rows as the longest suites have."""
MOST_TIMES = 1_000
"""Largest multiple of the blocks at hand that is looked at."""
_EFFECTS, _SPREADS, _SIZES = 40, 8, 90


@dataclass(frozen=True, slots=True)
class Forecast:
    """What more blocks of the same kind would do."""

    num_blocks: int
    would_tell: bool
    """Whether so many would decide; else even so many may leave it open."""
    unless_none: bool = False
    """Whether they decide only if there is an effect: to show that there is none takes more than is of use."""


def blocks_needed(result: PairedResult, *, margin: float) -> Forecast | None:
    """Blocks at which the verdict would no longer be *inconclusive*, or ``None`` where no number can be named.

    The named number decides at least 80 times in 100 where there is no effect, and where there is one of at least one
    and a half margins. Between, close to the margin, *equivalent* and *better* are out of reach of any number.

    Args:
        result: What the blocks at hand show.
        margin: Smallest effect worth a word, on the effect's scale; positive.
    """
    if result.sampled_variance is None or result.num_informative < MIN_INFORMATIVE or margin <= 0:
        return None
    degrees = max(1.0, result.degrees_of_freedom)
    spreads, effects, times = _grid(degrees)
    now = spreads[:, None, None] * result.sampled_variance + result.added_variance
    later = spreads[:, None, None] * result.sampled_variance / times + result.added_variance / times**2
    true_effects = result.effect + effects * np.sqrt(now)
    error = np.maximum(np.sqrt(later), 1e-15)
    # an interval made wider than Student's by skewness loses that width as blocks are added
    student = float(special.stdtrit(degrees, 0.5 + CONFIDENCE / 2)) * (result.standard_error or 0.0)
    student *= (1 + result.tail_stretch) / 2
    wider = result.half_width / student if student > 0 else 1.0
    quantile = special.stdtrit(degrees * times, 0.5 + CONFIDENCE / 2) * (1 + (wider - 1) / np.sqrt(times))
    stretch = result.tail_stretch
    chance = _chance_of_a_verdict(true_effects, error, quantile * error, margin, stretch).mean(axis=(0, 2))
    sizes = result.num_blocks * times[0, :, 0]
    most = min(max(MOST_NAMED, 2 * result.num_blocks), int(sizes[-1]))
    of_use = sizes <= most
    as_seen = np.nonzero((chance >= _ASSURANCE) & of_use)[0]
    if abs(result.effect) <= result.half_width:
        none = _chance_of_a_verdict(np.zeros(1), error, quantile * error, margin, stretch).mean(axis=(0, 2))
        chance = np.minimum(chance, none)
    enough = np.nonzero((chance >= _ASSURANCE) & of_use)[0]
    if len(enough):
        return Forecast(_rounded_up(float(sizes[enough[0]])), would_tell=True)
    if len(as_seen):
        return Forecast(_rounded_up(float(sizes[as_seen[0]])), would_tell=True, unless_none=True)
    return Forecast(_rounded_down(most), would_tell=False)


def _rounded_up(number: float) -> int:
    """To two significant digits: a forecast has no more."""
    return _step(number) * math.ceil(number / _step(number) - 1e-9)


def _rounded_down(number: float) -> int:
    return _step(number) * math.floor(number / _step(number) + 1e-9)


def _step(number: float) -> int:
    return int(10 ** max(0, math.floor(math.log10(number)) - 1))


def _chance_of_a_verdict(true: Array, error: Array, half: Array, margin: float, stretch: float) -> Array:
    """Chance that an estimate around ``true`` is *equivalent*, or a difference that is called."""
    far = stretch * half
    inside = special.ndtr((margin - far - true) / error) - special.ndtr((far - margin - true) / error)
    least = np.maximum(margin, half)
    outside = special.ndtr((-least - true) / error) + special.ndtr((true - least) / error)
    return np.asarray(np.maximum(inside, 0.0) + outside)


@lru_cache(maxsize=64)
def _grid(degrees: float) -> tuple[Array, Array, Array]:
    """Plausible variances over the measured one, effects in standard errors, and multiples of the blocks."""
    spreads = degrees / special.chdtri(degrees, (np.arange(_SPREADS) + 0.5) / _SPREADS)
    effects = special.ndtri((np.arange(_EFFECTS) + 0.5) / _EFFECTS)
    times = np.geomspace(1, MOST_TIMES, _SIZES + 1)[1:]
    return spreads, effects[None, None, :], times[None, :, None]
