"""The Pareto page: four plots over all samples, and small multiples per task."""

from __future__ import annotations

from collections.abc import Sequence

from hambench.groups import group_title
from hambench.reports.draw.canvas import Canvas, titles
from hambench.reports.sections.pareto_figure import (
    ACCURACY,
    KV,
    REGRET,
    TPS,
    Axis,
    Point,
    draw_ground,
    draw_points,
    pareto_figure,
    points_of,
    set_limits,
)
from hambench.reports.values import Figure, Section
from hambench.reports.view import View
from hambench.reports.words import clip


def pareto_section(view: View) -> Section:
    """Shows four plots over all samples, and small multiples of the first per suite and task."""
    figures: list[Figure] = []
    missing: list[str] = []
    for x, y in ((TPS, ACCURACY), (TPS, REGRET), (KV, ACCURACY), (KV, TPS)):
        figure = pareto_figure(view, x, y)
        if figure is None:
            missing.append(f"{y.short} against {x.short}: no cell has both numbers.")
        else:
            figures.append(figure)
    for noun, groups in (("category", view.wider_categories), ("task", view.tasks)):
        many = small_multiples(view, groups, noun)
        if many is not None:
            figures.append(many)
    return Section(
        name="pareto",
        title="Pareto",
        lead="Each point is one setting, measured once on the same answers: its speed, memory and accuracy belong "
        "together. Bars are 95 % intervals of the paired difference from the baseline, which therefore has none.",
        figures=tuple(figures),
        missing=tuple(missing),
    )


def small_multiples(view: View, groups: Sequence[str], noun: str = "task") -> Figure | None:
    """Draws accuracy against TPS per task or category, in one look with separate axes per panel.

    Where nothing was scored, regret takes the place of accuracy.
    """
    y, panels = ACCURACY, _panels(view, ACCURACY, groups)
    if not panels:
        y, panels = REGRET, _panels(view, REGRET, groups)
    if len(panels) < 2:
        return None
    columns = 4 if len(panels) > 3 and len(panels) != 6 else 3
    rows = -(-len(panels) // columns)
    plural = {"task": "tasks", "category": "categories"}[noun]
    name = f"{view.prefix}pareto-{plural}"
    canvas = Canvas(
        name,
        width=0.5 + 3.0 * columns,
        height=2.6 * rows + 0.4,
        rows=rows,
        columns=columns,
        margins=(0.5, 0.2, 0.5, 0.8),
        wspace=0.22,
        hspace=0.62,
    )
    for ax in canvas.axes[len(panels) :]:
        ax.set_visible(False)
    fastest = []
    for ax, (group, points) in zip(canvas.axes, panels, strict=False):
        set_limits(ax, TPS, y, points)
        draw_ground(canvas, ax, TPS, y, points, view)
        draw_points(canvas, ax, TPS, y, points, labelled=False, size=5)
        n = max(point.y.n for point in points)
        titles(
            ax,
            title=f"{clip(group_title(group).rpartition('/')[2], 28)}  (n={n})",
            y="accuracy, points" if y is ACCURACY else y.title,
            x="TPS",
        )
        fastest.append(max(points, key=lambda p: p.x.value).cell.label)
    methods = {point.cell.method: point.cell.style for _, points in panels for point in points}
    canvas.key(list(methods.items()))
    common = max(set(fastest), key=lambda label: (fastest.count(label), label))
    return Figure(
        name=name,
        title=f"{y.short} against TPS per {noun}" if y is REGRET else f"The same per {noun}",
        finding=f"{common} is the fastest in {fastest.count(common)} of {len(panels)} {plural}.",
        canvas=canvas,
        series=tuple(dict.fromkeys((p.cell.series, p.cell.method) for _, points in panels for p in points)),
        notes=(
            f"Each panel has its own axes, and y need not begin at 0. The numbers are in the table per {noun}.",
        ),
    )


def _panels(view: View, y: Axis, groups: Sequence[str]) -> list[tuple[str, list[Point]]]:
    panels = [(group, points_of(view, TPS, y, group)[0]) for group in groups]
    return [(group, points) for group, points in panels if points]
