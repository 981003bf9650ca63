"""Memory as drawn: everything that a method needs is in its bar."""

from __future__ import annotations

import dataclasses

from hambench.analysis.metrics import peak_kv_bytes
from hambench.reports.sections.memory import MIB, growth_figure, totals_figure
from hambench.reports.view import View
from hambench.store import Run


def test_the_memory_bars_hold_the_weights_that_a_method_adds(run: Run) -> None:
    figure = totals_figure(View(run))
    assert figure is not None
    assert figure.table is not None
    added = {row[0].text: row[2].value for row in figure.table.rows}
    assert added["vanilla"] == 0
    assert added["speculative[k=2]"] == 135_000_000
    assert added["hamburger[confidence=0.5]"] == 287_000_000
    # the smallest cache is not the smallest total, where its weights are the largest
    assert "hamburger" not in figure.finding.partition("halving")[2]
    drawn = [bar.get_width() * 2**20 for bar in figure.canvas.axes[0].patches]
    assert sum(abs(width - 287_000_000) < 1 for width in drawn) == sum(
        "hamburger" in label for label in added
    )


def test_peaks_are_those_during_steps_and_lines_are_what_is_held_after_them(run: Run) -> None:
    """A step of speculation holds its drafts, and drops those that were rejected."""

    def with_drafts(record):
        if record.trace is None or not record.cell.startswith("speculative"):
            return record
        steps = tuple(
            dataclasses.replace(step, peak_kv_bytes=step.kv_bytes + 7 * MIB * (number == 2))
            for number, step in enumerate(record.trace.steps)
        )
        return dataclasses.replace(record, trace=dataclasses.replace(record.trace, steps=steps))

    drafted = dataclasses.replace(run, records=tuple(map(with_drafts, run.records)))
    figure = growth_figure(View(drafted))
    assert figure is not None
    sample_id = figure.notes[0].partition("Sample ")[2].partition(". ")[0]
    traces = {r.cell: r.trace for r in drafted.measured if r.sample_id == sample_id and r.trace is not None}
    held = {label: max(step.kv_bytes for step in trace.steps) for label, trace in traces.items()}
    peaks = {label: peak_kv_bytes(trace) for label, trace in traces.items()}
    assert peaks["speculative[k=2]"] > held["speculative[k=2]"]
    lines = figure.canvas.axes[0].get_lines()
    drawn = [max(line.get_ydata()) * MIB for line in lines if line.get_linestyle() != "None"]
    marked = [line.get_ydata()[0] * MIB for line in lines if line.get_linestyle() == "None"]
    shown = [label for label in peaks if label != "hamburger[confidence=1.01]"]
    assert sorted(drawn) == sorted(held[label] for label in shown)
    assert sorted(marked) == sorted(peaks[label] for label in shown)
    assert figure.canvas.axes[0].get_ylim()[1] * MIB > max(marked)
    most = max(shown, key=lambda label: peaks[label])
    assert f"{most} highest at {peaks[most] / MIB:.1f} MiB" in figure.finding
