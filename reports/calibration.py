"""Is the stop head right? P(continue) against how often the token it let through was what the control would say."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from hambench.records import SampleRecord
from hambench.reports.plate import MUTED, Plate, titles
from hambench.reports.values import Column, Figure, Table, number_cell
from hambench.reports.view import View

EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
FEWEST = 20
"""Tokens a bin needs to be drawn."""


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
    judged = [pair for cell in heads for pair in _judged(view.records[cell.label], truth)]
    bins = [
        (low, high, [(p, right) for p, right in judged if low <= p < high or (high == 1.0 and p == 1.0)])
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
    plate = Plate(name, width=5.6, height=4.0, margins=(0.55, 0.3, 0.55, 0.4))
    ax = plate.axes[0]
    ax.set_xlim(0.3, 1.02)
    ax.set_ylim(0, 1.05)
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    points = []
    for low, high, found in drawn:
        mean = sum(p for p, _ in found) / len(found)
        rate = sum(right for _, right in found) / len(found)
        half = 1.96 * (max(rate * (1 - rate), 0.25 / len(found)) / len(found)) ** 0.5
        points.append((low, high, mean, rate, len(found)))
        ax.plot(
            [mean, mean],
            [max(0, rate - half), min(1, rate + half)],
            color=style.colour,
            alpha=0.5,
            linewidth=1,
        )
        (mark,) = ax.plot(
            [mean], [rate], marker=style.marker, markersize=6, color=style.colour, linestyle="none"
        )
        plate.tag(
            mark,
            tip=f"P(continue) {low:g} to {high:g}: {rate:.0%} of {len(found)} tokens as the control's",
            point=f"{low:g}",
            x=repr(mean),
            y=repr(rate),
        )
    titles(ax, x="P(continue) that the stop head gave", y="share of tokens equal to the one-token control's")
    total = sum(point[4] for point in points)
    overall = sum(rate * n for _, _, _, rate, n in points) / total
    return Figure(
        name=name,
        title="Calibration of the stop head",
        finding=f"{overall:.0%} of {total} smashed tokens are what the one-token control says at that place.",
        plate=plate,
        notes=(
            "All settings pooled. Only tokens up to the first difference count, for after it the two answer different "
            "texts. On the dotted line the head's probability is the share it gets right.",
        ),
        table=Table(
            name=name,
            caption="Bins as drawn.",
            columns=(Column("from"), Column("to"), Column("mean P"), Column("equal"), Column("tokens")),
            rows=tuple(tuple(number_cell(value) for value in point) for point in points),
        ),
    ), ""


def _judged(
    records: Iterable[SampleRecord], truth: dict[tuple[str, int], tuple[int, ...]]
) -> Iterable[tuple[float, bool]]:
    """(P(continue) given before a token, whether it is the control's) for each token a head let through."""
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
                    yield step.continue_probs[index - 1], right
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
