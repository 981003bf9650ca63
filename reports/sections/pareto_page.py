"""The Pareto page: five plots over all samples, and small multiples per task."""

from __future__ import annotations

from collections.abc import Sequence

from hambench.groups import group_title
from hambench.reports.draw.canvas import Canvas, titles
from hambench.reports.number_text import clip
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


def pareto_section(view: View) -> Section:
    """Shows five plots over all samples, and small multiples per category and task."""
    figures: list[Figure] = []
    missing: list[str] = []
    for x, y in ((TPS, ACCURACY), (TPS, REGRET), (KV, ACCURACY), (KV, REGRET), (KV, TPS)):
        figure = pareto_figure(view, x, y)
        if figure is None:
            missing.append(f"{y.short} against {x.short}: no cell has both numbers.")
        else:
            figures.append(figure)
    for noun, groups in (("category", view.wider_categories), ("task", view.tasks)):
        for x in (TPS, KV) if saves_memory(view) else (TPS,):
            many = small_multiples(view, groups, noun, x)
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


SMALLEST_SAVING = 0.05
"""Share of the baseline's KV memory that a setting must save to make memory per task worth a figure."""


def saves_memory(view: View) -> bool:
    """Returns whether some setting holds clearly less KV memory per position than the baseline."""
    base = view.baseline and view.estimate(view.baseline, KV.metric)
    if not base:
        return False
    held = [estimate.value for cell in view.cells if (estimate := view.estimate(cell, KV.metric))]
    return min(held) < base.value * (1 - SMALLEST_SAVING)


def small_multiples(view: View, groups: Sequence[str], noun: str = "task", x: Axis = TPS) -> Figure | None:
    """Draws accuracy against speed or memory per task or category, in one look with separate axes per panel.

    Where nothing was scored, regret takes the place of accuracy.
    """
    y, panels = ACCURACY, _panels(view, x, ACCURACY, groups)
    if not panels:
        y, panels = REGRET, _panels(view, x, REGRET, groups)
    if len(panels) < 2:
        return None
    columns = 4 if len(panels) > 3 and len(panels) != 6 else 3
    rows = -(-len(panels) // columns)
    plural = {"task": "tasks", "category": "categories"}[noun]
    name = f"{view.prefix}pareto-{plural}" + ("" if x is TPS else f"-{x.short.lower()}")
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
    leading: list[str] = []
    for ax, (group, points) in zip(canvas.axes, panels, strict=False):
        set_limits(ax, x, y, points)
        draw_ground(canvas, ax, x, y, points, view)
        draw_points(canvas, ax, x, y, points, labelled=False, size=5)
        n = max(point.y.n for point in points)
        titles(
            ax,
            title=f"{clip(group_title(group).rpartition('/')[2], 28)}  (n={n})",
            y="accuracy, points" if y is ACCURACY else y.title,
            x=x.title if x is KV else x.short,
        )
        ranked = sorted(points, key=lambda p: p.x.value)
        leading.append(ranked[-1 if x.higher_is_better else 0].cell.label)
    methods = {point.cell.method: point.cell.style for _, points in panels for point in points}
    canvas.key(list(methods.items()))
    common = max(set(leading), key=lambda label: (leading.count(label), label))
    word = "fastest" if x is TPS else "smallest"
    return Figure(
        name=name,
        title=f"{y.short[0].upper() + y.short[1:]} against {x.short} per {noun}",
        finding=f"{common} is the {word} in {leading.count(common)} of {len(panels)} {plural}.",
        canvas=canvas,
        series=tuple(dict.fromkeys((p.cell.series, p.cell.method) for _, points in panels for p in points)),
        notes=(
            f"Each panel has its own axes, and y need not begin at 0. The numbers are in the table per {noun}.",
        ),
    )


def _panels(view: View, x: Axis, y: Axis, groups: Sequence[str]) -> list[tuple[str, list[Point]]]:
    panels = [(group, points_of(view, x, y, group)[0]) for group in groups]
    return [(group, points) for group, points in panels if points]
