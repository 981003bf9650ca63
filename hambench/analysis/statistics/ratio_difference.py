"""The difference of two ratios of sums over paired blocks, where losses are rare, large and on one side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from hambench.analysis.statistics.intervals import (
    CONFIDENCE,
    Array,
    largest_unseen_rate,
    mean_interval,
    proportion_interval,
)
from hambench.analysis.statistics.paired_tests import MIN_BLOCKS, PairedResult, swap_p_value

MIN_DIFFERING = 5
"""Blocks in which the arms must differ before their spread is known; below it, the interval is a bound."""
_TAIL_STRETCH = 2.0
"""How much longer the interval's half away from no effect is: without it, 86 % are covered under heavy tails."""


@dataclass(frozen=True, slots=True)
class DifferenceOfRatios:
    """Effects with their intervals; arrays without the blocks' axis, NaN where there is no interval."""

    effect: Array
    low: Array
    high: Array
    sampled_variance: Array
    added_variance: Array
    degrees_of_freedom: Array
    num_differing: Array


def difference_of_ratios(terms: Array, *, unseen: float, few_may_differ: bool = False) -> DifferenceOfRatios:
    """Σ a / Σ b − Σ c / Σ d over blocks on the last axis.

    The jackknife's pseudo-values, one per block, get the interval of a mean, stretched on the side away from no effect:
    a loss has no lower end than none, and its tail is on the other side. One event that the blocks did not show is
    added. There is no interval below :data:`MIN_BLOCKS` blocks.

    Where the arms differ in fewer than :data:`MIN_DIFFERING` blocks, their spread is not known and the interval is a
    bound: the largest shares of blocks that may differ upwards and downwards (Clopper and Pearson 1934; where none
    differs 1 − 0.05^(1/n)), each at the largest difference that a block may have. To leave such draws without an
    interval would print it for the lucky ones alone.

    Args:
        terms: a, b, c and d, shape ``(4, ..., blocks)``; b and d positive.
        unseen: Size of the added event in units of a; it weighs 1 in the smaller of Σ b and Σ d. A block in which the
            arms differ is taken to differ by no more than this per unit of b, or than the largest that was seen.
        few_may_differ: Takes the spread as it is however few blocks differ, since that they agree is no accident.
    """
    n = terms.shape[-1]
    totals = terms.sum(axis=-1)
    effect = _contrast(totals)
    differences = terms[0] / totals[1][..., None] - terms[2] / totals[3][..., None]
    differing = np.count_nonzero(terms[0] * terms[3] != terms[2] * terms[1], axis=-1)
    added = (unseen / np.minimum(totals[1], totals[3])) ** 2
    without = totals[..., None] - terms
    known = np.full(effect.shape, n >= MIN_BLOCKS) & np.all(without[[1, 3]] > 0, axis=(0, -1))
    if n < 2:
        nothing = np.full(effect.shape, np.nan)
        return DifferenceOfRatios(effect, nothing, nothing, nothing, added, np.zeros(effect.shape), differing)
    with np.errstate(divide="ignore", invalid="ignore"):
        pseudo = n * effect[..., None] - (n - 1) * _contrast(without)
    pseudo = np.where(known[..., None], pseudo, 0.0)
    weights = terms[1] / totals[1][..., None] + terms[3] / totals[3][..., None]
    mean = mean_interval(effect, pseudo, weights)
    below = (effect - mean.low) * np.where(effect < 0, _TAIL_STRETCH, 1.0)
    above = (mean.high - effect) * np.where(effect > 0, _TAIL_STRETCH, 1.0)
    more = special.stdtrit(mean.degrees_of_freedom, 0.5 + CONFIDENCE / 2) * np.sqrt(added)
    if not few_may_differ:
        few = differing < MIN_DIFFERING
        up, down = _bounds(differences, differing, unseen)
        below, above = np.where(few, effect + down, below), np.where(few, up - effect, above)
    return DifferenceOfRatios(
        effect=effect,
        low=np.where(known, effect - np.hypot(below, more), np.nan),
        high=np.where(known, effect + np.hypot(above, more), np.nan),
        sampled_variance=np.where(known, mean.standard_error**2, np.nan),
        added_variance=added,
        degrees_of_freedom=mean.degrees_of_freedom,
        num_differing=differing,
    )


