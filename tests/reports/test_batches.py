"""The curve over batch: what is drawn, what is taken at each batch, and where a method stops paying."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import synthetic

from hambench.analysis.bandwidth_limit import limits_of
from hambench.analysis.batches.curve import (
    BatchPoint,
    Growth,
    batch_points,
    choices,
    growths,
    identities,
    predicted_vanilla,
    setting_of,
    stops_paying,
)
from hambench.records import Cell, Comparison, Estimate
from hambench.reports.number_text import bytes_text, seconds_text
from hambench.reports.page.html import render_html
from hambench.reports.sections.batches import batches_section, finding, points_of
from hambench.reports.sections.memory import totals_figure
from hambench.reports.view import View, merge
from hambench.runner.request import RunRequest
from hambench.runner.start import start_run
from hambench.runner.sweep import Sweep
from hambench.store import load_run


def cell(method, batch, **knobs):
    words = [f"{name}={value}" for name, value in knobs.items()]
    label = f"{method}[{','.join([*words, f'batch={batch}'])}]"
    return Cell(method=method, label=label, knobs=knobs, model="m", dtype="bfloat16", batch=batch)


def compared_with_vanilla(one, gain, low=None, high=None, verdict="inconclusive"):
    return Comparison(
        candidate=one.label,
        baseline=f"vanilla[batch={one.batch}]",
        group="all",
        metric="tps",
        effect=Estimate(value=gain, low=low, high=high, n=9),
        verdict=verdict,
    )


def point(method, batch, gain=None, low=None, high=None, verdict="inconclusive", tps=100.0, **knobs):
    one = cell(method, batch, **knobs)
    compared = None if gain is None else compared_with_vanilla(one, gain, low, high, verdict)
    measured = SimpleNamespace(tps=tps, user_tps=tps / batch)
    return BatchPoint(cell=one, setting=setting_of(one), measured=measured, compared=compared)


POINTS = [
    point("vanilla", 1, tps=100.0),
    point("vanilla", 8, tps=450.0),
    point("speculative", 1, 1.4, 1.35, 1.45, "better", k=4),
    point("speculative", 8, 0.8, 0.75, 0.85, "worse", k=4),
    point("prompt_lookup", 1, 1.37, 1.30, 1.44, "better"),
    point("prompt_lookup", 8, 1.2, 1.1, 1.3, "better"),
    point("suffix", 1, 1.0, 0.9, 1.1),
    point("suffix", 8, 1.02, 0.9, 1.1),
]


ALL_SAFE = {p.cell.label for p in POINTS}


def test_the_batch_and_the_run_are_not_part_of_a_setting():
    assert setting_of(cell("vanilla", 4)) == "vanilla"
    assert setting_of(cell("speculative", 4, k=2)) == "speculative[k=2]"
    joined = dataclasses.replace(cell("speculative", 4, k=2), run="r7")
    assert setting_of(dataclasses.replace(joined, label=f"{joined.label} @r7")) == "speculative[k=2]"
    alone = Cell(method="vanilla", label="vanilla", knobs={}, model="m", dtype="bfloat16")
    assert setting_of(alone) == "vanilla"
    assert batch_points([alone], {"vanilla": None}, {}) == []


def test_the_simplest_setting_within_the_interval_of_the_fastest_is_taken():
    at_one, at_eight = choices(POINTS, ALL_SAFE)
    # speculation is fastest at 1; what comes before prompt lookup in the run is the fastest itself
    assert (at_one.batch, at_one.chosen.setting, at_one.rivals) == (1, "speculative[k=4]", ())
    assert (at_eight.batch, at_eight.chosen.setting) == (8, "prompt_lookup")
    reordered = sorted(POINTS, key=lambda p: p.cell.method != "prompt_lookup")
    first = choices(reordered, ALL_SAFE)[0]
    assert first.chosen.setting == "prompt_lookup"
    assert [rival.setting for rival in first.rivals] == ["speculative[k=4]"]


def test_vanilla_is_taken_where_nobody_is_shown_to_be_faster():
    # within the interval of an undecided one, and far above its low end
    points = [POINTS[0], point("suffix", 1, 1.3, 0.9, 1.8), point("early_exit", 1, 1.9, None, None)]
    (choice,) = choices(points, {p.cell.label for p in points})
    assert choice.chosen.setting == "vanilla"
    assert [rival.setting for rival in choice.rivals] == ["early_exit", "suffix"]


def test_a_faster_setting_whose_answers_may_not_replace_vanillas_is_not_taken():
    points = [POINTS[0], point("hamburger", 1, 2.5, 2.4, 2.6, "better"), POINTS[2]]
    (choice,) = choices(points, {"speculative[k=4,batch=1]"})
    assert choice.chosen.setting == "speculative[k=4]"
    assert [rival.setting for rival in choice.rivals] == ["hamburger"]
    (choice,) = choices(points, set())
    assert choice.chosen.setting == "vanilla"
    assert choices(points[1:], ALL_SAFE) == []


def test_a_gain_is_over_vanilla_under_the_same_conditions_only():
    cells = [cell("vanilla", 1), cell("vanilla", 8), cell("suffix", 1), cell("suffix", 8)]
    measured = {each.label: SimpleNamespace(tps=1.0) for each in cells}
    faster = {
        each.label: compared_with_vanilla(each, 1.5, 1.4, 1.6, "better")
        for each in cells
        if each.method == "suffix"
    }
    # vanilla of batch 1 stands in where there is none of batch 8
    other = dataclasses.replace(faster["suffix[batch=8]"], baseline="vanilla[batch=1]")
    points = batch_points(cells, measured, {**faster, other.candidate: other})
    assert [p.gain for p in points] == [1.0, 1.0, 1.5, None]
    assert not points[-1].pays
    refused = dataclasses.replace(faster["suffix[batch=8]"], verdict="not comparable")
    points = batch_points(cells, measured, {refused.candidate: refused})
    assert points[-1].gain is None
    assert choices(points, set(measured))[-1].rivals == ()


def test_where_a_method_stops_paying_is_the_smallest_batch_from_which_on_it_is_not_shown_to():
    assert stops_paying(POINTS) == {"speculative[k=4]": 8, "prompt_lookup": None, "suffix": 1}
    grown = Growth(
        setting="vanilla", smallest=1, largest=8, ratio=Estimate(value=4.5, low=4.25, high=4.75, n=9)
    )
    said = finding(POINTS, [grown])
    assert "vanilla yields 4.50 (4.25–4.75) times as much at batch 8 as at batch 1" in said
    assert "speculative[k=4] is not shown to pay from batch 8 on" in said
    assert "prompt_lookup still pays at batch 8" in said
    assert "suffix is shown to pay at no batch" in said


def test_a_setting_that_was_run_at_fewer_batches_is_judged_at_its_own():
    fewer = [point("prompt_lookup", batch, 1.4, 1.3, 1.5, "better") for batch in (1, 2)]
    later = [point("suffix", batch, 1.0, 0.9, 1.1) for batch in (4, 8)]
    said = finding([*POINTS[:4], *fewer, *later], [])
    assert "prompt_lookup still pays at batch 2" in said
    assert "suffix is shown to pay at no batch" in said


def test_a_batch_without_vanilla_says_nothing_of_where_a_setting_pays():
    points = [
        point("prompt_lookup", 8, 1.2, 1.1, 1.3, "better"),
        point("prompt_lookup", 16),
        point("suffix", 4),
        point("suffix", 8, 1.02, 0.9, 1.1),
    ]
    said = finding(points, [])
    assert said == "prompt_lookup still pays at batch 8; suffix is shown to pay at no batch."


def test_nothing_to_compare_is_said():
    assert finding(POINTS[:2], []) == "No setting has anything to be compared with."


SIZE = 4
SLOT = synthetic.SLOT_BYTES
ROUNDS = {"vanilla": 2, "speculative": 3, "hamburger": 1.5}
"""Seconds of a round of four over those of a step of one."""


def batched(record, label, longer):
    """The same answer out of a batch of four: everybody waits for the round, which counts once."""
    steps = tuple(
        dataclasses.replace(
            step,
            seconds=step.seconds * longer,
            share_s=step.seconds * longer / SIZE,
            in_round=SIZE,
            round_kv_bytes=SIZE * step.kv_bytes + number,
        )
        for number, step in enumerate(record.trace.steps)
    )
    return dataclasses.replace(record, cell=label, trace=dataclasses.replace(record.trace, steps=steps))


LABELS = ("vanilla", "speculative[k=2]", "hamburger[confidence=0.5]")


def write_batched(folder, run_id="batched", threads=None, labels=LABELS):
    """Vanilla, speculation and HAMburger at batches 1 and 4, where the answers of 4 are those of 1."""
    plain = [
        dataclasses.replace(each, threads=threads)
        for each in synthetic.cells(confidences=(0.5,))
        if each.label in labels
    ]
    samples, records, scores = synthetic.simulate(plain, per_task=6, error_rate=0.0)
    cells, all_records, all_scores = [], [], []
    for one in plain:
        head, _, knobs = one.label.rstrip("]").partition("[")
        for size in (1, SIZE):
            label = f"{head}[{','.join([*([knobs] if knobs else []), f'batch={size}'])}]"
            cells.append(dataclasses.replace(one, label=label, batch=size))
            own = [record for record in records if record.cell == one.label]
            longer = ROUNDS[one.method]
            all_records += [
                dataclasses.replace(record, cell=label) if size == 1 else batched(record, label, longer)
                for record in own
            ]
            all_scores += [dataclasses.replace(s, cell=label) for s in scores if s.cell == one.label]
    header = synthetic.header(cells, num_samples=len(samples), run_id=run_id)
    return load_run(synthetic.write(folder, header, samples, all_records, all_scores))


@pytest.fixture(scope="module")
def batched_run(tmp_path_factory):
    return write_batched(tmp_path_factory.mktemp("runs") / "batched")


def test_every_column_of_the_curve_has_its_own_number(batched_run):
    section = batches_section(View(batched_run))
    (figure,) = section.figures
    titles = [column.title for column in figure.table.columns]
    rows = {(row[0].text, row[1].text): dict(zip(titles, row, strict=True)) for row in figure.table.rows}
    assert list(rows) == [
        (setting, batch)
        for setting in ("vanilla", "speculative[k=2]", "hamburger[confidence=0.5]")
        for batch in ("1", "4")
    ]
    alone = {
        label: [record.trace for record in batched_run.answered(label)]
        for label in ("vanilla[batch=1]", "speculative[k=2,batch=1]")
    }
    vanilla = alone["vanilla[batch=1]"]
    for setting, traces in zip(("vanilla", "speculative[k=2]"), alone.values(), strict=True):
        decoded = [step for trace in traces for step in trace.steps[1:]]
        num_tokens = sum(len(step.tokens) for step in decoded)
        seconds = sum(step.seconds for step in decoded)
        waits = [
            sum(step.seconds for step in trace.steps[1:]) / sum(len(step.tokens) for step in trace.steps[1:])
            for trace in traces
        ]
        peak = max(step.kv_bytes for trace in traces for step in trace.steps)
        peak_of_four = max(
            SIZE * step.kv_bytes + number for trace in traces for number, step in enumerate(trace.steps)
        )
        longer = ROUNDS["vanilla" if setting == "vanilla" else "speculative"]
        for batch, factor, kv_bytes in (("1", 1, peak), ("4", longer, peak_of_four)):
            row = rows[setting, batch]
            size = int(batch)
            assert row["Batch"].value == size
            assert row["Total"].value == pytest.approx(num_tokens / seconds * size / factor)
            assert row["One user"].value == pytest.approx(num_tokens / seconds / factor)
            assert row["Mean batch"].value == pytest.approx(size)
            assert (row["KV cache"].value, row["KV cache"].text) == (kv_bytes, bytes_text(kv_bytes))
            ttft = float(np.median([trace.steps[0].seconds for trace in traces])) * factor
            assert row["TTFT"].value == pytest.approx(ttft)
            assert row["TTFT"].text == seconds_text(ttft)
            assert row["TPOT p50"].value == pytest.approx(np.median(waits) * factor)
            assert row["TPOT p90"].value > row["TPOT p50"].value
            assert row["TPOT p99"].value is None
        ours = sum(step.seconds for trace in vanilla for step in trace.steps[1:])
        if setting != "vanilla":
            for batch, factor in (("1", 1.0), ("4", ROUNDS["vanilla"] / longer)):
                assert rows[setting, batch]["× vanilla"].value == pytest.approx(ours / seconds * factor)
        assert rows[setting, "1"]["Same tokens"].value is None
        assert rows[setting, "4"]["Same tokens"].text == f"{len(traces)}/{len(traces)}"


def test_the_choice_is_what_may_be_shipped_and_says_what_is_faster_and_why_not(batched_run):
    view = View(batched_run)
    (table,) = batches_section(view).tables
    titles = [column.title for column in table.columns]
    assert titles == ["Batch", "Take", "× vanilla", "Total", "One user", "Not taken"]
    by_batch = {row[0].text: row for row in table.rows}
    assert list(by_batch) == ["1", "4"]
    points = {(p.setting, p.batch): p for p in points_of(view)}
    hamburger = points["hamburger[confidence=0.5]", 1]
    assert hamburger.pays
    assert hamburger.gain > points["speculative[k=2]", 1].gain
    # the fastest leaves the target; at batch 4 a round of speculation takes three times as long
    for batch, row in by_batch.items():
        taken = points[row[1].text, int(batch)]
        assert row[1].text.startswith("hamburger") is False
        assert row[2].value == pytest.approx(taken.gain)
        assert row[3].value == pytest.approx(taken.total_tps)
        assert row[4].value == pytest.approx(taken.user_tps)
        assert row[5].text.startswith("hamburger[confidence=0.5] ")
        assert row[5].text.endswith(": leaves the target")
    assert by_batch["4"][4].value != by_batch["4"][3].value


def test_vanillas_growth_is_paired_and_equal_answers_are_counted(batched_run):
    points = points_of(View(batched_run))
    (growth,) = growths(batched_run, points)
    assert (growth.setting, growth.smallest, growth.largest) == ("vanilla", 1, SIZE)
    assert growth.ratio.value == pytest.approx(SIZE / ROUNDS["vanilla"])
    assert growth.ratio.low == pytest.approx(growth.ratio.value)
    # between machines' states that differ there is no ratio to tell
    label = "vanilla[batch=4]"
    failed = tuple(
        dataclasses.replace(r, trace=None, error="lost") if r.cell == label and number % 2 else r
        for number, r in enumerate(batched_run.records)
    )
    assert growths(dataclasses.replace(batched_run, records=failed), points) == []
    same = identities(batched_run, points)
    assert set(same) == {p.cell.label for p in points if p.batch == SIZE}
    changed = batched_run.answered("vanilla[batch=4]")[0]
    last = changed.trace.steps[-1]
    steps = (*changed.trace.steps[:-1], dataclasses.replace(last, tokens=(last.tokens[0] + 1,)))
    other = dataclasses.replace(changed, trace=dataclasses.replace(changed.trace, steps=steps))
    records = tuple(other if record is changed else record for record in batched_run.records)
    run = dataclasses.replace(batched_run, records=records)
    (figure,) = batches_section(View(run)).figures
    num = len(run.answered("vanilla[batch=4]"))
    assert figure.notes[0].startswith(f"{3 * num - 1} of {3 * num} answers of a batch are those of")


def test_the_memory_of_a_batch_next_to_the_weights_is_that_of_all_its_sequences(batched_run):
    view = View(batched_run)
    table = totals_figure(view).table
    shown = {row[0].text: row[3].value for row in table.rows}
    assert shown == {point.cell.label: point.kv_bytes for point in points_of(view)}
    assert shown["vanilla[batch=4]"] == pytest.approx(4 * shown["vanilla[batch=1]"], rel=1e-4)


def test_bandwidth_allows_a_batch_to_read_the_weights_once(batched_run):
    view = View(batched_run)
    traces = {cell.label: view.traces(cell) for cell in view.cells}
    allowed = predicted_vanilla(batched_run, points_of(view), traces)
    assert list(allowed) == ["vanilla"]
    one, four = allowed["vanilla"]
    assert (one.batch, four.batch) == (1, SIZE)
    # at batch 1 the same limit as on the roofline's page, but for the slot that a step itself writes
    assert one.total_tps == one.user_tps
    assert one.total_tps == pytest.approx(limits_of(batched_run)["vanilla[batch=1]"].predicted_tps, rel=0.01)
    assert one.total_tps < four.total_tps < SIZE * one.total_tps
    assert four.user_tps == pytest.approx(four.total_tps / SIZE)
    assert four.user_tps < one.user_tps
    # a cache of unknown size may be read faster than any number says
    first, *others = traces["vanilla[batch=4]"]
    steps = (*first.steps[:-1], dataclasses.replace(first.steps[-1], kv_bytes=None))
    unknown = {**traces, "vanilla[batch=4]": [dataclasses.replace(first, steps=steps), *others]}
    assert predicted_vanilla(batched_run, points_of(view), unknown) == {"vanilla": [one]}


def test_bandwidth_is_that_of_the_cells_own_threads(tmp_path):
    run = write_batched(tmp_path / "run", threads=1)
    telemetry = tuple(
        {**reading, "threads": 1, "read": 10e9}
        if reading.get("kind") == "bandwidth" and reading["when"] == "after"
        else {**reading, "threads": 2}
        for reading in run.telemetry
    )
    run = dataclasses.replace(run, telemetry=telemetry)
    view = View(run)
    traces = {cell.label: view.traces(cell) for cell in view.cells}
    (one, _) = predicted_vanilla(run, points_of(view), traces)["vanilla"]
    assert one.total_tps == pytest.approx(limits_of(run)["vanilla[batch=1]"].predicted_tps, rel=0.01)


def test_joined_runs_keep_their_own_curves_and_limits(batched_run, tmp_path):
    other = write_batched(tmp_path / "other", run_id="again")
    (joined,) = merge([batched_run, other])
    view = View(joined)
    points = points_of(view)
    settings = {p.setting for p in points}
    assert {"vanilla @batched", "vanilla @again"} <= settings
    assert len(points) == 2 * len(points_of(View(batched_run)))
    assert all(p.is_baseline or p.compared is not None for p in points)
    assert [growth.setting for growth in growths(joined, points)] == ["vanilla @batched", "vanilla @again"]
    traces = {cell.label: view.traces(cell) for cell in view.cells}
    assert set(predicted_vanilla(joined, points, traces)) == {"vanilla @batched", "vanilla @again"}
    assert len(batches_section(view).tables[0].rows) == 4


def test_settings_of_one_method_differ_in_the_key_as_their_lines_do(tmp_path):
    labels = ("vanilla", "speculative[k=2]", "speculative[k=4]")
    (figure,) = batches_section(View(write_batched(tmp_path / "run", labels=labels))).figures
    (key,) = figure.canvas.figure.legends
    shown = {
        text.get_text(): handle.get_alpha()
        for text, handle in zip(key.get_texts(), key.legend_handles, strict=True)
    }
    lines = figure.canvas.axes[0].get_lines()[: len(labels)]
    assert shown == dict(zip(labels, (line.get_alpha() for line in lines), strict=True))
    assert shown["speculative[k=2]"] != shown["speculative[k=4]"]


@pytest.fixture(scope="module")
def run(tiny_model, rows, tmp_path_factory):
    sweep = Sweep(
        model=str(tiny_model), methods=("vanilla", "prompt_lookup"), dtype="float32", batches=(1, 2)
    )
    request = RunRequest(
        sweep=sweep, suite="longbench", tasks=("lcc",), data=rows, limit=3, max_new_tokens=8, fidelity=False
    )
    return start_run(request, tmp_path_factory.mktemp("runs") / "batches")


def test_the_report_of_a_run_over_batches_has_the_curve_and_the_choice(run):
    section = batches_section(View(run))
    (figure,), (table,) = section.figures, section.tables
    assert [row[0].text for row in table.rows] == ["1", "2"]
    settings = {row[0].text for row in figure.table.rows}
    assert settings == {"vanilla", "prompt_lookup"}
    same = [row[7].text for row in figure.table.rows]
    assert same == ["–", "3/3", "–", "3/3"]
    assert figure.notes[0].startswith("6 of 6 answers of a batch are those of the same setting at batch 1")
    page = render_html([run])
    assert "Speed over batch" in page
    assert "what to take" in page.lower()


def test_a_run_of_one_batch_has_no_such_page(tiny_model, rows, tmp_path):
    sweep = Sweep(model=str(tiny_model), methods=("vanilla",), dtype="float32")
    request = RunRequest(
        sweep=sweep, suite="longbench", tasks=("lcc",), data=rows, limit=1, max_new_tokens=4, fidelity=False
    )
    assert batches_section(View(start_run(request, tmp_path / "run"))) is None
