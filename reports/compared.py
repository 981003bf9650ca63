"""Compares every cell with the baseline through :mod:`hambench.analysis.comparisons`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hambench.analysis import comparisons
from hambench.records import Comparison, Estimate, Verdict
from hambench.reports.number_text import signed

if TYPE_CHECKING:
    from hambench.reports.view import View


FIDELITY_WORDS: dict[Verdict, str] = {
    "better": "closer to the target's own choices",
    "worse": "further from the target's own choices",
    "equivalent": "the target's own choices held",
    "inconclusive": "fidelity inconclusive",
    "not comparable": "fidelity not comparable",
}


def compare_with_baseline(view: View) -> dict[tuple[str, str, str], Comparison]:
    """Returns comparisons by (cell label, group, metric); empty without a baseline."""
    if view.baseline is None:
        return {}
    return {
        (row.candidate, row.group, row.metric): row
        for row in comparisons.compare_run(view.run, groups=view.groups)
    }


def effect_of(comparison: Comparison | None) -> Estimate | None:
    """Returns the effect to show; ``None`` without one."""
    return None if comparison is None else comparison.effect


def around(value: float, comparison: Comparison) -> Estimate:
    """Returns a cell's own value with the interval of its paired comparison, on the value's scale.

    Difficulty that two settings share (hard questions, slow prompts) cancels. So these bars answer "does it differ from
    the baseline?", which a value's own interval does not.
    """
    effect = effect_of(comparison)
    if effect is None or effect.low is None or effect.high is None:
        return Estimate(value=value, n=effect.n if effect else 0)
    if comparison.metric == "regret":
        shift = value - effect.value
        return Estimate(
            value=value, low=max(0.0, effect.low + shift), high=max(0.0, effect.high + shift), n=effect.n
        )
    if comparison.metric == "accuracy":
        low, high = value + effect.low - effect.value, value + effect.high - effect.value
        return Estimate(value=value, low=max(0.0, low), high=min(100.0, high), n=effect.n)
    if effect.value <= 0:
        return Estimate(value=value)
    scale = value / effect.value
    return Estimate(value=value, low=scale * effect.low, high=scale * effect.high, n=effect.n)


def fidelity_words(comparison: Comparison | None) -> list[str]:
    """Returns words that compare a setting's regret, for a sentence; empty if no answer was judged."""
    if comparison is None or comparison.effect is None:
        return []
    return [f"{FIDELITY_WORDS[comparison.verdict]} ({signed(comparison.effect.value, 3)} nats per token)"]
