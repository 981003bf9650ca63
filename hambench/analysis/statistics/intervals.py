"""Every 95 % interval of one quantity: array kernels over the last axis, and the estimates made of them.

All of them keep their promise with few units and heavy tails: ``tests/analysis/test_coverage.py`` runs them over 1 to
20 units per task, 1 to 21 tasks and several kinds of data, and ``docs/measuring.md`` holds its table. The kernels take
arrays whose last axis is the independent unit (a sample, an answer, a block) and any number of axes before it, so that
the test runs the code that prints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from hambench.records import Estimate

Array = NDArray[Any]

CONFIDENCE = 0.95
_TAIL = (1 - CONFIDENCE) / 2
_PSEUDO_SCORES = 2
"""Scores of 0, and as many of 1, added to a task before its variance is taken (Agresti and Coull 1998)."""
_FEWEST_UNITS = 3
"""Units of a ratio of sums below which it has no interval."""
WIDEST = 1e4
"""How many times a ratio of sums, or what part of it, an end of its interval may be at most. Ends reached 1e7 to 1e40
times the ratio where units vary much or one holds most of a sum. A bound of 1,000 would withhold so many intervals of
three units that those left cover 90 %."""
_TAIL_SHARE = 0.8
"""Share of the degrees of freedom that a spread has where its units' kurtosis is 3.5 (Box and Andersen 1955)."""
_FARTHEST = 2.5
"""How much farther than Student's t an interval may reach for skewness."""
_PSEUDO_PAIRS = 2
"""Pairs of full disagreement added to a difference of scores, one each way (Bonett and Price 2012)."""


def macro_average(points: Mapping[str, Sequence[float]]) -> Estimate | None:
    """Mean over tasks of the mean points (0 to 100) of each, with a 95 % interval; ``None`` without any.

    Args:
        points: Points of each sample, by task.
    """
    tasks = [np.asarray(task, dtype=float) / 100 for task in points.values() if len(task)]
    if not tasks:
        return None
    value, low, high = (100 * float(part) for part in mean_score_interval(tasks))
    return Estimate(value=value, low=low, high=high, n=sum(len(task) for task in tasks))


def mean_score_interval(tasks: Sequence[Array]) -> tuple[Array, Array, Array]:
    """Mean over tasks of the mean score of each, with the interval of Korn and Graubard (1998).

    Their interval is Clopper and Pearson's exact one for a proportion, at the number of 0/1 scores that would vary as
    much as these scores do: graded scores vary less than 0/1 scores of the same mean and so count for more than one
    each. The variance of each task's mean is taken with two scores of 0 and two of 1 added (Agresti and Coull 1998) and
    divided by the real number of scores, so that a few equal scores do not pass for certainty.

    Args:
        tasks: Scores from 0 to 1, shape ``(..., samples)``, one array per task; tasks weigh the same.

    Returns:
        Mean, low and high, each of shape ``(...)``.
    """
    mean = sum(np.mean(task, axis=-1) for task in tasks) / len(tasks)
    padded_mean: Any = 0.0
    variance: Any = 0.0
    for task in tasks:
        n = task.shape[-1]
        first = (task.sum(axis=-1) + _PSEUDO_SCORES) / (n + 2 * _PSEUDO_SCORES)
        second = ((task**2).sum(axis=-1) + _PSEUDO_SCORES) / (n + 2 * _PSEUDO_SCORES)
        padded_mean = padded_mean + first / len(tasks)
        variance = variance + (second - first**2) / n / len(tasks) ** 2
    effective = padded_mean * (1 - padded_mean) / variance
    low, high = proportion_interval(mean * effective, effective)
    return np.asarray(mean), low, high


def proportion_interval(successes: Any, trials: Any) -> tuple[Array, Array]:
    """Clopper and Pearson's (1934) exact interval of a proportion; neither count need be whole.

    Args:
        successes: From 0 to ``trials``.
        trials: Positive.
    """
    x, n = np.broadcast_arrays(np.asarray(successes, dtype=float), np.asarray(trials, dtype=float))
    # rounding may carry a count a hair past the ends
    x = np.clip(x, 0.0, n)
    some, all_but = np.maximum(x, 1e-12), np.maximum(n - x, 1e-12)
    low = np.where(x <= 1e-9, 0.0, special.betaincinv(some, n - x + 1, _TAIL))
    high = np.where(n - x <= 1e-9, 1.0, special.betaincinv(x + 1, all_but, 1 - _TAIL))
    return low, high


def largest_unseen_rate(trials: float) -> float:
    """Upper 95 % bound of a rate that was never seen: 1 − 0.05^(1/n), the exact form of the rule of three.

    Args:
        trials: Independent chances it had to show.
    """
    return float(1 - (1 - CONFIDENCE) ** (1 / trials))


