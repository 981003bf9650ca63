"""Accuracy against speed against KV memory: one point per cell with its uncertainty, and the front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from matplotlib.axes import Axes

from hambench.analysis import pareto
from hambench.analysis.metrics import METRICS
from hambench.groups import ALL, group_title
from hambench.records import Estimate
from hambench.registry import variant_of
from hambench.reports.draw.canvas import BAND, LINE, MUTED, PAGE, Canvas, padded, titles
from hambench.reports.draw.labels import Label, place_labels
from hambench.reports.number_text import bytes_text, clip, listing
from hambench.reports.values import Column, Figure, Table, TableCell, number_cell, text_cell
from hambench.reports.view import CellView, View

STANDING_WORDS: dict[pareto.Standing, str] = {
    "front": "shown to be on the front",
    "open": "open",
    "dominated": "shown to be dominated",
    "missing": "without a number",
}
PAPER_MARGIN = 1.5
"""Points below the baseline that the paper's green band allows."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A metric as an axis of a Pareto plot."""

    metric: str
    title: str
    short: str
    scale: float = 1.0
    """Divisor of a value before it is drawn."""

    @property
    def higher_is_better(self) -> bool:
        """True if larger values are better."""
        return METRICS[self.metric].better == "higher"


TPS = Axis("tps", "decode tokens/s", "TPS")
ACCURACY = Axis("accuracy", "accuracy, points", "accuracy")
REGRET = Axis("regret", "regret, nats per token", "regret")
KV = Axis("kv_bytes_per_position", "KV bytes per position, KiB", "KV", 2**10)


@dataclass(frozen=True, slots=True)
class Point:
    """Position of a cell in a plot."""

    cell: CellView
    x: Estimate
    y: Estimate
    standing: pareto.Standing
    leads: bool
    """Whether no other point beats it in measured values."""


def pareto_figure(view: View, x: Axis, y: Axis, group: str = ALL) -> Figure | None:
    """Draws one plot; returns ``None`` if no cell has both numbers."""
    points, excluded = points_of(view, x, y, group)
    if not points:
        return None
    name = f"{view.prefix}pareto-{x.short.lower()}-{y.short.lower()}"
    canvas = Canvas(name, width=6.8, height=4.5, margins=(0.55, 0.3, 0.55, 0.4))
    ax = canvas.axes[0]
    set_limits(ax, x, y, points)
    draw_ground(canvas, ax, x, y, points, view)
    draw_points(canvas, ax, x, y, points, labelled=True)
    titles(
        ax,
        x=f"{x.title}  {'(more is better →)' if x.higher_is_better else '(← less is better)'}",
        y=y.title if y.higher_is_better else f"{y.title} (less is better)",
    )
    notes = [
        "Filled: shown to be on the front, better than each other setting in one way or the other. Ring: shown to be "
        "dominated, some setting is better in one way and no worse in the other. Half-size dot in a ring: open. Shown "
        "means that the two settings, compared directly sample by sample, get that verdict after correcting for all "
        "pairs. The dotted line follows the measured values alone; whiskers are against the baseline and do not tell "
        "two other settings apart."
    ]
    if y is ACCURACY:
        notes.append(
            f"Green band: at most {PAPER_MARGIN} points below the baseline, the tolerance of the HAMburger paper."
        )
    if y is REGRET:
        notes.append(
            "Regret is what the target gives up per token by the answer's tokens, 0 where they are its own. It sees a "
            "bad decoder in a few answers, and can't see a wrong answer that the target would have given itself."
        )
    if excluded:
        notes.append(f"Left out because a number is missing: {listing([cell.label for cell in excluded])}.")
    return Figure(
        name=name,
        title=f"{y.short[0].upper() + y.short[1:]} against {x.short}"
        + ("" if group == ALL else f", {group_title(group)}"),
        finding=_finding(points, x, y),
        canvas=canvas,
        table=_table(name, points, x, y),
        series=tuple(dict.fromkeys((p.cell.series, p.cell.method) for p in points)),
        notes=tuple(notes),
    )


