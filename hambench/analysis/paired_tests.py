"""Statistics of paired measurements: two arms, the same blocks, arrays in and intervals out.

A block is what the two arms share: a sample, several samples that belong together, or one repeat over all
samples. All tests are two-sided and deterministic (their random draws are seeded), and swapping the arms
mirrors the result. Below 100 blocks nothing here is decided by a bootstrap, which under-covers there;
Student's t and sign flips hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[Any]

CONFIDENCE = 0.95
POWER = 0.8
MIN_BOOTSTRAP_BLOCKS = 100
_NUM_FLIPS = 4_999
_NUM_RESAMPLES = 2_000
_EXACT_FLIPS_UP_TO = 12
_MOST_CACHED_BLOCKS = 500
_SEED = 20_250_526


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedResult:
    """An effect with its interval and its two-sided p-value; ``None`` where the blocks are too few."""

    effect: float
    """A difference; for ratios the natural logarithm."""
    num_blocks: int
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    p_value: float | None = None
    degrees_of_freedom: int = 0
    test: str = "none"
    """Which test gave the p-value."""

    def minimum_detectable_effect(self, margin: float = 0.0) -> float | None:
        """Smallest true effect that would be called, and found to be at least ``margin``, 80 times in 100."""
        if self.standard_error is None:
            return None
        t = stats.t(self.degrees_of_freedom)
        alpha, beta = t.ppf(0.5 + CONFIDENCE / 2), t.ppf(POWER)
        return float(max((alpha + beta) * self.standard_error, margin + beta * self.standard_error))


def log_ratio_of_sums(
    candidate: tuple[Sequence[float], Sequence[float]],
    baseline: tuple[Sequence[float], Sequence[float]],
) -> PairedResult:
    """Logarithm of (Σ numerator / Σ denominator) of the candidate over that of the baseline, paired by block.

    The interval is Student's t on the jackknife's pseudo-values of the log ratio, one per block, so that
    blocks of unequal size weigh as they do in the ratio of sums. The p-value is that of swapping the arms
    within blocks.

    Args:
        candidate: Numerators and denominators of the candidate, one each per block; e.g. tokens and seconds.
        baseline: The same of the baseline.

    Raises:
        ValueError: If lengths differ, there is no block, or a sum is not positive.
    """
    sides = [np.asarray(side, dtype=float) for side in (*candidate, *baseline)]
    n = len(sides[0])
    if n == 0 or any(len(side) != n for side in sides):
        raise ValueError(f"arms must have the same blocks, at least one; got {[len(side) for side in sides]}")
    sums = np.array([side.sum() for side in sides])
    if not (np.all(np.isfinite(sums)) and np.all(sums > 0)):
        raise ValueError(f"sums must be positive and finite, got {sums.tolist()}")
    effect = float(_log_ratio(sums))
    if n == 1:
        return PairedResult(effect=effect, num_blocks=1)
    without = sums[:, None] - np.stack(sides)
    low = high = error = None
    if np.all(without > 0):
        pseudo = n * effect - (n - 1) * _log_ratio(without)
        error = float(pseudo.std(ddof=1) / math.sqrt(n))
        half = float(stats.t(n - 1).ppf(0.5 + CONFIDENCE / 2)) * error
        low, high = effect - half, effect + half
    return PairedResult(
        effect=effect,
        num_blocks=n,
        low=low,
        high=high,
        standard_error=error,
        p_value=_swap_p_value(sides, effect),
        degrees_of_freedom=n - 1,
        test="sign-flip",
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

    - p-value: exact McNemar for scores of 0 or ``scale`` in one stratum without clusters; sign flips of whole
      clusters otherwise.
    - interval: a stratified, clustered bootstrap of the pairs for graded scores with at least 100 clusters in
      each stratum; Student's t otherwise, with one disagreement added to each stratum (Agresti and Min 2005)
      so that a few pairs which happen to agree don't prove equality.

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
    effect = float(weights @ difference)
    means = np.bincount(stratum, weights=difference) / counts
    num_clusters = int(cluster.max()) + 1

    binary = bool(np.isin([candidate, baseline], [0.0, scale]).all())
    contributions = np.bincount(cluster, weights=weights * difference)
    if binary and len(counts) == 1 and num_clusters == n:
        p_value, test = mcnemar_p_value(difference), "McNemar"
    else:
        p_value, test = _flip_p_value(contributions), "sign-flip"

    residuals = np.bincount(cluster, weights=weights * (difference - means[stratum]))
    sampled = (residuals @ residuals) * num_clusters / max(1, num_clusters - 1)
    added = sum(
        (_largest(difference[stratum == s], scale) / (len(counts) * size)) ** 2
        for s, size in enumerate(counts)
    )
    error = math.sqrt(sampled + added)
    degrees = max(1, num_clusters - 1)
    half = float(stats.t(degrees).ppf(0.5 + CONFIDENCE / 2)) * error
    low, high = effect - half, effect + half
    per_stratum = [len(np.unique(cluster[stratum == s])) for s in range(len(counts))]
    separate = sum(per_stratum) == num_clusters
    # pairs that agree carry no information about the spread: they don't count towards the blocks a bootstrap
    # needs
    informative = int(np.count_nonzero(contributions))
    if not binary and separate and min(*per_stratum, informative) >= MIN_BOOTSTRAP_BLOCKS:
        low, high = _bootstrap(difference, stratum, cluster)
    return PairedResult(
        effect=effect,
        num_blocks=num_clusters,
        low=low,
        high=high,
        standard_error=error,
        p_value=p_value,
        degrees_of_freedom=degrees,
        test=test,
    )


def mcnemar_p_value(difference: Array) -> float:
    """Exact McNemar: whether disagreements fall evenly on both sides; 1 without any."""
    up, down = int((difference > 0).sum()), int((difference < 0).sum())
    return float(stats.binomtest(min(up, down), up + down, 0.5).pvalue) if up + down else 1.0


def adjusted_p_values(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's p-values: calling those below q makes at most a share q of the calls false."""
    return [float(p) for p in stats.false_discovery_control(p_values)] if len(p_values) else []


