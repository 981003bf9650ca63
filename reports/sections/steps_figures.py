"""Acceptance and macro-steps: tokens per step, their place in the answer, and their worth in time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from matplotlib.axes import Axes

from hambench.analysis.statistics.intervals import ratio_of_sums
from hambench.groups import ALL
from hambench.records import Estimate, GenerationTrace
from hambench.reports.draw.canvas import INK, LINE, MUTED, PAGE, Canvas, padded, titles
from hambench.reports.draw.labels import Label, place_labels
from hambench.reports.number_text import clip, significant
from hambench.reports.sections.steps.calibration import calibration_figure
from hambench.reports.sections.steps.drafts import drafts_figure
from hambench.reports.values import Column, Figure, Section, Table, number_cell, text_cell
from hambench.reports.view import CellView, View

MOST_SHOWN = 5
"""Largest step size with its own bar; larger sizes share one."""
POSITION_BIN = 8
"""Answer tokens per bin of the position plot."""

FEWEST_STEPS = 20
"""Fewest steps in a bin that is drawn."""


def steps_section(view: View) -> Section:
    """Shows step sizes as a histogram and by position, their worth in time, and the stop head's calibration."""
    candidates = (
        histogram_figure(view),
        position_figure(view),
        worth_figure(view),
        drafts_figure(view),
    )
    figures = [figure for figure in candidates if figure is not None]
    missing = []
    if not figures:
        missing.append("No cell has decode steps, so there is nothing to count.")
    calibration, reason = calibration_figure(view)
    if calibration is not None:
        figures.append(calibration)
    else:
        missing.append(reason)
    return Section(
        name="steps",
        title="Tokens per step",
        lead="A step is one indivisible advance: one token for vanilla, the accepted tokens plus a bonus token for "
        "speculation, one macro-step for HAMburger. The first step of each answer (the prefill) is left out.",
        figures=tuple(figures),
        missing=tuple(missing),
    )


def histogram_figure(view: View) -> Figure | None:
    """Draws the share of steps that yield 1, 2, 3, … tokens, one row per cell."""
    rows = [(cell, view.measured(cell).tokens_per_step_histogram) for cell in view.cells]
    rows = [(cell, counts) for cell, counts in rows if counts]
    if not rows:
        return None
    name = f"{view.prefix}step-sizes"
    left = min(3.2, 0.35 + 0.074 * max(len(cell.label) for cell, _ in rows))
    canvas = Canvas(name, width=left + 6.2, height=0.9 + 0.34 * len(rows), margins=(left, 1.1, 0.4, 0.4))
    ax = canvas.axes[0]
    ax.set_xlim(0, 100)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_yticks(range(len(rows)), [clip(cell.label, 42) for cell, _ in rows], fontsize=8.5, color=INK)
    ax.set_xticks([])
    ax.set_title(
        f"share of steps by tokens yielded, 1 (pale) to {MOST_SHOWN} or more (dark); mean at the right",
        loc="left",
        fontsize=8,
        color=MUTED,
        pad=6,
    )
    for row, (cell, counts) in enumerate(rows):
        total = sum(counts.values())
        start = 0.0
        for size in range(1, MOST_SHOWN + 1):
            number = sum(n for s, n in counts.items() if s == size or (size == MOST_SHOWN and s > size))
            if not number:
                continue
            share = 100 * number / total
            label = f"{size}{'+' if size == MOST_SHOWN else ''}"
            (bar,) = ax.barh(
                row,
                share,
                left=start,
                height=0.66,
                color=cell.style.colour,
                alpha=0.16 + 0.19 * (size - 1),
                edgecolor=PAGE,
                linewidth=1.2,
            )
            canvas.tag(
                bar, tip=f"{cell.label}: {number} of {total} steps yield {label} tokens ({share:.0f} %)"
            )
            if share >= 5:
                # no text colour is readable on a dark bar in both light and dark mode, so put the text
                # next to the number it names, on the palest part of the row
                dark = size >= 4
                ax.text(
                    start + share / 2,
                    row,
                    label,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=PAGE if dark else INK,
                    fontweight="bold",
                )
            start += share
        mean = sum(s * n for s, n in counts.items()) / total
        ax.text(
            101.5, row, f"{mean:.2f} per step", va="center", ha="left", fontsize=8, color=INK, clip_on=False
        )
    best, counts = max(rows, key=lambda item: _mean(item[1]))
    return Figure(
        name=name,
        title="How many tokens a step yields",
        finding=f"{best.label} yields the most: {_mean(counts):.2f} tokens per step on average.",
        canvas=canvas,
        table=_histogram_table(rows, name),
    )