def points_of(view: View, x: Axis, y: Axis, group: str) -> tuple[list[Point], list[CellView]]:
    """Returns the cells with both numbers as points, and the cells that lack one."""
    complete: list[tuple[CellView, Estimate, Estimate]] = []
    excluded: list[CellView] = []
    for cell in view.cells:
        a, b = view.estimate(cell, x.metric, group), view.estimate(cell, y.metric, group)
        if a is None or b is None:
            excluded.append(cell)
        else:
            complete.append((cell, a, b))
    front = pareto.pareto_front(
        [pareto.Point(label=cell.label, x=a, y=b) for cell, a, b in complete],
        relations=(view.relation(x.metric, group), view.relation(y.metric, group)),
        x_better=METRICS[x.metric].better,
        y_better=METRICS[y.metric].better,
    )
    return [
        Point(c, a, b, front.standings[c.label], c.label in front.order) for c, a, b in complete
    ], excluded


def set_limits(ax: Axes, x: Axis, y: Axis, points: Sequence[Point]) -> None:
    """Sets limits with room around points and intervals; cuts an interval that dwarfs the points at the frame."""
    ax.set_xlim(*padded(_reach([p.x for p in points], x.scale), share=0.1, floor=0))
    ys = _reach([p.y for p in points], y.scale)
    if y is ACCURACY:
        # fractions of a point must not fill the plot
        ys += [max(0.0, min(ys) - PAPER_MARGIN), max(ys) + PAPER_MARGIN]
    ax.set_ylim(*padded(ys, share=0.1, floor=0))


def _reach(estimates: Sequence[Estimate], scale: float) -> list[float]:
    values = [e.value / scale for e in estimates]
    span = max(values) - min(values) or abs(values[0]) * 0.2 or 1.0
    ends = [end / scale for e in estimates for end in (e.low, e.high) if end is not None]
    return [*values, *(min(max(end, min(values) - 1.2 * span), max(values) + 1.2 * span) for end in ends)]


def draw_ground(canvas: Canvas, ax: Axes, x: Axis, y: Axis, points: Sequence[Point], view: View) -> None:
    """Draws the background of the points: the band, the baseline's cross-hairs, the front."""
    base = next(
        (p for p in points if view.baseline is not None and p.cell.label == view.baseline.label), None
    )
    if base is not None:
        bx, by = base.x.value / x.scale, base.y.value / y.scale
        if y is ACCURACY:
            band = ax.axhspan(by - PAPER_MARGIN, ax.get_ylim()[1], color=BAND, linewidth=0, zorder=0)
            canvas.tag(band, tip=f"no more than {PAPER_MARGIN} points below {base.cell.label}")
        ax.axvline(bx, color=LINE, linewidth=0.9, zorder=1)
        ax.axhline(by, color=LINE, linewidth=0.9, zorder=1)
    front = sorted({(p.x.value / x.scale, p.y.value / y.scale) for p in points if p.leads})
    if len(front) > 1:
        xs, ys = zip(*front, strict=True)
        # draw steps, not slopes: nothing between two settings was measured
        where: Literal["pre", "post"] = "pre" if x.higher_is_better else "post"
        ax.step(xs, ys, where=where, color=MUTED, linewidth=1, linestyle=(0, (1, 2)), zorder=1.5)


def _curve_of(point: Point) -> tuple[object, ...]:
    """Returns what the points of one line share: it follows one knob under one set of conditions."""
    cell = point.cell.cell
    return cell.method, variant_of(cell), cell.conditions


def draw_points(
    canvas: Canvas, ax: Axes, x: Axis, y: Axis, points: Sequence[Point], *, labelled: bool, size: float = 8
) -> None:
    """Draws series lines, whiskers, marks and optionally labels."""
    for curve in dict.fromkeys(_curve_of(p) for p in points):
        mine = sorted(
            (p for p in points if _curve_of(p) == curve and p.cell.order is not None and not p.cell.control),
            key=lambda p: p.cell.order or 0.0,
        )
        if len(mine) > 1:
            style = mine[0].cell.style
            (line,) = ax.plot(
                [p.x.value / x.scale for p in mine],
                [p.y.value / y.scale for p in mine],
                color=style.colour,
                linestyle=style.linestyle,
                linewidth=1.3,
                alpha=0.7,
                zorder=2,
            )
            canvas.tag(line, series=mine[0].cell.series)
    labels = []
    for point in points:
        px, py = point.x.value / x.scale, point.y.value / y.scale
        colour = point.cell.style.colour
        for estimate, scale, horizontal in ((point.x, x.scale, True), (point.y, y.scale, False)):
            if estimate.low is None or estimate.high is None:
                continue
            ends = (estimate.low / scale, estimate.high / scale)
            across = ([*ends], [py, py]) if horizontal else ([px, px], [*ends])
            (whisker,) = ax.plot(
                *across, color=colour, linewidth=1, alpha=0.45, zorder=2.2, solid_capstyle="butt"
            )
            canvas.tag(whisker, series=point.cell.series)
        _draw_marker(canvas, ax, point, px, py, x, y, size)
        labels.append(_label(point, px, py))
    if labelled:
        place_labels(canvas, ax, labels)