def _log_ratio(sums: Array) -> Array:
    logs = np.log(sums)
    return np.asarray((logs[0] - logs[1]) - (logs[2] - logs[3]))


def _swap_p_value(sides: list[Array], effect: float) -> float:
    # sums under a swap: half the two arms' total, plus or minus half the signed differences
    total = np.array([(sides[0] + sides[2]).sum(), (sides[1] + sides[3]).sum()]) / 2
    gaps = np.stack([sides[0] - sides[2], sides[1] - sides[3]], axis=1) / 2

    def statistic(signs: Array) -> Array:
        moved = signs @ gaps
        ours, theirs = total + moved, total - moved
        logs: Array = np.log(ours[:, 0] / ours[:, 1]) - np.log(theirs[:, 0] / theirs[:, 1])
        return np.abs(logs)

    return _share_as_extreme(statistic, abs(effect), len(sides[0]))


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


def _bootstrap(difference: Array, stratum: Array, cluster: Array) -> tuple[float, float]:
    rng = np.random.default_rng(_SEED)
    draws = np.zeros(_NUM_RESAMPLES)
    strata = np.unique(stratum)
    for s in strata:
        inside = stratum == s
        _, codes = np.unique(cluster[inside], return_inverse=True)
        sums, sizes = np.bincount(codes, weights=difference[inside]), np.bincount(codes)
        drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=_NUM_RESAMPLES)
        draws += (drawn @ sums) / (drawn @ sizes) / len(strata)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def _largest(difference: Array, scale: float) -> float:
    return float(np.abs(difference).max()) or scale


def _codes(labels: Sequence[Hashable], n: int) -> Array:
    if len(labels) != n:
        raise ValueError(f"labels must have one entry per pair ({n}), got {len(labels)}")
    codes = {label: code for code, label in enumerate(dict.fromkeys(labels))}
    return np.array([codes[label] for label in labels], dtype=np.int64)
