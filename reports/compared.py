"""Comparisons of every cell with the baseline, as :mod:`hambench.analysis.comparisons` judges them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hambench.analysis import comparisons
from hambench.records import Comparison, Estimate

if TYPE_CHECKING:
    from hambench.reports.view import View


def compare_with_baseline(view: View) -> dict[tuple[str, str, str], Comparison]:
    """Comparisons by (cell label, group, metric); empty without a baseline."""
    return {
        (cell.label, comparison.group, comparison.metric): comparison
        for cell in view.cells
        if (base := view.baseline_of(cell)) is not None and base is not cell
        for comparison in comparisons.compare_cells(view.run, cell.label, base.label, groups=view.groups)
    }


def effect_of(comparison: Comparison | None) -> Estimate | None:
    """The effect as it is shown: without an interval where both gave the same tokens and nothing is uncertain."""
    if comparison is None or comparison.effect is None:
        return None
    effect = comparison.effect
    if comparison.metric != "accuracy":
        return effect
    if comparison.verdict == "equivalent" and effect.value == 0:
        return Estimate(value=effect.value, n=effect.n)
    if effect.low is None or effect.high is None:
        return effect
    # of a few samples an interval may reach past what a difference of points can be
    return Estimate(value=effect.value, low=max(-100.0, effect.low), high=min(100.0, effect.high), n=effect.n)


def around(value: float, comparison: Comparison) -> Estimate:
    """A cell's own value with the interval of its paired comparison, on the value's scale.

    What two settings share (hard questions, slow prompts) is in neither's way here, so these bars answer "does it
    differ from the baseline?", which the interval of a value on its own does not.
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
