"""Every setting against the baseline: speed, accuracy and KV memory with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from hambench.groups import ALL
from hambench.records import Comparison, Verdict
from hambench.reports.compared import effect_of
from hambench.reports.draw.canvas import BAND, INK, LINE, MUTED, PAGE, Canvas, padded
from hambench.reports.number_text import clip, listing
from hambench.reports.page.standing import accuracy_standing, is_faster
from hambench.reports.page.verdict_words import KV_METRIC, SYMBOLS
from hambench.reports.sections.pareto_figure import PAPER_MARGIN
from hambench.reports.values import Column, Figure, Table, number_cell, text_cell
from hambench.reports.view import CellView, View

PANELS = (
    ("tps", "speed, × baseline  (more is better →)"),
    ("accuracy", "accuracy, Δ points  (more is better →)"),
    (KV_METRIC, "KV per position, × baseline  (← less is better)"),
)


def overview_figure(view: View) -> Figure | None:
    """Draws one row per setting, one panel per question; ``None`` without a baseline or anything to compare."""
    cells = [cell for cell in view.cells if cell is not view.baseline]
    if view.baseline is None or not any(
        view.compared(cell, metric) for cell in cells for metric, _ in PANELS
    ):
        return None
    height = 0.75 + 0.27 * len(cells) + 0.25
    longest = max(len(cell.label) for cell in cells)
    left = min(3.4, 0.35 + 0.074 * longest)
    name = f"{view.prefix}overview"
    canvas = Canvas(
        name,
        width=left + 8.0,
        height=height,
        columns=len(PANELS),
        margins=(left, 0.25, 0.5, 0.35),
        wspace=0.12,
    )
    for ax, (metric, title) in zip(canvas.axes, PANELS, strict=True):
        _panel(canvas, ax, view, cells, metric)
        ax.set_title(title, loc="left", fontsize=8, color=MUTED, pad=6)
    first = canvas.axes[0]
    first.set_yticks(range(len(cells)), [clip(cell.label, 44) for cell in cells], fontsize=8.5, color=INK)
    faster = [cell for cell in cells if is_faster(view, cell)]
    held = [cell.label for cell in faster if accuracy_standing(view, cell) == "held"]
    by_design = [cell.label for cell in faster if accuracy_standing(view, cell) == "by design"]
    departed = [cell.label for cell in faster if accuracy_standing(view, cell) == "left"]
    # under several conditions each setting has a baseline of its own
    name_of_base = "its baseline" if view.several_baselines else view.baseline.label
    number = f"{len(faster)} of {len(cells)} settings" if faster else f"None of {len(cells)} settings"
    finding = f"{number} {'is' if len(faster) < 2 else 'are'} shown to be faster than "
    finding += "their baselines" if view.several_baselines and len(faster) > 1 else name_of_base
    if held or not by_design:
        nobody = "none of them" if len(faster) > 1 else "not"
        finding += f"; {_names(held) or nobody} with accuracy shown to hold" if faster else ""
    if by_design:
        finding += f"; {_names(by_design)} {'is' if len(by_design) == 1 else 'are'} lossless by design"
    if departed:
        finding += f"; {_names(departed)} {'was' if len(departed) == 1 else 'were'} shown to leave the target"
    return Figure(
        name=name,
        title=f"Every setting against {name_of_base}",
        finding=f"{finding}.",
        canvas=canvas,
        table=_table(view, cells, name),
        notes=(
            "Bars are 95 % intervals of paired comparisons over all samples, cut where they leave a panel. Filled "
            "marks are verdicts, rings are undecided. "
            f"Band: accuracy within {PAPER_MARGIN} points. KV memory is what is held after each decode step, summed "
            "over steps, per position of prompt and answer so far; a peak during a step does not count in it.",
        ),
    )


def _names(labels: Sequence[str]) -> str:
    return listing(labels[:4]) + (f" (and {len(labels) - 4} more)" if len(labels) > 4 else "")


def _panel(canvas: Canvas, ax: Axes, view: View, cells: Sequence[CellView], metric: str) -> None:
    neutral = 0.0 if metric == "accuracy" else 1.0
    # differences too small to matter must not fill the panel
    values = [-2.0, 2.0] if metric == "accuracy" else [0.95, 1.05]
    effects = [e for cell in cells if (e := effect_of(view.compared(cell, metric))) is not None]
    values += [e.value for e in effects]
    # cut an interval that dwarfs the values at the frame; the table has its ends
    span = max(values) - min(values)
    ends = [end for e in effects for end in (e.low, e.high) if end is not None]
    values += [min(max(end, min(values) - 2 * span), max(values) + 2 * span) for end in ends]
    ax.set_xlim(*padded(values, share=0.07, floor=None if metric == "accuracy" else 0.0))
    ax.set_ylim(len(cells) - 0.5, -0.5)
    ax.set_yticks(range(len(cells)), [""] * len(cells))
    ax.grid(False, axis="y")
    if metric == "accuracy":
        ax.axvspan(-PAPER_MARGIN, PAPER_MARGIN, color=BAND, linewidth=0, zorder=0)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:+g}".replace("-", "−") if v else "0"))
    ax.axvline(neutral, color=LINE, linewidth=1.2, zorder=1)
    for row, cell in enumerate(cells):
        comparison = view.compared(cell, metric)
        if comparison is not None and comparison.effect is not None:
            _row(canvas, ax, row, cell, comparison)
        else:
            ax.text(neutral, row, " –", color=MUTED, va="center", fontsize=8)


def _row(canvas: Canvas, ax: Axes, row: int, cell: CellView, comparison: Comparison) -> None:
    effect = effect_of(comparison)
    assert effect is not None
    colour = cell.style.colour
    if effect.low is not None and effect.high is not None:
        (bar,) = ax.plot(
            [effect.low, effect.high],
            [row, row],
            color=colour,
            linewidth=2,
            alpha=0.55,
            solid_capstyle="butt",
        )
        canvas.tag(bar, series=cell.series)
    decided = _is_decided(comparison.verdict)
    (mark,) = ax.plot(
        [effect.value],
        [row],
        marker=cell.style.marker,
        markersize=6.5,
        markerfacecolor=colour if decided else PAGE,
        markeredgecolor=colour,
        markeredgewidth=1.3,
        linestyle="none",
        zorder=3,
    )
    interval = "" if effect.low is None or effect.high is None else f" [{effect.low:.3g}, {effect.high:.3g}]"
    canvas.tag(
        mark,
        tip=f"{cell.label}: {effect.value:.3g}{interval} {SYMBOLS[comparison.verdict]} {comparison.verdict}",
        series=cell.series,
        point=cell.label,
        x=repr(effect.value),
        y=repr(float(row)),
    )


def _table(view: View, cells: Sequence[CellView], name: str) -> Table:
    rows = []
    for cell in cells:
        row = [text_cell(cell.label)]
        for metric, _ in PANELS:
            comparison = view.compared(cell, metric)
            effect = effect_of(comparison)
            row += [
                number_cell(effect.value if effect else None, metric=f"{metric}_effect"),
                number_cell(effect.low if effect else None),
                number_cell(effect.high if effect else None),
                text_cell(f"{SYMBOLS[comparison.verdict]} {comparison.verdict}" if comparison else "–"),
                number_cell(_p_value(comparison)),
            ]
        rows.append(tuple(row))
    columns = [Column("Cell", numeric=False)]
    for title in ("speed ×", "accuracy Δ", "KV ×"):
        columns += [
            Column(title),
            Column("low", "95 %"),
            Column("high", "95 %"),
            Column("verdict", numeric=False),
            Column("p", "corrected for settings"),
        ]
    return Table(
        name=name,
        caption=f"Paired comparisons over all samples (group {ALL}).",
        columns=tuple(columns),
        rows=tuple(rows),
    )


def _is_decided(verdict: Verdict) -> bool:
    match verdict:
        case "better" | "worse" | "equivalent":
            return True
        case "inconclusive" | "not comparable":
            return False
        case _:
            assert_never(verdict)


def _p_value(comparison: Comparison | None) -> float | None:
    """Returns the p-value behind the verdict: the corrected one, if there is one."""
    if comparison is None:
        return None
    return comparison.p_value if comparison.adjusted_p_value is None else comparison.adjusted_p_value