def _draw_marker(
    canvas: Canvas, ax: Axes, point: Point, px: float, py: float, x: Axis, y: Axis, size: float
) -> None:
    style = point.cell.style
    on_front = point.standing == "front"
    (marker,) = ax.plot(
        [px],
        [py],
        marker=style.marker,
        markersize=size,
        markerfacecolor=style.colour if on_front else PAGE,
        markeredgecolor=style.colour,
        markeredgewidth=1.4,
        linestyle="none",
        zorder=3,
    )
    canvas.tag(
        marker,
        tip=f"{point.cell.label}: {x.short} {_text(point.x, x)}, {y.short} {_text(point.y, y)}; "
        f"{STANDING_WORDS[point.standing]}",
        series=point.cell.series,
        point=point.cell.label,
        x=repr(px),
        y=repr(py),
        standing=point.standing,
    )
    if point.standing == "open":
        (dot,) = ax.plot(
            [px],
            [py],
            marker=style.marker,
            markersize=size / 2.4,
            color=style.colour,
            linestyle="none",
            zorder=3.1,
        )
        canvas.tag(dot, series=point.cell.series)


def _label(point: Point, px: float, py: float) -> Label:
    cell = point.cell
    text = cell.short or cell.method
    if cell.control:
        text = "one-token control"
    bold = point.leads
    return Label(
        px,
        py,
        clip(text, 34),
        cell.series,
        cell.style.colour,
        "bold" if bold else "normal",
    )


def _finding(points: Sequence[Point], x: Axis, y: Axis) -> str:
    if len(points) == 1:
        only = points[0]
        numbers = f"{x.short} {_text(only.x, x)} and {y.short} {_text(only.y, y)}"
        return f"One setting only: {only.cell.label} with {numbers}."
    named: dict[pareto.Standing, list[str]] = {}
    for point in points:
        named.setdefault(point.standing, []).append(point.cell.label)
    parts = []
    for standing, words in (
        ("front", "shown to be on the front"),
        ("dominated", "shown to be dominated"),
        ("open", "open, neither shown to be beaten nor to be unbeaten"),
    ):
        labels = named.get(cast("pareto.Standing", standing), [])
        more = f" and {len(labels) - 4} more" if len(labels) > 4 else ""
        if labels:
            parts.append(f"{len(labels)} {words} ({listing(labels[:4])}{more})")
    return f"Of {len(points)} settings {'; '.join(parts)}."


def _table(name: str, points: Sequence[Point], x: Axis, y: Axis) -> Table:
    def columns(axis: Axis) -> tuple[Column, ...]:
        return (Column(axis.title), Column("low", "95 %"), Column("high", "95 %"))

    def cells(estimate: Estimate, axis: Axis) -> tuple[TableCell, ...]:
        return tuple(
            number_cell(None if v is None else v / axis.scale)
            for v in (estimate.value, estimate.low, estimate.high)
        )

    return Table(
        name=name,
        caption="Points as drawn.",
        columns=(Column("Cell", numeric=False), *columns(x), *columns(y), Column("Standing", numeric=False)),
        rows=tuple(
            (text_cell(p.cell.label), *cells(p.x, x), *cells(p.y, y), text_cell(STANDING_WORDS[p.standing]))
            for p in points
        ),
        wide=False,
    )


def _text(estimate: Estimate, axis: Axis) -> str:
    if axis is KV:
        return bytes_text(estimate.value)
    if axis.metric == "regret":
        return f"{estimate.value:.3f}"
    text = f"{estimate.value:.1f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{estimate.low:.1f}, {estimate.high:.1f}]"
