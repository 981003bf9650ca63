"""Latency as distributions: wait for the first token, wait for each burst, and time per token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from hambench.analysis import metrics
from hambench.analysis.cautions.shared_prompts import timed_prefills
from hambench.records import GenerationTrace
from hambench.reports.draw.canvas import MUTED, Canvas, titles
from hambench.reports.number_text import clip, seconds_text
from hambench.reports.values import Column, Figure, Section, Table, number_cell, text_cell
from hambench.reports.view import CellView, View

MOST_POINTS = 120
"""Most points per curve; a million steps look the same."""

Values = Callable[[CellView], list[float]]


def latency_section(view: View) -> Section:
    """Shows ECDFs of the three waits, with the size of the bursts that end them."""
    caution = timed_prefills(view.measured(cell) for cell in view.cells)
    figures = [
        figure
        for figure in (
            ecdf_figure(
                view,
                "ttft",
                "Wait for the first token",
                "seconds from the request to its first tokens (log)",
                lambda cell: _ttfts(view, cell),
                "an answer's first token",
                notes=(caution,) if caution else (),
            ),
            ecdf_figure(
                view,
                "burst",
                "Wait between bursts",
                "seconds of one step (log)",
                lambda cell: _bursts(view.traces(cell)),
                "the next burst of tokens",
            ),
            ecdf_figure(
                view,
                "tpot",
                "Time per token",
                "decode seconds per token of an answer (log)",
                lambda cell: metrics.tpots(view.traces(cell)),
                "a token on average",
            ),
        )
        if figure is not None
    ]
    return Section(
        name="latency",
        title="Latency",
        lead="Every answer or step, not means: read across at 50 % for the median; a line ends at the longest. A "
        "method that yields several tokens per step makes fewer and longer waits, so the time per token and the wait "
        "between bursts are two figures. Warm-ups are left out.",
        figures=tuple(figures),
        missing=_missing(figures, caution),
    )


def _missing(figures: Sequence[Figure], caution: str) -> tuple[str, ...]:
    if not figures:
        return ("No answer was timed.",)
    return (caution,) if caution and not any("ttft" in figure.name for figure in figures) else ()


def ecdf_figure(
    view: View, kind: str, title: str, x_title: str, values: Values, what: str, notes: tuple[str, ...] = ()
) -> Figure | None:
    """Draws one ECDF per cell; returns ``None`` if there is nothing to draw."""
    curves = [(cell, np.sort(values(cell))) for cell in view.cells]
    curves = [(cell, waits[waits > 0]) for cell, waits in curves]
    curves = [(cell, waits) for cell, waits in curves if len(waits)]
    if not curves:
        return None
    name = f"{view.prefix}latency-{kind}"
    canvas = Canvas(name, width=6.9, height=3.4, margins=(0.55, 1.6, 0.55, 0.35))
    ax = canvas.axes[0]
    ax.set_xscale("log")
    low, high = min(waits[0] for _, waits in curves), max(waits[-1] for _, waits in curves)
    ax.set_xlim(low * 0.9, high * 1.12 if high > low else high * 2)
    ax.set_ylim(0, 100)
    log_ticks(ax)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g} %"))
    for cell, waits in curves:
        xs, ys = _ecdf(waits)
        (line,) = ax.plot(
            xs,
            ys,
            color=cell.style.colour,
            linestyle=cell.style.linestyle,
            linewidth=1.5,
            alpha=cell.strength,
            drawstyle="steps-post",
        )
        canvas.tag(
            line, tip=f"{cell.label}: median {seconds_text(float(np.median(waits)))}", series=cell.series
        )
    _names(canvas, ax, curves)
    titles(ax, x=x_title, y=f"share that waits no longer for {what}")
    ranked = sorted(curves, key=lambda item: float(np.median(item[1])))
    (best, fast), (worst, slow) = ranked[0], ranked[-1]
    finding = f"Median {seconds_text(float(np.median(fast)))} with {best.label}"
    if best is not worst:
        finding += f", {seconds_text(float(np.median(slow)))} with {worst.label}"
    return Figure(
        name=name,
        title=title,
        finding=f"{finding}.",
        canvas=canvas,
        series=tuple(dict.fromkeys((cell.series, cell.method) for cell, _ in curves)),
        table=_table(name, curves),
        notes=notes,
    )


def log_ticks(ax: Axes) -> None:
    """Sets ticks at 1, 2 and 5 of each decade on the axis, or finer ones if their labels fit."""
    low, high = ax.get_xlim()
    decades = range(int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high))) + 1)
    steps: tuple[float, ...] = (1,)
    for finer in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(1 + 0.1 * i for i in range(90))):
        shown = sum(low <= step * 10.0**decade <= high for decade in decades for step in steps)
        if shown >= 4:
            break
        steps = finer
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    visible = [tick for tick in ticks if low <= tick <= high]
    # a label takes about an eighth of the axis
    apart = (high / low) ** 0.135
    ticks = visible[:1]
    for tick in visible[1:]:
        if tick >= ticks[-1] * apart:
            ticks.append(tick)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def _names(canvas: Canvas, ax: Axes, curves: Sequence[tuple[CellView, np.ndarray]]) -> None:
    """Lists the cells' names at the right, in the order in which the curves cross the middle."""
    ranked = sorted(curves, key=lambda item: float(np.median(item[1])))
    step = min(8.5, 92 / len(ranked))
    for row, (cell, _) in enumerate(ranked[:24]):
        y = 97 - row * step
        (line,) = ax.plot(
            [1.02, 1.075],
            [y, y],
            transform=ax.get_yaxis_transform(),
            color=cell.style.colour,
            linestyle=cell.style.linestyle,
            linewidth=1.6,
            alpha=cell.strength,
            clip_on=False,
        )
        text = ax.text(
            1.09,
            y,
            clip(f"{cell.method} {cell.short}".strip(), 22),
            transform=ax.get_yaxis_transform(),
            fontsize=7,
            va="center",
            color=MUTED,
        )
        for part in (line, text):
            canvas.tag(part, series=cell.series)


