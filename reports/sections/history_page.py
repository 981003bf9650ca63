"""Regression history: each setting's ratio to vanilla over this machine's runs, with shifts and pins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hambench.groups import ALL
from hambench.history.archive import History, load_history, machine_id
from hambench.history.shifts import Series, describe_series
from hambench.reports.draw.canvas import LINE, MUTED, PAGE, Canvas, padded, titles
from hambench.reports.draw.theme import SENTINEL
from hambench.reports.number_text import clip
from hambench.reports.sections.steps_figures import end_labels
from hambench.reports.values import Column, Figure, Section, Table, number_cell, text_cell
from hambench.reports.view import CellView, View

METRIC = "tps_ratio"
_SYMBOLS = {True: "▼", False: "≈", None: "?"}


def history_section(view: View, root: Path | None) -> Section:
    """Shows the runs of this run's machine and suite, or the reason why there are none.

    Raises:
        HambenchError: If ``root`` is given and holds no history.
    """
    if root is None:
        reason = (
            "A run is one moment. `hambench history add RUN` keeps the ratios to vanilla over time; give the "
            "folder with `hambench report --history`."
        )
        return Section(name="history", title="History", missing=(reason,))
    history = load_history(root)
    machine, suite = machine_id(view.run.header.environment), "+".join(view.run.header.suites)
    entries = [entry for entry in history.entries if entry.machine == machine and entry.suite == suite]
    series = [
        (cell, describe_series(history, entries, METRIC, cell.label))
        for cell in view.cells
        if any(cell.label in entry.series.get(METRIC, {}) for entry in entries)
    ]
    missing = [f"Left out of the history: {problem}" for problem in history.problems]
    if not series:
        missing.append(f"The history has no runs of {suite} on this kind of machine ({machine}).")
        return Section(name="history", title="History", missing=tuple(missing))
    return Section(
        name="history",
        title="History",
        lead=f"{len(entries)} runs of {suite} on this kind of machine, oldest first. A ratio to vanilla measured in "
        "the same run survives a busy or replaced machine; an upright line is a change of versions, weights or "
        "prompts.",
        figures=(_figure(view, history, series),),
        tables=(_table(view, series),),
        missing=tuple(missing),
    )


def _figure(view: View, history: History, series: Sequence[tuple[CellView, Series]]) -> Figure:
    name = f"{view.prefix}history"
    canvas = Canvas(name, width=8.4, height=3.8, margins=(0.6, 1.6, 0.55, 0.4))
    ax = canvas.axes[0]
    runs = sorted({(p.created_at, p.run_id) for _, cell_series in series for p in cell_series.points})
    at = {run_id: index for index, (_, run_id) in enumerate(runs)}
    ax.set_xlim(-0.5, len(runs) - 0.5)
    ax.set_ylim(*padded([1.0, *(p.value for _, cell_series in series for p in cell_series.points)], floor=0))
    ax.axhline(1, color=LINE, linewidth=1)
    shown = [index for index in range(len(runs)) if index % max(1, len(runs) // 6) == 0]
    ax.set_xticks(shown, [runs[index][0][:10] for index in shown])
    for cell, cell_series in series:
        xs, ys = [at[p.run_id] for p in cell_series.points], [p.value for p in cell_series.points]
        (line,) = ax.plot(
            xs,
            ys,
            color=cell.style.colour,
            linestyle=cell.style.linestyle,
            marker=cell.style.marker,
            markersize=3.5,
            alpha=cell.strength,
        )
        canvas.tag(line, tip=cell.label, series=cell.series)
        for point in cell_series.points:
            if point.broken_by:
                ax.axvline(at[point.run_id] - 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        for finding in cell_series.findings:
            if finding.kind == "shift":
                point = cell_series.points[finding.index]
                (ring,) = ax.plot(
                    [at[point.run_id]],
                    [point.value],
                    marker="o",
                    markersize=11,
                    markerfacecolor="none",
                    markeredgecolor=SENTINEL["good" if finding.better else "bad"],
                    linestyle="none",
                )
                way = "better" if finding.better else "worse"
                canvas.tag(ring, tip=f"{cell.label}: shift, {way}, {point.run_id}")
    for pin_name, pin in history.pins.items():
        if pin.run_id in at:
            ax.annotate(
                clip(pin_name, 16),
                (at[pin.run_id], ax.get_ylim()[0]),
                xytext=(0, 3),
                textcoords="offset points",
                fontsize=7,
                ha="center",
                color=MUTED,
                bbox={"facecolor": PAGE, "edgecolor": LINE, "linewidth": 0.6, "pad": 1.5},
            )
    end_labels(canvas, ax, [(cell_series.points[-1].value, 0.0, cell) for cell, cell_series in series])
    titles(ax, x="runs, oldest first", y="decode speed, × vanilla of the same run")
    lost = [cell.label for cell, cell_series in series if cell_series.lost]
    untold = [cell.label for cell, cell_series in series if cell_series.lost is None]
    shifts = sum(finding.kind == "shift" for _, cell_series in series for finding in cell_series.findings)
    return Figure(
        name=name,
        title="Speed over vanilla, run by run",
        finding=f"{len(lost)} of {len(series)} settings end with a confirmed loss; {shifts} shifts in all."
        + (f" {len(untold)} have too few runs to tell." if untold else ""),
        canvas=canvas,
        series=tuple(dict.fromkeys((cell.series, cell.method) for cell, _ in series)),
    )


def _table(view: View, series: Sequence[tuple[CellView, Series]]) -> Table:
    return Table(
        name=f"{view.prefix}history",
        caption=f"Newest ratio of each setting, group {ALL}.",
        columns=(
            Column("Cell", numeric=False),
            Column("Runs"),
            Column("Newest", "× vanilla"),
            Column("Verdict", numeric=False),
            Column("Since pins", numeric=False),
        ),
        rows=tuple(
            (
                text_cell(cell.label),
                number_cell(len(cell_series.points), str(len(cell_series.points))),
                number_cell(cell_series.points[-1].value),
                text_cell(f"{_SYMBOLS[cell_series.lost]} {cell_series.verdict}"),
                text_cell(
                    ", ".join(f"{name}: {ratio - 1:+.1%}" for name, ratio in cell_series.since_pins.items())
                    or "–"
                ),
            )
            for cell, cell_series in series
        ),
    )
