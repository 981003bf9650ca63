"""Statistics of paired measurements: two arms, the same blocks, arrays in and intervals out.

A block is what the two arms share: a sample, several samples that belong together, or one repeat over all samples. All
tests are two-sided and deterministic (their random draws are seeded), and swapping the arms mirrors the result.
Nothing here is decided by a bootstrap, whose intervals are too narrow on the few blocks of a benchmark. The intervals
come from :mod:`hambench.analysis.statistics.intervals`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

from hambench.analysis.statistics.intervals import (
    CONFIDENCE,
    Array,
    difference_interval,
    largest_unseen_rate,
    log_contrast,
    log_ratio_interval,
    t_interval,
)

POWER = 0.8
MIN_BLOCKS = 6
"""Fewest blocks that a difference is called on: with five, swapping arms can't reach p = 0.05."""
_NUM_FLIPS = 4_999
_EXACT_FLIPS_UP_TO = 12
_MOST_CACHED_BLOCKS = 500
_SEED = 20_250_526
RATIO: tuple[int, ...] = (1, -1)
"""Signs of a rate: numerator over denominator."""
RATIO_OF_RATIOS: tuple[int, ...] = (1, -1, -1, 1)
"""Signs of a rate over another rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedResult:
    """An effect with its interval and its two-sided p-value; ``None`` where the blocks are too few."""

    effect: float
    """A difference; for ratios the natural logarithm."""
    num_blocks: int
    low: float | None = None
    high: float | None = None
    sampled_variance: float | None = None
    """Variance of the effect as the blocks show it: falls as 1/n."""
    added_variance: float = 0.0
    """What was added to it because few blocks show little: falls as 1/n²."""
    p_value: float | None = None
    degrees_of_freedom: float = 0
    test: str = "none"
    """Which test gave the p-value."""
    num_informative: int = 0
    """Blocks in which the arms differ."""
    tail_stretch: float = 1.0
    """How much longer the interval's half away from no effect is, however many blocks there are."""

    @property
    def standard_error(self) -> float | None:
        """Standard error of the effect."""
        if self.sampled_variance is None:
            return None
        return math.sqrt(self.sampled_variance + self.added_variance)

    def minimum_detectable_effect(self, margin: float = 0.0, *, power: float = POWER) -> float | None:
        """Smallest true effect that would be called, and found to be at least ``margin``, this often.

        Args:
            margin: Smallest effect that is called.
            power: How often such an effect is found; by default 80 times in 100.
        """
        error = self.standard_error
        if error is None:
            return None
        beta = float(stats.t.ppf(power, self.degrees_of_freedom)) * error
        return max(self.half_width + beta, margin + beta)

    @property
    def half_width(self) -> float:
        """Half of the interval before it was cut to what is possible; 0 without one."""
        error = self.standard_error
        if error is None:
            return 0.0
        student = float(stats.t.ppf(0.5 + CONFIDENCE / 2, self.degrees_of_freedom)) * error
        shown = 0.0 if self.low is None or self.high is None else (self.high - self.low) / 2
        return max(student, shown)


def log_ratio_of_sums(
    candidate: Sequence[Sequence[float]] | Array,
    baseline: Sequence[Sequence[float]] | Array,
    *,
    signs: Sequence[int] = RATIO,
) -> PairedResult:
    """Logarithm of (Σ numerator / Σ denominator) of the candidate over that of the baseline, paired by block.

    The interval is that of the jackknife's pseudo-values of the log ratio, one per block
    (:func:`~hambench.analysis.statistics.intervals.mean_interval`), so that blocks of unequal size weigh as they do in
    the ratio of sums. The p-value is that of swapping the arms within blocks.

    Args:
        candidate: Terms of the candidate, each with one value per block; e.g. tokens and seconds.
        baseline: The same of the baseline.
        signs: Which terms are numerators (1) and which denominators (-1).

    Raises:
        ValueError: If lengths differ, there is no block, or a sum is not positive.
    """
    sides = [np.asarray(side, dtype=float) for side in (*candidate, *baseline)]
    n = len(sides[0])
    if n == 0 or len(sides) != 2 * len(signs) or any(len(side) != n for side in sides):
        raise ValueError(f"arms must have the same blocks, at least one; got {[len(side) for side in sides]}")
    terms = np.stack(sides)
    totals = terms.sum(axis=-1)
    if not (np.all(np.isfinite(totals)) and np.all(totals > 0)):
        raise ValueError(f"sums must be positive and finite, got {totals.tolist()}")
    both = (*signs, *(-sign for sign in signs))
    effect = float(log_contrast(totals, both))
    if n == 1:
        return PairedResult(effect=effect, num_blocks=1)
    p_value = swap_p_value(terms, lambda sums: log_contrast(sums, both), effect)
    if not np.all(totals[:, None] - terms > 0):
        return PairedResult(effect=effect, num_blocks=n, p_value=p_value, test="sign-flip")
    interval = log_ratio_interval(terms, both)
    return PairedResult(
        effect=effect,
        num_blocks=n,
        low=float(interval.low),
        high=float(interval.high),
        sampled_variance=float(interval.standard_error) ** 2,
        p_value=p_value,
        degrees_of_freedom=float(interval.degrees_of_freedom),
        test="sign-flip",
        num_informative=n,
    )


