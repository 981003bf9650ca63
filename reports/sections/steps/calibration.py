"""Calibration of the stop head: P(continue) against the share of continued tokens that equal the control's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from hambench.analysis.statistics.intervals import clustered_rate
from hambench.records import Estimate, SampleRecord
from hambench.reports.draw.canvas import MUTED, Canvas, titles
from hambench.reports.values import Column, Figure, Table, number_cell
from hambench.reports.view import View

EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
FEWEST = 20
"""Fewest tokens in a bin that is drawn."""


class Judged(NamedTuple):
    """A token that a stop head let through, judged against the control."""

    p: float
    """P(continue) before the token."""
    right: bool
    """True if the token is the control's."""
    sample_id: str


def calibration_figure(view: View) -> tuple[Figure | None, str]:
    """Returns the figure, or the reason why there is none."""
    heads = [cell for cell in view.cells if _has_head(view.records[cell.label]) and not cell.control]
    if not heads:
        return None, "Stop-head calibration: no cell of this run has a stop head."
    control = next((cell for cell in view.cells if cell.control), None)
    if control is None:
        return None, (
            "Stop-head calibration needs the one-token control (HAMburger at a confidence above 1), whose tokens "
            "say what would have come."
        )
    if view.run.header.temperature > 0:
        return None, (
            "Stop-head calibration needs greedy answers: at a temperature the one-token control is another random "
            "draw, not what would have come."
        )
    truth = {
        (r.sample_id, r.repeat): r.trace.token_ids for r in view.records[control.label] if r.trace is not None
    }
    judged = [token for cell in heads for token in _judged(view.records[cell.label], truth)]
    bins = [
        (low, high, [token for token in judged if low <= token.p < high or token.p == high == 1.0])
        for low, high in pairwise(EDGES)
    ]
    drawn = [(low, high, bin_tokens) for low, high, bin_tokens in bins if len(bin_tokens) >= FEWEST]
    if not drawn:
        return None, (
            f"Stop-head calibration: fewer than {FEWEST} merged tokens come before the first difference from the "
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
    for low, high, bin_tokens in drawn:
        mean = sum(token.p for token in bin_tokens) / len(bin_tokens)
        share = share_right(bin_tokens)
        rate = share.value
        points.append((low, high, mean, rate, share.low, share.high, len(bin_tokens)))
        if share.low is not None and share.high is not None:
            ax.plot([mean, mean], [share.low, share.high], color=style.colour, alpha=0.5, linewidth=1)
        (mark,) = ax.plot(
            [mean], [rate], marker=style.marker, markersize=6, color=style.colour, linestyle="none"
        )
        canvas.tag(
            mark,
            tip=f"P(continue) {low:g} to {high:g}: {_percent(share)} of {len(bin_tokens)} tokens as the control's",
            point=f"{low:g}",
            x=repr(mean),
            y=repr(rate),
        )
    titles(ax, x="P(continue) that the stop head gave", y="share of tokens equal to the one-token control's")
    shown = [token for _, _, bin_tokens in drawn for token in bin_tokens]
    return Figure(
        name=name,
        title="Calibration of the stop head",
        finding=f"{_percent(share_right(shown))} of {len(shown)} merged tokens equal the one-token control's "
        "at that place.",
        canvas=canvas,
        notes=(
            "All settings pooled. Only tokens up to the first difference count, because after it the two answer "
            "different texts. On the dotted line the head's probability is the share it gets right. Bars are 95 % "
            f"intervals over samples, not tokens; bins of fewer than {FEWEST} tokens are left out.",
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


def share_right(tokens: Sequence[Judged]) -> Estimate:
    """Returns the share of tokens that are the control's; in its interval samples vary, not tokens.

    One sample says nothing of how samples vary: its share has no interval.
    """
    right: dict[str, int] = {}
    num_by_sample: dict[str, int] = {}
    for token in tokens:
        right[token.sample_id] = right.get(token.sample_id, 0) + token.right
        num_by_sample[token.sample_id] = num_by_sample.get(token.sample_id, 0) + 1
    rate, low, high = (float(part) for part in clustered_rate([*right.values()], [*num_by_sample.values()]))
    if len(num_by_sample) < 2:
        return Estimate(value=rate, n=len(num_by_sample))
    return Estimate(value=rate, low=low, high=high, n=len(num_by_sample))


def _percent(share: Estimate) -> str:
    if share.low is None or share.high is None:
        return f"{share.value:.0%}"
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def _judged(
    records: Iterable[SampleRecord], truth: dict[tuple[str, int], tuple[int, ...]]
) -> Iterable[Judged]:
    """Yields each token that a head let through, up to the first that differs from the control's."""
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
