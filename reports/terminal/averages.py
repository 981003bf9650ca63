"""Prints the averages that a suite's benchmark reports, and the floors and ceilings of tasks."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hambench.analysis.measurements import measure_run
from hambench.analysis.suite_averages import averages_of, left_out
from hambench.groups import bounds_by_group
from hambench.store import Run


def render_averages(run: Run, *, width: int = 150) -> str:
    """Returns one row per cell: the benchmark's mean over categories, and its parts; "" without such a rule."""
    averages = averages_of(run)
    if not averages:
        return ""
    first = averages[0]
    columns = ["overall", *(each.category for each in first.average.categories), *first.lengths]
    corrected = bool(first.corrected)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method", overflow="fold")
    for title in (*columns, *(["above chance"] if corrected else [])):
        table.add_column(title, justify="right", no_wrap=True)
    for each in averages:
        values = [each.average.overall, *(part.points for part in each.average.categories)]
        values += each.lengths.values()
        if corrected:
            values.append(_mean(list(each.corrected.values())))
        table.add_row(*(Text(text) for text in (each.average.cell, *map(_points, values))))
    out = io.StringIO()
    console = Console(file=out, width=width, no_color=True, highlight=False)
    lengths = "; by length of the text in words" if first.lengths else ""
    console.print(
        Text(f"Accuracy as {first.average.suite} averages: the mean of its categories' means{lengths}."),
        soft_wrap=True,
    )
    if corrected:
        console.print(
            Text("Above chance: 0 for answers that need no reading, 100 for right ones; mean over tasks."),
            soft_wrap=True,
        )
    console.print(table)
    for line in left_out(averages):
        console.print(Text(f"! {line}"), soft_wrap=True)
    return out.getvalue().rstrip("\n")


def render_bounds(run: Run, group: str) -> str:
    """Returns a task's floor and ceiling and every cell's points above chance; "" if they are unknown."""
    bounds = bounds_by_group(run.header.suite_spec).get(group)
    if bounds is None:
        return ""
    line = f"floor {bounds.floor:.1f} ({bounds.floor_by}), ceiling {bounds.ceiling:.1f}"
    parts = [
        f"{m.cell} {_points(bounds.corrected(m.accuracy.value))}"
        for m in measure_run(run, [group])
        if m.accuracy is not None
    ]
    return f"{line}; above chance: {', '.join(parts)}" if parts else line


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _points(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