def position_figure(view: View) -> Figure | None:
    """Draws the mean step size against the position in the answer."""
    lines = []
    for cell in view.cells:
        binned = _by_position(view.traces(cell))
        if len(binned) > 1 and cell is not view.baseline and not cell.control:
            lines.append((cell, binned))
    if not lines:
        return None
    name = f"{view.prefix}step-position"
    canvas = Canvas(name, width=6.9, height=3.5, margins=(0.5, 1.4, 0.55, 0.35))
    ax = canvas.axes[0]
    ax.set_xlim(0, max(x for _, binned in lines for x, _, _ in binned) * 1.02)
    ax.set_ylim(*padded([1.0, *(mean.value for _, binned in lines for _, mean, _ in binned)], floor=0))
    ends = []
    for cell, binned in lines:
        xs, ys = [x for x, _, _ in binned], [mean.value for _, mean, _ in binned]
        (line,) = ax.plot(
            xs,
            ys,
            color=cell.style.colour,
            linestyle=cell.style.linestyle,
            marker=cell.style.marker,
            markersize=3,
            alpha=cell.strength,
        )
        canvas.tag(line, tip=cell.label, series=cell.series)
        ends.append((ys[-1], xs[-1], cell))
    end_labels(canvas, ax, ends)
    titles(ax, x="tokens of the answer so far", y="mean tokens per step")
    cell, binned = max(lines, key=lambda item: item[1][0][1].value)
    return Figure(
        name=name,
        title="Step size by position in the answer",
        finding=f"{cell.label} begins with {_with_ends(binned[0][1])} tokens per step and ends with "
        f"{_with_ends(binned[-1][1])}.",
        canvas=canvas,
        table=_position_table(lines, name),
        series=tuple(dict.fromkeys((cell.series, cell.method) for cell, _ in lines)),
        notes=(
            f"Bins of {POSITION_BIN} tokens with at least {FEWEST_STEPS} steps. Short answers end early, so the right "
            "of a line is about long answers alone. 95 % intervals (over answers, not steps) are in the table.",
        ),
    )