def mean_log_ratio(logs: Sequence[float] | Array) -> PairedResult:
    """Mean log ratio of blocks of equal weight, with Student's t-interval and the p-value of flipping signs.

    Below :data:`MIN_BLOCKS` no interval is given: blocks of two kinds would too often all be of one.

    Raises:
        ValueError: If there is no block, or a log ratio is not finite.
    """
    values = np.asarray(logs, dtype=float)
    n = len(values)
    if n == 0 or not np.all(np.isfinite(values)):
        raise ValueError(f"log ratios must be finite, at least one; got {values.tolist()}")
    effect = float(values.mean())
    if n == 1:
        return PairedResult(effect=effect, num_blocks=1)
    low, high, error = t_interval(values)
    few = n < MIN_BLOCKS
    return PairedResult(
        effect=effect,
        num_blocks=n,
        low=None if few else float(low),
        high=None if few else float(high),
        sampled_variance=float(error) ** 2,
        p_value=_flip_p_value(values / n),
        degrees_of_freedom=n - 1,
        test="sign-flip",
        num_informative=n,
    )


def mean_difference(
    candidate: Sequence[float],
    baseline: Sequence[float],
    *,
    strata: Sequence[Hashable] | None = None,
    clusters: Sequence[Hashable] | None = None,
    scale: float = 100.0,
) -> PairedResult:
    """Mean over strata of the mean difference within each, candidate minus baseline, paired by position.

    - p-value: exact McNemar for scores of 0 or ``scale`` in one stratum without clusters; sign flips of whole clusters
      otherwise.
    - interval: Student's t on the stratified variance, with two pairs of full disagreement added over all strata, one
      each way (Bonett and Price 2012), so that a few pairs which happen to agree don't prove equality. Strata of one
      cluster are collapsed into one for the variance (Cochran 1977, 5A.12). An interval that would reach past every
      possible difference on both sides says nothing and is not given.

    Args:
        candidate: Scores of the candidate.
        baseline: Scores of the baseline for the same samples.
        strata: Task of each sample; one stratum by default.
        clusters: What each sample belongs together with; by default each sample is its own cluster.
        scale: Largest possible score.

    Raises:
        ValueError: If lengths differ or there is no pair.
    """
    difference = np.asarray(candidate, dtype=float) - np.asarray(baseline, dtype=float)
    n = len(difference)
    if n == 0 or len(candidate) != len(baseline):
        raise ValueError(
            f"arms must have the same samples, at least one; got {len(candidate)}, {len(baseline)}"
        )
    stratum = np.zeros(n, dtype=np.int64) if strata is None else _codes(strata, n)
    cluster = np.arange(n) if clusters is None else _codes(clusters, n)
    counts = np.bincount(stratum)
    weights = 1 / (len(counts) * counts[stratum])
    num_clusters = int(cluster.max()) + 1
    contributions = np.bincount(cluster, weights=weights * difference)
    binary = bool(np.isin([candidate, baseline], [0.0, scale]).all())
    if binary and len(counts) == 1 and num_clusters == n:
        p_value, test = mcnemar_p_value(difference), "McNemar"
    else:
        p_value, test = _flip_p_value(contributions), "sign-flip"
    interval = difference_interval(difference, stratum, cluster, scale=scale)
    low, high = max(-scale, float(interval.low)), min(scale, float(interval.high))
    says_nothing = not math.isfinite(low) or (low <= -scale and high >= scale)
    return PairedResult(
        effect=float(interval.effect),
        num_blocks=num_clusters,
        low=None if says_nothing else low,
        high=None if says_nothing else high,
        sampled_variance=float(interval.sampled_variance) if num_clusters > 1 else None,
        added_variance=interval.added_variance,
        p_value=p_value,
        degrees_of_freedom=interval.degrees_of_freedom,
        test=test,
        num_informative=int(np.count_nonzero(contributions)),
    )