def ratio_difference(
    candidate: tuple[Sequence[float] | Array, Sequence[float] | Array],
    baseline: tuple[Sequence[float] | Array, Sequence[float] | Array],
    *,
    unseen: float,
    few_may_differ: bool = False,
) -> PairedResult:
    """Σ numerator / Σ denominator of the candidate less that of the baseline, paired by block.

    The p-value is that of swapping the arms within blocks.

    Args:
        candidate: Numerators and denominators of the candidate, one each per block; e.g. nats and tokens.
        baseline: The same of the baseline.
        unseen: See :func:`difference_of_ratios`.
        few_may_differ: See :func:`difference_of_ratios`.

    Raises:
        ValueError: If lengths differ, there is no block, or a sum of denominators is not positive.
    """
    sides = [np.asarray(side, dtype=float) for side in (*candidate, *baseline)]
    n = len(sides[0])
    if n == 0 or any(len(side) != n for side in sides):
        raise ValueError(f"arms must have the same blocks, at least one; got {[len(side) for side in sides]}")
    terms = np.stack(sides)
    totals = terms.sum(axis=-1)
    if not (np.all(np.isfinite(totals)) and totals[1] > 0 and totals[3] > 0):
        raise ValueError(f"sums of denominators must be positive and finite, got {totals.tolist()}")
    found = difference_of_ratios(terms, unseen=unseen, few_may_differ=few_may_differ)
    low, high = float(found.low), float(found.high)
    is_known = math.isfinite(low)
    return PairedResult(
        effect=float(found.effect),
        num_blocks=n,
        low=low if is_known else None,
        high=high if is_known else None,
        sampled_variance=float(found.sampled_variance) if is_known else None,
        added_variance=float(found.added_variance),
        p_value=swap_p_value(terms, _contrast, float(found.effect)),
        degrees_of_freedom=float(found.degrees_of_freedom),
        test="sign-flip",
        num_informative=int(found.num_differing),
        tail_stretch=_TAIL_STRETCH,
    )


def equal_blocks_needed(
    denominators: tuple[Array, Array], *, unseen: float, margin: float, most: int
) -> int | None:
    """Blocks like these that would have to agree for the difference to be shown within a margin.

    The interval of so many is computed, not projected.

    Args:
        denominators: b and d of the blocks at hand, one each per block.
        unseen: See :func:`difference_of_ratios`.
        margin: Largest difference that is none.
        most: Largest number that is of use; ``None`` if more are needed.
    """

    def is_enough(num_blocks: int) -> bool:
        b, d = (np.resize(np.asarray(side, dtype=float), num_blocks) for side in denominators)
        found = difference_of_ratios(np.stack([0 * b, b, 0 * d, d]), unseen=unseen)
        return bool(found.high < margin)

    if not is_enough(most):
        return None
    low, high = MIN_BLOCKS - 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _bounds(differences: Array, differing: Array, unseen: float) -> tuple[Array, Array]:
    """How far the arms may differ upwards and downwards, from how many blocks do and the most that one may."""
    n = differences.shape[-1]
    most = np.maximum(unseen, n * np.abs(differences).max(axis=-1))
    # what rounding leaves of blocks that agree is no difference
    up, down = (np.count_nonzero(sign * differences > 1e-12, axis=-1) for sign in (1, -1))
    shares = [proportion_interval(number, n)[1] for number in (up, down)]
    none = largest_unseen_rate(n)
    up_to, down_to = (most * np.where(differing == 0, none, share) for share in shares)
    return up_to, down_to


def _contrast(sums: Array) -> Array:
    return np.asarray(sums[0] / sums[1] - sums[2] / sums[3])
