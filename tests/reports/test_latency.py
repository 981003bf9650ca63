"""Waits for the first token: curves over the same prompts, or none."""

from __future__ import annotations

from dataclasses import replace

from hambench.reports.sections.latency import latency_section
from hambench.reports.sections.tables import summary_table
from hambench.reports.view import View
from hambench.store import Run


def in_turns(run: Run) -> Run:
    """The run as if cells had read the prompts in turn, and copied all others."""
    labels = [cell.label for cell in run.header.cells]
    ids = list(run.samples)
    records = []
    for record in run.records:
        is_reader = ids.index(record.sample_id) % len(labels) == labels.index(record.cell)
        if record.trace is not None and not is_reader:
            first, *rest = record.trace.steps
            steps = (replace(first, seconds=None), *rest)
            record = replace(record, trace=replace(record.trace, steps=steps))
        records.append(record)
    return replace(run, records=tuple(records))


def test_waits_for_the_first_token_of_different_prompts_are_not_ranked(run: Run) -> None:
    names = [figure.name for figure in latency_section(View(run)).figures]
    assert names == ["latency-ttft", "latency-burst", "latency-tpot"]
    section = latency_section(View(in_turns(run)))
    assert [figure.name for figure in section.figures] == names[1:]
    (reason,) = section.missing
    assert "--prefill each" in reason
    table = summary_table(View(in_turns(run)))
    assert reason in table.caption
    place = [column.title for column in table.columns].index("TTFT")
    assert all(row[place].value is None for row in table.rows)


def test_a_cell_that_timed_every_prompt_keeps_its_curve(run: Run) -> None:
    own = run.header.cells[-1].label
    turns = {(r.cell, r.sample_id, r.repeat): r for r in in_turns(run).records}
    mixed = replace(
        run,
        records=tuple(r if r.cell == own else turns[r.cell, r.sample_id, r.repeat] for r in run.records),
    )
    figure = latency_section(View(mixed)).figures[0]
    assert figure.name == "latency-ttft"
    assert figure.table is not None
    assert [row[0].text for row in figure.table.rows] == [own]
    assert "so each timed other prompts" in figure.notes[0]
    assert own in figure.finding
