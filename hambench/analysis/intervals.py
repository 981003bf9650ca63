"""Intervals for one cell's accuracy: usable at any n, never of zero width because all answers agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np

from hambench.records import Estimate

Z95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""


def macro_average(points: Mapping[str, Sequence[float]]) -> Estimate | None:
    """Mean over tasks of the mean points (0 to 100) of each, with a 95 % interval; ``None`` without any.

    One task of 0/1 scores gets Wilson's interval. Otherwise the variance of each task's mean is taken after
    adding two scores of 0 and two of 100 (Agresti and Coull's rule, conservative for graded scores), and
    tasks are independent.

    Args:
        points: Points of each sample, by task.
    """
    tasks = [np.asarray(task, dtype=float) for task in points.values() if len(task)]
    if not tasks:
        return None
    num_samples = sum(len(task) for task in tasks)
    value = float(np.mean([task.mean() for task in tasks]))
    if len(tasks) == 1 and set(chain.from_iterable(points.values())) <= {0.0, 100.0}:
        low, high = wilson(value / 100, num_samples)
        return Estimate(value=value, low=100 * low, high=100 * high, n=num_samples)
    half = Z95 * math.sqrt(sum(_variance_of_mean(task) for task in tasks)) / len(tasks)
    return Estimate(value=value, low=max(0.0, value - half), high=min(100.0, value + half), n=num_samples)


def wilson(rate: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion."""
    z2 = Z95**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    # at the ends rounding would leave the estimate outside its own interval
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))


def ratio_of_sums(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Σ numerators / Σ denominators with a 95 % interval, a pair for each independent unit (an answer, a sample).

    What varies is the units, not what they are sums of: a thousand steps of ten answers tell what ten answers do.
    The variance is that of a ratio of sums (linearised). Fewer than two units, and units
    that all agree, say nothing of how they vary: they have no interval.

    Args:
        numerators: One per unit.
        denominators: One per unit, not negative; their sum must be positive.

    Raises:
        ValueError: If the denominators don't sum to something positive, or the lengths differ.
    """
    above, below = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if above.shape != below.shape:
        raise ValueError(f"numerators and denominators must be as many, got {above.size} and {below.size}")
    total = float(below.sum())
    if not total > 0:
        raise ValueError(f"denominators must have a positive sum, got {total:g}")
    value, n = float(above.sum()) / total, above.size
    if n < 2:
        return Estimate(value=value, n=n)
    half = Z95 * math.sqrt(float(((above - value * below) ** 2).sum()) * n / (n - 1)) / total
    if half == 0:
        return Estimate(value=value, n=n)
    return Estimate(value=value, low=value - half, high=value + half, n=n)


def _variance_of_mean(task: np.ndarray) -> float:
    padded = np.concatenate([task, [0.0, 0.0, 100.0, 100.0]])
    return float(padded.var() / len(padded))
