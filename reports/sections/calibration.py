"""Is the stop head right? P(continue) against how often the token it let through was what the control would say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from hambench.analysis.intervals import Z95, ratio_of_sums, wilson
from hambench.records import SampleRecord
from hambench.reports.draw.canvas import MUTED, Canvas, titles
from hambench.reports.values import Column, Figure, Table, number_cell
from hambench.reports.view import View

EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
FEWEST = 20
"""Tokens a bin needs to be drawn."""


class Judged(NamedTuple):
    """A token that a stop head let through."""

    p: float
    """P(continue) given before it."""
    right: bool
    """Whether it is the control's."""
    sample_id: str


def calibration_figure(view: View) -> tuple[Figure | None, str]:
    """The figure, or the reason why there is none."""
    heads = [cell for cell in view.cells if _has_head(view.records[cell.label]) and not cell.control]
    if not heads:
        return None, "Stop-head calibration: no cell of this run has a stop head."
    control = next((cell for cell in view.cells if cell.control), None)
    if control is None:
        return None, (
            "Stop-head calibration needs the one-token control (HAMburger at a confidence above 1), whose tokens "
            "say what would have come."
        )
    truth = {
        (r.sample_id, r.repeat): r.trace.token_ids for r in view.records[control.label] if r.trace is not None
    }
    judged = [token for cell in heads for token in _judged(view.records[cell.label], truth)]
    bins = [
        (low, high, [token for token in judged if low <= token.p < high or token.p == high == 1.0])
        for low, high in pairwise(EDGES)
    ]
    drawn = [(low, high, found) for low, high, found in bins if len(found) >= FEWEST]
    if not drawn:
        return None, (
            f"Stop-head calibration: fewer than {FEWEST} smashed tokens come before the first difference from the "
            "one-token control, too few to draw."
        )
    style = heads[0].style
    name = f"{view.prefix}stop-calibration"
    canvas = Canvas(name, width=5.6, height=4.0, margins=(0.55, 0.3, 0.55, 0.4))
    ax = canvas.axes[0]
    ax.set_xlim(0.3, 1.02)
    ax.set_ylim(0, 1.05)
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    points = []
    for low, high, found in drawn:
        mean = sum(token.p for token in found) / len(found)
        rate = sum(token.right for token in found) / len(found)
        ends = wilson(rate, effective_number(found))
        points.append((low, high, mean, rate, *ends, len(found)))
        ax.plot([mean, mean], [*ends], color=style.colour, alpha=0.5, linewidth=1)
        (mark,) = ax.plot(
            [mean], [rate], marker=style.marker, markersize=6, color=style.colour, linestyle="none"
        )
        canvas.tag(
            mark,
            tip=f"P(continue) {low:g} to {high:g}: {rate:.0%} [{ends[0]:.0%}, {ends[1]:.0%}] of {len(found)} tokens as "
            "the control's",
            point=f"{low:g}",
            x=repr(mean),
            y=repr(rate),
        )
    titles(ax, x="P(continue) that the stop head gave", y="share of tokens equal to the one-token control's")
    shown = [token for _, _, found in drawn for token in found]
    overall = sum(token.right for token in shown) / len(shown)
    low, high = wilson(overall, effective_number(shown))
    return Figure(
        name=name,
        title="Calibration of the stop head",
        finding=f"{overall:.0%} [{low:.0%}, {high:.0%}] of {len(shown)} smashed tokens are what the one-token control "
        "says at that place.",
        canvas=canvas,
        notes=(
            "All settings pooled. Only tokens up to the first difference count, for after it the two answer different "
            "texts. On the dotted line the head's probability is the share it gets right. Bars are 95 % intervals with "
            f"samples, not tokens, as what varies; bins of fewer than {FEWEST} tokens are left out.",
        ),
        table=Table(
            name=name,
            caption="Bins as drawn.",
            columns=(
                Column("from"),
                Column("to"),
                Column("mean P"),
                Column("equal"),
                Column("low", "95 %"),
                Column("high", "95 %"),
                Column("tokens"),
            ),
            rows=tuple(
                (*(number_cell(value) for value in numbers), number_cell(n, str(n))) for *numbers, n in points
            ),
        ),
    ), ""


def effective_number(tokens: Sequence[Judged]) -> int:
    """How many independent tokens would tell as much: tokens of one sample, and of several settings, go together.

    From how the rate varies between samples; no fewer than the samples, no more than the tokens. Where all tokens are
    right, or all wrong, it is the number of samples.
    """
    right: dict[str, int] = {}
    told: dict[str, int] = {}
    for token in tokens:
        right[token.sample_id] = right.get(token.sample_id, 0) + token.right
        told[token.sample_id] = told.get(token.sample_id, 0) + 1
    rate = ratio_of_sums([*right.values()], [*told.values()])
    spread = 0.0 if rate.high is None else (rate.high - rate.value) / Z95
    if spread <= 0:
        return len(told)
    return min(max(len(told), round(rate.value * (1 - rate.value) / spread**2)), len(tokens))


def _judged(
    records: Iterable[SampleRecord], truth: dict[tuple[str, int], tuple[int, ...]]
) -> Iterable[Judged]:
    """Each token that a head let through, up to the first that is not the control's."""
    for record in records:
        expected = truth.get((record.sample_id, record.repeat))
        if expected is None or record.trace is None:
            continue
        position = 0
        for step in record.trace.steps:
            for index, token in enumerate(step.tokens):
                if position >= len(expected):
                    break
                right = token == expected[position]
                if index > 0 and index - 1 < len(step.continue_probs):
                    yield Judged(step.continue_probs[index - 1], right, record.sample_id)
                if not right:
                    position = len(expected)
                    break
                position += 1
            if position >= len(expected):
                break


def _has_head(records: Iterable[SampleRecord]) -> bool:
    return any(
        step.continue_probs for record in records if record.trace is not None for step in record.trace.steps
    )