def clustered_rate(hits: Any, trials: Any) -> tuple[Array, Array, Array]:
    """A rate whose trials come in clusters (tokens of one sample), with the interval of Korn and Graubard (1998).

    The clusters are what varies: the effective number of trials is what would give the linearised variance between
    clusters, lowered by the square of t over z for the number of clusters, and never above the number of trials. Where
    all clusters agree it is the number of clusters.

    Args:
        hits: Successes of each cluster, shape ``(..., clusters)``.
        trials: Trials of each cluster, positive.

    Returns:
        Rate, low and high, each of shape ``(...)``; low and high are NaN for a single cluster.
    """
    right, told = np.asarray(hits, dtype=float), np.asarray(trials, dtype=float)
    num = told.shape[-1]
    total = told.sum(axis=-1)
    rate = right.sum(axis=-1) / total
    if num < 2:
        nothing = np.full(np.shape(rate), np.nan)
        return rate, nothing, nothing
    residuals = right - rate[..., None] * told
    variance = (residuals**2).sum(axis=-1) * num / (num - 1) / total**2
    degrees = np.clip(_kish(told) - 1, 1, num - 1)
    shrunk = (special.ndtri(1 - _TAIL) / special.stdtrit(degrees, 1 - _TAIL)) ** 2
    spread = np.where(variance > 0, variance, 1.0)
    effective = np.where(variance > 0, rate * (1 - rate) / spread, num) * shrunk
    # clusters that nearly agree by chance must not count as more than their trials, nor as less than one
    effective = np.clip(effective, 1.0, total)
    low, high = proportion_interval(rate * effective, effective)
    return rate, low, high


@dataclass(frozen=True, slots=True)
class MeanInterval:
    """A mean of units with its interval; arrays without the units' axis."""

    low: Array
    high: Array
    standard_error: Array
    degrees_of_freedom: Array


def mean_interval(effect: Array, units: Array, weights: Array) -> MeanInterval:
    """The interval of an effect that is the mean of its units, or nearly so (a jackknife's pseudo-values).

    Two intervals are joined. One is Student's t whose degrees of freedom are the effective number of units less one
    (Kish 1965; Satterthwaite 1946), times 0.8 because units have longer tails than the normal: one unit that outweighs
    the others leaves little to tell the spread from. The other is t after Hall's (1992) cubic transformation, which
    takes the units' skewness out: without it an effect that rests on rare large units is missed too often. It reaches
    at most two and a half times as far as t, because few units tell little of a skewness. Neither alone covers 93 %
    under heavy tails.

    Args:
        effect: The effect, shape ``(...)``.
        units: One value per unit, shape ``(..., units)``; two at least.
        weights: What each unit weighs in the effect, same shape, positive.
    """
    n = units.shape[-1]
    centred = units - units.mean(axis=-1, keepdims=True)
    # around the effect, not their own mean: the jackknife's bias counts as error
    error = np.sqrt(((units - effect[..., None]) ** 2).sum(axis=-1) / (n - 1) / n)
    degrees = np.clip(_TAIL_SHARE * (_kish(weights) - 1), 1, n - 1)
    quantile = special.stdtrit(degrees, 1 - _TAIL)
    spread = np.sqrt((centred**2).mean(axis=-1))
    skewness = (centred**3).mean(axis=-1) / np.where(spread > 0, spread, 1.0) ** 3
    lean = np.where(spread > 0, skewness, 0.0) / np.sqrt(n)
    below, above = _hall(quantile, lean), _hall(-quantile, lean)
    return MeanInterval(
        low=effect - error * np.clip(below, quantile, _FARTHEST * quantile),
        high=effect + error * np.clip(-above, quantile, _FARTHEST * quantile),
        standard_error=error,
        degrees_of_freedom=degrees,
    )


