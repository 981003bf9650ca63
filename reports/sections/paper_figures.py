"""The paper's figures redrawn from the run: accuracy against KV compression over confidence, and speed bars.

A figure whose axis is not to scale in the paper comes twice: as in the paper (settings equally spaced), and to scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from hambench.groups import group_kind, group_title
from hambench.records import Estimate
from hambench.registry import facts_of
from hambench.reports.draw.canvas import BAND, INK, MUTED, Canvas, padded, tick_text, titles
from hambench.reports.draw.labels import Label, place_labels
from hambench.reports.number_text import clip, listing, slug
from hambench.reports.published import published_tables
from hambench.reports.sections.pareto_figure import PAPER_MARGIN
from hambench.reports.sections.speed_bars import speed_bars
from hambench.reports.values import Column, Figure, Section, Table, number_cell, text_cell
from hambench.reports.view import CellView, View


@dataclass(frozen=True, slots=True)
class Panel:
    """Curve of one group along the method's axis."""

    title: str
    n: int
    points: tuple[tuple[CellView, float, Estimate], ...]
    """(cell, KV compression of the output, accuracy), in ascending order along the axis."""
    baseline: float | None
    control: tuple[float, float] | None
    """(KV compression, accuracy) of the one-token control."""


def paper_section(view: View, *, published: bool = False) -> Section:
    """Shows figures 3 and 4 per suite, twice; figure 5; and, if requested, the published numbers as tables."""
    figures: list[Figure] = []
    missing: list[str] = []
    merging = [method for method in view.methods if facts_of(method).merges_tokens]
    if not merging:
        missing.append(
            "Accuracy over confidence (the paper's figures 3 and 4) needs HAMburger cells, and this run has none; "
            "`hambench run --methods vanilla,hamburger` makes them."
        )
    for method in merging:
        curves, words = _curves(view, method, alone=len(merging) == 1)
        figures += curves
        missing += words
    bars = speed_bars(view)
    if bars is not None:
        figures.append(bars)
    else:
        missing.append("Speed per task (the paper's figure 5): no cell has a decode speed.")
    return Section(
        name="paper",
        title="Paper",
        lead="The figures of the HAMburger paper, remade from this run with intervals and numbers of samples. The "
        "paper takes speed at confidence 0.5 and accuracy at 0.6 to 0.9; here every point has both.",
        figures=tuple(figures),
        tables=published_tables(view.prefix) if published else (),
        missing=tuple(missing),
    )


def _curves(view: View, method: str, *, alone: bool) -> tuple[list[Figure], list[str]]:
    """Draws two figures per suite of one method's sweep along its axis; also returns a line per missing one."""
    sweep = [cell for cell in view.cells if cell.method == method and not cell.control]
    axis = facts_of(method).axis
    if not sweep or axis is None:
        return [], [f"{method}: no cell but its control was run, so there is no curve."]
    figures: list[Figure] = []
    missing: list[str] = []
    alike = [cell for cell in sweep if cell.cell.conditions == sweep[0].cell.conditions]
    if len(alike) < len(sweep):
        missing.append(
            f"Accuracy over {axis} is drawn for the conditions of {sweep[0].label} only; "
            f"{len(sweep) - len(alike)} cells under other conditions are in the tables."
        )
    for suite in (group for group in view.groups if group_kind(group) == "suite"):
        panels = _panels(view, alike, suite, axis)
        if not panels:
            missing.append(f"{group_title(suite)}: no {method} answer was scored, so there is no curve.")
            continue
        name = (
            f"{axis}-{slug(group_title(suite))}" if alone else f"{method}-{axis}-{slug(group_title(suite))}"
        )
        for to_scale in (False, True):
            figures.append(_figure(view, panels, suite, name, axis=axis, to_scale=to_scale))
    return figures, missing


