"""Comparisons of every cell with the baseline, as :mod:`hambench.analysis.comparisons` judges them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hambench.analysis import comparisons
from hambench.records import Comparison, Estimate

if TYPE_CHECKING:
    from hambench.reports.view import View


def compare_with_baseline(view: View) -> dict[tuple[str, str, str], Comparison]:
    """Comparisons by (cell label, group, metric); empty without a baseline."""
    if view.baseline is None:
        return {}
    return {
        (row.candidate, row.group, row.metric): row
        for row in comparisons.compare_run(view.run, groups=view.groups)
    }


def effect_of(comparison: Comparison | None) -> Estimate | None:
    """The effect as it is shown; ``None`` without one."""
    return None if comparison is None else comparison.effect


def around(value: float, comparison: Comparison) -> Estimate:
    """A cell's own value with the interval of its paired comparison, on the value's scale.

    Difficulty that two settings share (hard questions, slow prompts) cancels here, so these bars answer "does it differ
    from the baseline?", which the interval of a value on its own does not.
    """
    effect = effect_of(comparison)
    if effect is None or effect.low is None or effect.high is None:
        return Estimate(value=value, n=effect.n if effect else 0)
    if comparison.metric == "accuracy":
        low, high = value + effect.low - effect.value, value + effect.high - effect.value
        return Estimate(value=value, low=max(0.0, low), high=min(100.0, high), n=effect.n)
    if effect.value <= 0:
        return Estimate(value=value)
    scale = value / effect.value
    return Estimate(value=value, low=scale * effect.low, high=scale * effect.high, n=effect.n)