def ratio_of_sums(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Σ numerators / Σ denominators with a 95 % interval, a pair for each independent unit (an answer, a sample).

    What varies is the units, not what they are sums of: a thousand steps of ten answers tell what ten answers do. The
    interval is that of the logarithm (:func:`log_ratio_interval`). Fewer than three units, units that all agree, and a
    sum that rests on one unit say too little of how units vary: they have no interval, and neither has a ratio whose
    interval would reach past ten thousand times its value or below a ten-thousandth of it, which says nothing.

    Args:
        numerators: One per unit.
        denominators: One per unit, not negative; their sum must be positive.

    Raises:
        ValueError: If the denominators don't sum to something positive, or the lengths differ.
    """
    above, below = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if above.shape != below.shape:
        raise ValueError(
            f"numerators and denominators must have the same length, got {above.size} and {below.size}"
        )
    total = float(below.sum())
    if not total > 0:
        raise ValueError(f"denominators must have a positive sum, got {total:g}")
    value, n = float(above.sum()) / total, above.size
    if n < _FEWEST_UNITS or not value > 0 or not np.all((total - below > 0) & (above.sum() - above > 0)):
        return Estimate(value=value, n=n)
    interval = log_ratio_interval(np.stack([above, below]), (1, -1))
    reach = max(interval.high - np.log(value), np.log(value) - interval.low)
    if interval.standard_error <= 1e-12 or reach > np.log(WIDEST):
        return Estimate(value=value, n=n)
    return Estimate(value=value, low=float(np.exp(interval.low)), high=float(np.exp(interval.high)), n=n)


def log_ratio_interval(terms: Array, signs: Sequence[int]) -> MeanInterval:
    """The interval of Σ sign · log(Σ term) over blocks on the last axis, two at least.

    Args:
        terms: Shape ``(terms, ..., blocks)``, positive sums also without any one block.
        signs: One per term.
    """
    n = terms.shape[-1]
    totals = terms.sum(axis=-1)
    effect = log_contrast(totals, signs)
    without = log_contrast(totals[..., None] - terms, signs)
    pseudo = n * effect[..., None] - (n - 1) * without
    return mean_interval(effect, pseudo, (terms / totals[..., None]).mean(axis=0))


def t_interval(values: Array) -> tuple[Array, Array, Array]:
    """Low and high of Student's t-interval of the mean over the last axis (two values at least), and its error."""
    n = values.shape[-1]
    mean, error = values.mean(axis=-1), values.std(axis=-1, ddof=1) / np.sqrt(n)
    half = t_quantile(n) * error
    return mean - half, mean + half, error


def t_quantile(num_blocks: int) -> float:
    """Half-width of the interval of a mean over blocks, in standard errors."""
    return float(special.stdtrit(num_blocks - 1, 1 - _TAIL))


@dataclass(frozen=True, slots=True)
class DifferenceInterval:
    """A mean difference with its interval; NaN where one cluster leaves nothing to take a variance of."""

    effect: Array
    low: Array
    high: Array
    sampled_variance: Array
    added_variance: float
    degrees_of_freedom: float


def difference_interval(
    difference: Array, stratum: Array, cluster: Array, *, scale: float = 100.0
) -> DifferenceInterval:
    """The interval of :func:`mean_difference`, not cut to what is possible, over samples on the last axis.

    Args:
        difference: Candidate minus baseline, shape ``(..., samples)``.
        stratum: Number of each sample's stratum, from 0 without gaps, shape ``(samples,)``.
        cluster: The same for its cluster.
        scale: Largest possible score.
    """
    num_strata, num_clusters = int(stratum.max()) + 1, int(cluster.max()) + 1
    counts = np.bincount(stratum)
    weights = 1 / (num_strata * counts[stratum])
    effect = difference @ weights
    per_stratum = np.bincount(np.unique(np.stack([stratum, cluster]), axis=1)[0])
    separate = int(per_stratum.sum()) == num_clusters
    means = _sum_by(difference, stratum) / counts
    factor = np.full(num_strata, num_clusters / max(1, num_clusters - 1))
    degrees = num_clusters - 1
    if separate and num_strata > 1:
        alone = per_stratum == 1
        num_alone = int(alone.sum())
        # a stratum of one cluster has no variance of its own: it is held against the others of its kind
        centre = means[..., alone].mean(axis=-1, keepdims=True) if num_alone > 1 else effect[..., None]
        means = np.where(alone, centre, means)
        of_alone = num_alone / (num_alone - 1) if num_alone > 1 else 1.0
        factor = np.where(alone, of_alone, per_stratum / np.maximum(1, per_stratum - 1))
        degrees = num_clusters - int((~alone).sum()) - min(1, num_alone)
    residuals = weights * (difference - means[..., stratum]) * np.sqrt(factor[stratum])
    sampled = (_sum_by(residuals, cluster) ** 2).sum(axis=-1)
    of_clusters = np.bincount(cluster, weights=weights)
    pseudo_rate = _PSEUDO_PAIRS / (num_clusters + _PSEUDO_PAIRS)
    added = float(pseudo_rate * scale**2 * (of_clusters @ of_clusters))
    if num_clusters < 2:
        nothing = np.full(np.shape(effect), np.nan)
        return DifferenceInterval(effect, nothing, nothing, nothing, added, 0)
    degrees = max(1, degrees)
    half = float(special.stdtrit(degrees, 1 - _TAIL)) * np.sqrt(sampled + added)
    return DifferenceInterval(effect, effect - half, effect + half, sampled, added, degrees)


def _sum_by(values: Array, codes: Array) -> Array:
    """Sums over the last axis of the values of each code; codes run from 0 without gaps."""
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(int(codes.max()) + 1))
    return np.asarray(np.add.reduceat(values[..., order], starts, axis=-1))


def log_contrast(sums: Array, signs: Sequence[int]) -> Array:
    """Σ sign · log(sum) over the first axis."""
    return np.asarray(np.tensordot(np.asarray(signs, dtype=float), np.log(sums), axes=1))


def _kish(weights: Array) -> Array:
    """Number of equal weights that would tell as much: (Σw)² / Σw²."""
    return np.asarray(weights.sum(axis=-1) ** 2 / (weights**2).sum(axis=-1))


def _hall(quantile: Array, lean: Array) -> Array:
    """Where Hall's transformation g(T) = T + a T²/3 + a² T³/27 + a/6 takes the value ``quantile``; ``lean`` is a."""
    flat = np.abs(lean) < 1e-6
    a = np.where(flat, 1.0, lean)
    return np.where(flat, quantile, 3 / a * (np.cbrt(1 + a * (quantile - a / 6)) - 1))