def _ecdf(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shares = np.arange(1, len(values) + 1) / len(values) * 100
    if len(values) <= MOST_POINTS:
        return np.concatenate([values[:1], values]), np.concatenate([[0.0], shares])
    drawn_indices = np.unique(np.linspace(0, len(values) - 1, MOST_POINTS).round().astype(int))
    return np.concatenate([values[:1], values[drawn_indices]]), np.concatenate([[0.0], shares[drawn_indices]])


def _table(name: str, curves: Sequence[tuple[CellView, np.ndarray]]) -> Table:
    quantiles = (10, 50, 90, 99)
    return Table(
        name=name,
        caption="Percentiles; a high one only from so many values on that it is not the longest under another name "
        "(29 for the 90th, 299 for the 99th).",
        columns=(
            Column("Cell", numeric=False),
            Column("n"),
            *(Column(f"p{q}") for q in quantiles),
            Column("longest"),
        ),
        rows=tuple(
            (
                text_cell(cell.label),
                number_cell(len(waits), str(len(waits))),
                *(
                    number_cell(value, seconds_text(value))
                    for value in (*(metrics.percentile(waits, q) for q in quantiles), float(waits[-1]))
                ),
            )
            for cell, waits in curves
        ),
    )


def _ttfts(view: View, cell: CellView) -> list[float]:
    """Times to first token over the prompts that all cells timed, or all of the cell's: others don't compare."""
    timed = view.compared_prefills[cell.label]
    return [
        seconds
        for record in view.records[cell.label]
        if record.trace is not None
        and (record.sample_id, record.repeat) in timed
        and (seconds := record.trace.ttft_s) is not None
    ]


def _bursts(traces: Sequence[GenerationTrace]) -> list[float]:
    return [step.timed_s for step in metrics.decode_steps(traces)]


def _tick(value: float) -> str:
    number, _, unit = seconds_text(value).partition(" ")
    return f"{float(number):g} {unit}" if number.replace(".", "").isdecimal() else seconds_text(value)
