"""Measured speed against the limit of memory bandwidth, from counted forwards and measured bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hambench.analysis.bandwidth_limit import PLAUSIBLE, Ceiling, Limit, ceiling_of, limits_of, shape_of
from hambench.reports.draw.canvas import INK, LINE, MUTED, PAGE, Canvas, padded, titles
from hambench.reports.draw.labels import Label, beside_row, place_labels
from hambench.reports.number_text import ABSENT, bytes_text, clip, listing, significant
from hambench.reports.values import Column, Figure, Section, Table, number_cell, text_cell
from hambench.reports.view import CellView, View
from hambench.roofline.gpu_specs import bandwidth_text


@dataclass(frozen=True, slots=True)
class Bound:
    """A cell of the page with its limit."""

    cell: CellView
    limit: Limit


def roofline_section(view: View) -> Section:
    """Shows speed under its ceiling per cell, and predicted against measured speed-up, or the reason for neither."""
    ceiling = ceiling_of(view.run, view.cells[0].cell.run if view.cells else "")
    missing = []
    if ceiling is None:
        missing.append(
            "The run holds no reading of this machine's memory bandwidth, and a ceiling from a data sheet would "
            "flatter or blame the wrong machine."
        )
    if shape_of(view.run) is None:
        missing.append(
            "The sizes of this model's layers are not in the run, so its bytes per token are not known."
        )
    figures: list[Figure] = []
    lead = ""
    if ceiling is not None and not missing:
        limits = limits_of(view.run)
        bounds = [Bound(cell, limits[cell.label]) for cell in view.cells if cell.label in limits]
        unknown = [cell.label for cell in view.cells if cell.label not in limits]
        if bounds:
            figures = [ceiling_figure(view, bounds)]
            if (worth := prediction_figure(view, bounds)) is not None:
                figures.append(worth)
            if unknown:
                missing.append(
                    f"No ceiling for {listing(unknown[:4])}: nothing was decoded, or what a forward of it reads is "
                    "not known here."
                )
        else:
            missing.append("No cell has a decode speed to hold against the bandwidth.")
        lead = (
            f"Decoding one sequence reads every weight once per forward, so a step takes at least its bytes over the "
            f"bandwidth. Read bandwidth here: {_bandwidth_text(ceiling)}. Bytes come from counted forwards; "
            "activations, compute and launch gaps are left out: a ceiling, not a forecast."
        )
        missing += _flags(bounds)
    return Section(
        name="roofline", title="Roofline", lead=lead, figures=tuple(figures), missing=tuple(missing)
    )


def _bandwidth_text(ceiling: Ceiling) -> str:
    num, best = len(ceiling.readings), bandwidth_text(ceiling.bandwidth)
    if num == 1:
        return f"{best} (one reading in this run)"
    worst = bandwidth_text(min(ceiling.readings))
    return f"{best} (the best of {num} readings in this run, the worst {worst})"


def _flags(bounds: Sequence[Bound]) -> list[str]:
    """Returns one sentence per likely reason why cells lie outside the plausible range."""
    by_flag: dict[str, list[str]] = {}
    for bound in bounds:
        if bound.limit.flag:
            # a cell's own milliseconds are in its row; this sentence covers all such cells
            by_flag.setdefault(bound.limit.flag.partition(",")[0], []).append(bound.cell.label)
    sentences = []
    for flag, labels in by_flag.items():
        more = f" and {len(labels) - 4} more" if len(labels) > 4 else ""
        sentences.append(f"{listing(labels[:4])}{more}: {flag}.")
    return sentences


def ceiling_figure(view: View, bounds: Sequence[Bound]) -> Figure:
    """Draws a bar per cell, with its ceiling as a mark."""
    name = f"{view.prefix}roofline-ceiling"
    left = min(3.2, 0.35 + 0.074 * max(len(b.cell.label) for b in bounds))
    canvas = Canvas(name, width=left + 6.4, height=0.95 + 0.3 * len(bounds), margins=(left, 1.1, 0.55, 0.3))
    ax = canvas.axes[0]
    ax.set_xlim(0, max(max(b.limit.predicted_tps, b.limit.measured_tps) for b in bounds) * 1.04)
    ax.set_ylim(len(bounds) - 0.5, -0.5)
    ax.grid(False, axis="y")
    ax.set_yticks(range(len(bounds)), [clip(b.cell.label, 42) for b in bounds], fontsize=8.5, color=INK)
    for row, b in enumerate(bounds):
        limit = b.limit
        (bar,) = ax.barh(
            row, limit.measured_tps, height=0.6, color=b.cell.style.colour, alpha=0.75, edgecolor=PAGE
        )
        spent = bytes_text(limit.bytes_per_token)
        canvas.tag(
            bar,
            tip=f"{b.cell.label}: {limit.measured_tps:.1f} tokens/s at {spent} per token, "
            f"{limit.mbu:.0%} of the ceiling",
            series=b.cell.series,
        )
        ax.plot(
            [b.limit.predicted_tps] * 2,
            [row - 0.42, row + 0.42],
            color=INK,
            linewidth=2,
            solid_capstyle="butt",
        )
        beside_row(ax, row, f"{b.limit.mbu:.0%}")
    titles(ax, x="decode tokens/s; upright mark: the ceiling; right: share of it reached (MBU)")
    best = max(bounds, key=lambda b: b.limit.mbu)
    base = next((b for b in bounds if b.cell is view.baseline), None)
    low, high = PLAUSIBLE
    finding = f"{best.cell.label} comes closest to its ceiling: {best.limit.mbu:.0%}"
    if best.limit.mbu > high:
        finding = f"{best.cell.label} passes its ceiling ({best.limit.mbu:.0%}), which is no win: the ceiling is wrong"
    if base is not None and base is not best:
        finding += f"; the baseline reaches {base.limit.mbu:.0%}"
    return Figure(
        name=name,
        title="Speed under the bandwidth ceiling",
        finding=f"{finding}.",
        canvas=canvas,
        table=Table(
            name=name,
            caption=f"At {bandwidth_text(bounds[0].limit.bandwidth)}. What lies outside {low:.0%} to {high:.0%} of the "
            "ceiling needs an explanation.",
            columns=(
                Column("Cell", numeric=False),
                Column("TPS"),
                Column("Bytes", "per token"),
                Column("Ceiling", "tokens/s"),
                Column("MBU"),
                Column("Likely reason", "where implausible", numeric=False),
            ),
            rows=tuple(
                (
                    text_cell(b.cell.label),
                    number_cell(b.limit.measured_tps, metric="tps"),
                    number_cell(b.limit.bytes_per_token, bytes_text(b.limit.bytes_per_token)),
                    number_cell(b.limit.predicted_tps),
                    number_cell(b.limit.mbu, f"{b.limit.mbu:.0%}"),
                    text_cell(b.limit.flag or ABSENT),
                )
                for b in bounds
            ),
        ),
    )


def prediction_figure(view: View, bounds: Sequence[Bound]) -> Figure | None:
    """Draws the speed-up that bytes predict against the measured one; ``None`` without a baseline."""
    by_label = {b.cell.label: b.limit for b in bounds}
    points = []
    for b in bounds:
        compared = view.compared(b.cell, "tps")
        base = by_label.get(compared.baseline) if compared is not None else None
        if base is not None and compared is not None and compared.effect is not None:
            allowed = base.bytes_per_token / b.limit.bytes_per_token
            points.append((b.cell, allowed, compared.effect.value))
    if not points:
        return None
    name = f"{view.prefix}roofline-predicted"
    canvas = Canvas(name, width=6.2, height=4.2, margins=(0.55, 0.3, 0.55, 0.4))
    ax = canvas.axes[0]
    ax.set_xlim(*padded([1.0, *(x for _, x, _ in points)], share=0.15, floor=0))
    ax.set_ylim(*padded([1.0, *(y for _, _, y in points)], share=0.15, floor=0))
    top = max(ax.get_xlim()[1], ax.get_ylim()[1])
    ax.plot([0, top], [0, top], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    ax.axhline(1, color=LINE, linewidth=1)
    ax.axvline(1, color=LINE, linewidth=1)
    for cell, x, y in points:
        (mark,) = ax.plot(
            [x], [y], marker=cell.style.marker, markersize=7, color=cell.style.colour, linestyle="none"
        )
        canvas.tag(
            mark,
            tip=f"{cell.label}: {x:.2f}× from bytes alone, {y:.2f}× measured",
            series=cell.series,
            point=cell.label,
            x=repr(x),
            y=repr(y),
        )
    place_labels(
        canvas, ax, [Label(x, y, c.short or c.method, c.series, c.style.colour) for c, x, y in points]
    )
    titles(ax, x="speed-up that bytes alone allow", y="measured speed-up")
    cell, x, y = min(points, key=lambda point: point[2] / point[1])
    return Figure(
        name=name,
        title="Predicted and measured speed-up",
        finding=f"{cell.label} falls furthest short of its bytes: {significant(x)}× allowed, "
        f"{significant(y)}× measured.",
        canvas=canvas,
        series=tuple(dict.fromkeys((c.series, c.method) for c, _, _ in points)),
        notes=("On the dotted line a method gains what it saves in bytes, relative to the baseline.",),
    )