def equal_answers_bound(
    strata: Sequence[Hashable], clusters: Sequence[Hashable] | None = None, *, scale: float = 100.0
) -> float:
    """Largest mean difference of scores, at 95 %, where every answer of both arms was the same.

    Only a changed answer can change a score, and a share of changed answers above 1 − 0.05^(1/n) would have shown.
    Strata weigh the same, so n is their number times the clusters of the smallest, and never more than all clusters:
    answers about one document may change together.

    Args:
        strata: Stratum of each answer.
        clusters: What each answer belongs together with; by default each is its own cluster.
        scale: Largest possible score.
    """
    stratum = _codes(strata, len(strata))
    cluster = np.arange(len(strata)) if clusters is None else _codes(clusters, len(strata))
    pairs = np.unique(np.stack([stratum, cluster]), axis=1)
    sizes = np.bincount(pairs[0])
    return scale * largest_unseen_rate(min(len(sizes) * int(sizes.min()), int(cluster.max()) + 1))


def mcnemar_p_value(difference: Array) -> float:
    """Exact McNemar: whether disagreements fall evenly on both sides; 1 without any."""
    up, down = int((difference > 0).sum()), int((difference < 0).sum())
    return float(stats.binomtest(min(up, down), up + down, 0.5).pvalue) if up + down else 1.0


def adjusted_p_values(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's p-values: calling those below q makes at most a share q of the calls false."""
    return [float(p) for p in stats.false_discovery_control(p_values)] if len(p_values) else []


def swap_p_value(terms: Array, contrast: Callable[[Array], Array], effect: float) -> float:
    """How often swapping the arms within blocks gives an effect as large.

    Args:
        terms: The candidate's terms, then as many of the baseline, shape ``(terms, blocks)``.
        contrast: The effect of sums over blocks, shape ``(terms, ...)``.
        effect: That of the arms as they are.
    """
    # sums under a swap: half the two arms' total, plus or minus half the signed differences
    ours, theirs = np.split(terms, 2)
    total = (ours + theirs).sum(axis=1) / 2
    gaps = (ours - theirs).T / 2

    def statistic(swaps: Array) -> Array:
        moved = swaps @ gaps
        sums = np.concatenate([total + moved, total - moved], axis=1)
        return np.asarray(np.abs(contrast(sums.T)))

    return _share_as_extreme(statistic, abs(effect), terms.shape[1])


def _flip_p_value(contributions: Array) -> float:
    return _share_as_extreme(
        lambda signs: np.abs(signs @ contributions), abs(float(contributions.sum())), len(contributions)
    )


def _share_as_extreme(statistic: Callable[[Array], Array], observed: float, num_blocks: int) -> float:
    # rounding must not make a flip that changes nothing look less extreme
    threshold = observed * (1 - 1e-9) - 1e-12
    if num_blocks <= _EXACT_FLIPS_UP_TO:
        bits = np.arange(2**num_blocks)[:, None] >> np.arange(num_blocks) & 1
        return float((statistic(1.0 - 2.0 * bits) >= threshold).mean())
    extreme = sum(int((statistic(signs) >= threshold).sum()) for signs in _random_signs(num_blocks))
    return (extreme + 1) / (_NUM_FLIPS + 1)


def _random_signs(num_blocks: int) -> Iterable[Array]:
    """``_NUM_FLIPS`` rows of random signs, in chunks; the same ones every time."""
    if num_blocks <= _MOST_CACHED_BLOCKS:
        return (_cached_signs(num_blocks),)
    rng = np.random.default_rng(_SEED)
    chunk = max(1, 2_000_000 // num_blocks)
    sizes = (min(chunk, _NUM_FLIPS - start) for start in range(0, _NUM_FLIPS, chunk))
    return (_signs(rng, size, num_blocks) for size in sizes)


@lru_cache(maxsize=4)
def _cached_signs(num_blocks: int) -> Array:
    # most tasks of a suite have equally many samples, and every cell is compared on each
    return _signs(np.random.default_rng(_SEED), _NUM_FLIPS, num_blocks)


def _signs(rng: np.random.Generator, rows: int, columns: int) -> Array:
    return 1.0 - 2.0 * rng.integers(0, 2, size=(rows, columns), dtype=np.int8)


def _codes(labels: Sequence[Hashable], n: int) -> Array:
    if len(labels) != n:
        raise ValueError(f"labels must have one entry per pair ({n}), got {len(labels)}")
    codes = {label: code for code, label in enumerate(dict.fromkeys(labels))}
    return np.array([codes[label] for label in labels], dtype=np.int64)