def _panels(view: View, sweep: Sequence[CellView], suite: str, axis: str) -> list[Panel]:
    """Returns panels by category if the suite says so and the run has several categories, else by task."""
    inside = f"{group_title(suite)}/"
    categories = [g for g in view.categories if group_title(g).startswith(inside)]
    tasks = [g for g in view.tasks if group_title(g).startswith(inside)]
    groups = categories if _by_category(view, inside) and len(categories) > 1 else tasks
    panels = []
    for group in groups:
        points = []
        for cell in sorted(sweep, key=lambda c: float(c.cell.knobs.get(axis) or 0)):
            kv = view.measured(cell, group).kv_compression_output
            accuracy = view.estimate(cell, "accuracy", group)
            if kv is not None and accuracy is not None:
                points.append((cell, kv, accuracy))
        if not points:
            continue
        conditions = sweep[0].cell.conditions
        own = view.baseline_of(sweep[0])
        base = view.measured(own, group).accuracy if own else None
        control = next(
            (
                cell
                for cell in view.cells
                if cell.control and cell.method == sweep[0].method and cell.cell.conditions == conditions
            ),
            None,
        )
        control_point = None
        if control is not None:
            m = view.measured(control, group)
            if m.accuracy is not None and m.kv_compression_output is not None:
                control_point = (m.kv_compression_output, m.accuracy.value)
        panels.append(
            Panel(
                title=group_title(group).removeprefix(inside),
                n=max(view.measured(cell, group).num_samples for cell, _, _ in points),
                points=tuple(points),
                baseline=base.value if base else None,
                control=control_point,
            )
        )
    return panels


def _by_category(view: View, inside: str) -> bool:
    """Returns True if the tasks under ``SUITE/`` ask to be shown by category."""
    plans = view.run.header.suite_spec.get("tasks") or {}
    names = {sample.task for sample in view.run.samples.values() if f"{sample.suite}/" == inside}
    return any(plans.get(name, {}).get("shown_by") == "category" for name in names)