def worth_figure(view: View) -> Figure | None:
    """Draws tokens per target forward against the resulting speed-up."""
    points = []
    for cell in view.cells:
        m, ratio = view.measured(cell).tokens_per_target_forward, view.compared(cell, "tps")
        if m is not None and ratio is not None and ratio.effect is not None:
            points.append((cell, m, ratio.effect))
    if not points:
        return None
    name = f"{view.prefix}step-worth"
    canvas = Canvas(name, width=6.6, height=4.2, margins=(0.55, 0.3, 0.55, 0.4))
    ax = canvas.axes[0]
    ax.set_xlim(*padded([1.0, *(m for _, m, _ in points)], share=0.12, floor=0))
    ax.set_ylim(*padded([1.0, *(e.value for _, _, e in points)], share=0.14, floor=0))
    top = max(ax.get_xlim()[1], ax.get_ylim()[1])
    ax.plot([0, top], [0, top], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    ax.axhline(1, color=LINE, linewidth=1)
    for cell, m, effect in points:
        if effect.low is not None and effect.high is not None:
            (bar,) = ax.plot(
                [m, m], [effect.low, effect.high], color=cell.style.colour, alpha=0.5, linewidth=1
            )
            canvas.tag(bar, series=cell.series)
        (mark,) = ax.plot(
            [m],
            [effect.value],
            marker=cell.style.marker,
            markersize=7,
            color=cell.style.colour,
            linestyle="none",
        )
        canvas.tag(
            mark,
            tip=f"{cell.label}: {m:.2f} tokens per forward, {effect.value:.2f}× the speed",
            series=cell.series,
            point=cell.label,
            x=repr(m),
            y=repr(effect.value),
        )
    limit = min(ax.get_xlim()[1], ax.get_ylim()[1])
    labels = [
        Label(m, e.value, cell.short or cell.method, cell.series, cell.style.colour) for cell, m, e in points
    ]
    line = ax.annotate(
        "if a step cost no more",
        (limit * 0.93, limit * 0.93),
        xytext=(-8, 0),
        textcoords="offset points",
        fontsize=7.5,
        color=MUTED,
        ha="right",
        va="center",
    )
    place_labels(canvas, ax, labels, obstacles=[canvas.text_box(line)])
    titles(ax, x="tokens per target forward (m)", y="decode speed, × baseline")
    wasted = max(points, key=lambda item: item[1] / max(item[2].value, 1e-9))
    return Figure(
        name=name,
        title="What the tokens per step were worth",
        finding=f"{wasted[0].label} loses most on the way: {significant(wasted[1])} tokens per target forward became "
        f"{significant(wasted[2].value)}× the speed.",
        canvas=canvas,
        series=tuple(dict.fromkeys((cell.series, cell.method) for cell, _, _ in points)),
        notes=(
            "On the dotted line a step costs what a vanilla step costs. The distance below it is the price of "
            "drafting, verifying more rows, micro-steps and launching.",
        ),
        table=Table(
            name=name,
            caption="Points as drawn.",
            columns=(Column("Cell", numeric=False), Column("m"), Column("speed ×"), Column("speed × / m")),
            rows=tuple(
                (
                    text_cell(c.label),
                    number_cell(m),
                    number_cell(e.value),
                    number_cell(e.value / m if m else None),
                )
                for c, m, e in points
            ),
        ),
    )


def end_labels(canvas: Canvas, ax: Axes, ends: Sequence[tuple[float, float, CellView]]) -> None:
    """Writes names at the right of the frame, in the order of the lines' ends, pushed apart to avoid overlap."""
    low, high = ax.get_ylim()
    step = 0.155 * (high - low) / max(0.1, ax.get_position().height * canvas.height)
    placed: list[float] = []
    for y, _, cell in sorted(ends, key=lambda end: end[0]):
        at = max(y, placed[-1] + step) if placed else y
        placed.append(at)
        text = ax.annotate(
            clip(cell.short or cell.method, 22),
            (1, at),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            fontsize=7.5,
            color=cell.style.colour,
            va="center",
            annotation_clip=False,
        )
        canvas.tag(text, series=cell.series)


def _by_position(traces: Sequence[GenerationTrace]) -> list[tuple[float, Estimate, int]]:
    """Returns (middle of the bin, mean step size, number of steps) for each bin with enough steps."""
    # per bin and answer: tokens, steps
    sums: dict[int, dict[int, tuple[int, int]]] = defaultdict(dict)
    for answer, trace in enumerate(traces):
        position = len(trace.steps[0].tokens) if trace.steps else 0
        for step in trace.steps[1:]:
            mine = sums[position // POSITION_BIN]
            tokens, steps = mine.get(answer, (0, 0))
            mine[answer] = (tokens + len(step.tokens), steps + 1)
            position += len(step.tokens)
    binned = []
    for bin_, answers in sorted(sums.items()):
        yielded = [tokens for tokens, _ in answers.values()]
        steps_per_answer = [steps for _, steps in answers.values()]
        if sum(steps_per_answer) >= FEWEST_STEPS:
            binned.append(
                ((bin_ + 0.5) * POSITION_BIN, ratio_of_sums(yielded, steps_per_answer), sum(steps_per_answer))
            )
    return binned


def _position_table(lines: Sequence[tuple[CellView, list[tuple[float, Estimate, int]]]], name: str) -> Table:
    return Table(
        name=name,
        caption="Mean tokens per step by position in the answer.",
        columns=(
            Column("Cell", numeric=False),
            Column("Position", "tokens, middle"),
            Column("Tokens per step"),
            Column("low", "95 %"),
            Column("high", "95 %"),
            Column("Steps"),
            Column("Answers"),
        ),
        rows=tuple(
            (
                text_cell(cell.label),
                number_cell(x, f"{x:g}"),
                number_cell(mean.value),
                number_cell(mean.low),
                number_cell(mean.high),
                number_cell(steps, str(steps)),
                number_cell(mean.n, str(mean.n)),
            )
            for cell, binned in lines
            for x, mean, steps in binned
        ),
    )


def _with_ends(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _histogram_table(rows: Sequence[tuple[CellView, dict[int, int]]], name: str) -> Table:
    sizes = sorted({size for _, counts in rows for size in counts})
    return Table(
        name=name,
        caption=f"Number of decode steps by tokens yielded, group {ALL}.",
        columns=(
            Column("Cell", numeric=False),
            *(Column(str(size), "tokens") for size in sizes),
            Column("mean"),
        ),
        rows=tuple(
            (
                text_cell(cell.label),
                *(number_cell(counts.get(size, 0), str(counts.get(size, 0))) for size in sizes),
                number_cell(_mean(counts)),
            )
            for cell, counts in rows
        ),
    )


def _mean(counts: dict[int, int]) -> float:
    return sum(size * number for size, number in counts.items()) / sum(counts.values())