def _figure(
    view: View, panels: Sequence[Panel], suite: str, stem: str, *, axis: str, to_scale: bool
) -> Figure:
    columns = min(3 if len(panels) != 4 else 4, len(panels))
    rows = -(-len(panels) // columns)
    kind = "scale" if to_scale else "paper"
    name = f"{view.prefix}{stem}-{kind}"
    canvas = Canvas(
        name,
        width=max(4.2, 3.1 * columns + 0.5),
        height=2.85 * rows + 0.45,
        rows=rows,
        columns=columns,
        margins=(0.5, 0.25, 0.55, 0.85),
        wspace=0.24,
        hspace=0.9,
    )
    for ax in canvas.axes[len(panels) :]:
        ax.set_visible(False)
    for ax, panel in zip(canvas.axes, panels, strict=False):
        _draw(canvas, ax, panel, axis=axis, to_scale=to_scale)
    inside = [p for p in panels if _best_inside(p) is not None]
    best = listing([f"{clip(p.title, 24)} {_best_inside(p):.0%}" for p in inside[:6]])
    shown = sum(map(_shown_inside, panels))
    finding = (
        f"Most KV compression whose measured accuracy is within {PAPER_MARGIN} points of the baseline: {best}. "
        f"The intervals show it in {shown or 'none'} of {len(panels)} panels."
        if inside
        else f"No {axis} stays within {PAPER_MARGIN} points of the baseline in any panel."
    )
    dotted = "Dotted: the method's control, one token per step. " if any(p.control for p in panels) else ""
    if all(p.baseline is None for p in panels):
        finding = f"Without a baseline nothing says which {axis} keeps accuracy."
    return Figure(
        name=name,
        title=f"{group_title(suite)}: accuracy against KV compression"
        + (", to scale" if to_scale else f" over {axis}, as the paper draws it"),
        finding=finding,
        canvas=canvas,
        table=None if to_scale else _table(panels, name, axis),
        notes=(
            f"Dashed: baseline. {dotted}Green: at most {PAPER_MARGIN} points below the baseline. Upright lines: 95 % "
            "intervals of the paired difference, cut where they leave a panel. "
            + (
                "KV compression of the output only (tokens per slot): the prompt is never compressed."
                if to_scale
                else f"Below: KV compression of the output; above: {axis}; both equally spaced, not to scale. "
                "The y axes are cut, each panel by itself."
            ),
        ),
    )


def _draw(canvas: Canvas, ax: Axes, panel: Panel, *, axis: str, to_scale: bool) -> None:
    style = panel.points[0][0].style
    xs = [kv for _, kv, _ in panel.points] if to_scale else [float(i) for i in range(len(panel.points))]
    ys = [estimate.value for _, _, estimate in panel.points]
    lines = [v for v in (panel.baseline, panel.control[1] if panel.control else None) if v is not None]
    ends = [v for _, _, e in panel.points for v in (e.low, e.high) if v is not None]
    span = max([*ys, *lines]) - min([*ys, *lines]) or 2.0
    near = [min(max(end, min(ys) - span), max(ys) + span) for end in ends]
    ax.set_ylim(*padded([*ys, *lines, *near], share=0.1, floor=0))
    if panel.baseline is not None:
        ax.axhspan(panel.baseline - PAPER_MARGIN, ax.get_ylim()[1], color=BAND, linewidth=0, zorder=0)
        ax.axhline(panel.baseline, color=INK, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    if panel.control is not None:
        ax.axhline(panel.control[1], color=style.colour, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    ax.plot(xs, ys, color=style.colour, linewidth=1.4, zorder=2)
    for x, (cell, kv, estimate) in zip(xs, panel.points, strict=True):
        if estimate.low is not None and estimate.high is not None:
            ax.plot(
                [x, x], [estimate.low, estimate.high], color=style.colour, linewidth=1, alpha=0.5, zorder=2
            )
        (mark,) = ax.plot(
            [x],
            [estimate.value],
            marker=style.marker,
            markersize=5.5,
            color=style.colour,
            linestyle="none",
            zorder=3,
        )
        canvas.tag(
            mark,
            tip=f"{axis} {_setting(cell, axis)}: accuracy {estimate.value:.1f}, KV compression {kv:.2f}",
            point=cell.label,
            x=repr(x),
            y=repr(estimate.value),
        )
    if to_scale:
        ax.set_xlim(*padded([1.0, *xs], share=0.1, floor=0))
        titles(
            ax, title=f"{clip(panel.title, 26)}  (n={panel.n})", y="accuracy, points", x="tokens per KV slot"
        )
        place_labels(
            canvas,
            ax,
            [
                Label(x, estimate.value, _setting(cell, axis), colour=style.colour, size=7.5)
                for x, (cell, _, estimate) in zip(xs, panel.points, strict=True)
            ],
        )
        return
    ax.set_xlim(-0.4, len(xs) - 0.6)
    ax.set_xticks(xs, [f"{kv:.0%}" for _, kv, _ in panel.points])
    ax.grid(False, axis="x")
    above = ax.secondary_xaxis("top")
    above.set_xticks(xs, [_setting(cell, axis) for cell, _, _ in panel.points])
    above.tick_params(length=0, pad=2, labelsize=8, labelcolor=MUTED)
    above.spines["top"].set_visible(False)
    ax.set_title(
        f"{clip(panel.title, 26)}  (n={panel.n})",
        loc="left",
        fontsize=9.5,
        fontweight="bold",
        color=INK,
        pad=36,
    )
    for x, words, side in ((0, "accuracy, points", "left"), (1, axis, "right")):
        ax.annotate(
            words,
            (x, 1),
            xycoords="axes fraction",
            xytext=(0, 20),
            textcoords="offset points",
            fontsize=8,
            color=MUTED,
            ha=side,
        )
    ax.set_xlabel("KV compression of the output", fontsize=8, color=MUTED, loc="right", labelpad=4)


def _best_inside(panel: Panel) -> float | None:
    """Returns the largest KV compression whose accuracy is at most the margin below the baseline."""
    if panel.baseline is None:
        return None
    return max((kv for _, kv, e in panel.points if e.value >= panel.baseline - PAPER_MARGIN), default=None)


def _shown_inside(panel: Panel) -> bool:
    """Returns True if some confidence's whole interval is at most the margin below the baseline.

    No score is below 0, so a baseline within the margin of 0 shows nothing.
    """
    return (
        panel.baseline is not None
        and panel.baseline > PAPER_MARGIN
        and any(e.low is not None and e.low >= panel.baseline - PAPER_MARGIN for _, _, e in panel.points)
    )


def _table(panels: Sequence[Panel], name: str, axis: str) -> Table:
    return Table(
        name=name,
        caption="Points as drawn; the interval is that of the paired difference from the baseline.",
        columns=(
            Column("Group", numeric=False),
            Column(axis.capitalize()),
            Column("KV out", "tokens/slot"),
            Column("Accuracy", "points"),
            Column("low", "95 %"),
            Column("high", "95 %"),
            Column("Baseline", "points"),
            Column("n"),
        ),
        rows=tuple(
            (
                text_cell(panel.title),
                number_cell(float(cell.cell.knobs.get(axis) or 0), _setting(cell, axis)),
                number_cell(kv),
                number_cell(e.value, f"{e.value:.1f}"),
                number_cell(e.low, None if e.low is None else f"{e.low:.1f}"),
                number_cell(e.high, None if e.high is None else f"{e.high:.1f}"),
                number_cell(panel.baseline, None if panel.baseline is None else f"{panel.baseline:.1f}"),
                number_cell(panel.n, str(panel.n)),
            )
            for panel in panels
            for cell, kv, e in panel.points
        ),
    )


def _setting(cell: CellView, axis: str) -> str:
    value = cell.cell.knobs.get(axis)
    return tick_text(float(value)) if isinstance(value, int | float) else cell.short
