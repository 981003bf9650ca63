import dataclasses
import json

import pytest
from synthetic import TASKS, cells, write_run

from hambench.analysis.fidelity import first_difference, token_identity
from hambench.analysis.measurements import measure_run
from hambench.analysis.metrics import end_to_end_tps, ttft_s
from hambench.analysis.summary import (
    cell_objects,
    render_table,
    to_json_line,
)
from hambench.groups import ALL, group_names, in_group
from hambench.reports.page.cautions import cautions
from hambench.reports.view import View
from hambench.store import load_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load_run(write_run(tmp_path_factory.mktemp("runs") / "run"))


def test_there_is_one_object_per_cell_with_all_that_is_measured(run):
    objects = cell_objects(run)
    assert [item["cell"] for item in objects] == [cell.label for cell in run.header.cells]
    wanted = {
        "tps", "ttft_s", "tpot_p50_s", "tpot_p90_s", "tpot_p99_s", "m", "acceptance_rate", "kv_bytes",
        "kv_compression_output", "kv_compression_total", "peak_memory_bytes", "accuracy", "num_samples",
    }  # fmt: skip
    for item in objects:
        assert wanted <= set(item)
        assert json.loads(to_json_line(item))["cell"] == item["cell"]
    vanilla = objects[0]
    assert vanilla["tps_ratio"] == 1
    assert vanilla["accuracy"]["n"] > 0
    assert vanilla["acceptance_rate"] is None


def test_a_group_measured_alone_is_the_one_of_all_groups(tmp_path):
    few = load_run(write_run(tmp_path / "few", cells()[:2], tasks=TASKS[1:3], per_task=2))
    every = measure_run(few)
    groups = list(dict.fromkeys(measured.group for measured in every))
    assert len(groups) > 3
    assert groups[0] == ALL
    for group in groups:
        assert measure_run(few, [group]) == [measured for measured in every if measured.group == group]
        assert any(measured.num_tokens for measured in measure_run(few, [group]))


def without_prefill_times(run, *, timed):
    """The run with copied prompts in all answers but those that ``timed`` (cell index, answer's index) names."""
    places = {cell.label: index for index, cell in enumerate(run.header.cells)}
    counts = dict.fromkeys(places, 0)
    records = []
    for record in run.records:
        if record.trace is not None:
            counts[record.cell] += 1
            if not timed(places[record.cell], counts[record.cell] - 1):
                first, *rest = record.trace.steps
                steps = (dataclasses.replace(first, seconds=None), *rest)
                record = dataclasses.replace(record, trace=dataclasses.replace(record.trace, steps=steps))
        records.append(record)
    return dataclasses.replace(run, records=tuple(records))


def test_a_ttft_is_over_the_answers_that_every_cell_timed(run):
    assert "TTFT is" not in render_table(run)
    assert "No TTFT" not in render_table(run)
    # the first two answers of every cell, and a third of the first cell
    some = without_prefill_times(run, timed=lambda cell, answer: answer < 2 + (cell == 0))
    num_answers = cell_objects(some)[0]["num_answers"]
    assert f"TTFT is over the 2 of {num_answers} answers that every cell timed" in render_table(some)
    for cell, item in zip(run.header.cells, cell_objects(some), strict=True):
        first = [record.trace for record in run.answered(cell.label)[:2]]
        assert item["num_ttfts"] == 2
        assert item["ttft_s"] == ttft_s(first)
        assert item["end_to_end_tps"] == end_to_end_tps(first)
    none = without_prefill_times(run, timed=lambda cell, answer: False)
    assert "No TTFT of " in render_table(none)
    assert "--prefill each" in render_table(none)
    for item in cell_objects(none):
        assert (item["num_ttfts"], item["ttft_s"], item["end_to_end_tps"]) == (0, None, None)


def test_cells_that_timed_different_prompts_have_no_ttft_next_to_each_other(run):
    """Cells take turns at reading: the median of one is over other prompts than that of the next."""
    last = len(run.header.cells) - 1
    turns = without_prefill_times(run, timed=lambda cell, answer: cell == last or answer % last == cell)
    *shared, own = cell_objects(turns)
    for item in shared:
        assert (item["num_ttfts"], item["ttft_s"], item["end_to_end_tps"]) == (0, None, None)
        # per prompt token it compares
        assert item["prefill_tps"] > 0
    # weights of its own: it timed every prompt
    assert own["num_ttfts"] == own["num_answers"]
    assert own["ttft_s"] is not None
    table = render_table(turns)
    assert "so each timed other prompts" in table
    row = next(line for line in table.splitlines() if line.startswith(shared[0]["cell"]))
    assert row.split()[3] == "–"


def test_the_caution_counts_answers_and_not_samples(run):
    """Three repeats, of which one was timed, are not all timed."""
    repeated = [dataclasses.replace(record, repeat=repeat) for record in run.records for repeat in range(3)]
    whole = dataclasses.replace(run, records=tuple(repeated))
    assert "TTFT is" not in render_table(whole)
    first = without_prefill_times(whole, timed=lambda cell, answer: answer % 3 == 0)
    num_answers = cell_objects(first)[0]["num_answers"]
    assert f"TTFT is over the {num_answers // 3} of {num_answers} answers" in render_table(first)


@pytest.mark.parametrize(
    ("mine", "theirs", "first"),
    [((1, 2), (1, 2), None), ((1, 2), (1, 3), 1), ((1,), (1, 2), 1), ((), (), None)],
)
def test_first_difference_is_an_index(mine, theirs, first):
    assert first_difference(mine, theirs) == first


def test_identity_counts_equal_answers_and_finds_the_first_difference(run):
    vanilla = run.header.cells[0].label
    same = token_identity(run, vanilla, vanilla)
    assert same.num_identical == same.num_samples > 0
    assert (same.first_difference, same.share_before) == (None, 1)
    index = next(
        i for i, r in enumerate(run.records) if r.cell == vanilla and r.trace and len(r.trace.token_ids) > 5
    )
    changed = run.records[index]
    other = [list(step.tokens) for step in changed.trace.steps]
    flat = [token for tokens in other for token in tokens]
    position = 3
    steps = (
        dataclasses.replace(changed.trace.steps[0], tokens=(*flat[:position], flat[position] + 1, *flat[4:])),
    )
    copy = dataclasses.replace(changed, cell="copy", trace=dataclasses.replace(changed.trace, steps=steps))
    identity = token_identity(dataclasses.replace(run, records=(*run.records, copy)), "copy", vanilla)
    assert (identity.num_samples, identity.num_identical, identity.first_difference) == (1, 0, 3)


def test_the_table_says_the_warnings_first_and_shows_every_cell(run):
    lines = render_table(run).splitlines()
    assert lines[0].startswith("! ")
    for cell in run.header.cells:
        assert any(line.startswith(cell.label) for line in lines)


def test_what_did_not_settle_and_what_was_drawn_is_said(run):
    warm = tuple(
        {"kind": "warmup", "cell": cell.label, "cold_s": 1.0, "passes_s": [1.0] * 6, "settled": index > 1}
        for index, cell in enumerate(run.header.cells)
    )
    rest = tuple(item for item in run.telemetry if item["kind"] != "warmup")
    restless = dataclasses.replace(run, telemetry=(*rest, *warm))
    table = render_table(restless, width=300)
    first, second = (cell.label for cell in run.header.cells[:2])
    assert (
        f"! warm-up did not settle in 2 of {len(run.header.cells)} cells ({first}, {second}): no three"
        in table
    )
    assert any(caution.title == "Unsettled" for caution in cautions(View(restless)))
    assert "warm-up did not settle" not in render_table(
        dataclasses.replace(run, telemetry=(*rest, *warm[2:]))
    )
    sampled = dataclasses.replace(run, header=dataclasses.replace(run.header, temperature=0.8))
    assert "two draws part by chance" in render_table(sampled)
    assert any("two draws part by chance" in caution.text for caution in cautions(View(sampled)))
    assert "two draws part by chance" not in render_table(run)


def test_only_the_baseline_is_once_its_own_speed(run):
    def ratios(of):
        # verdicts below the table begin with a label and a colon
        table = render_table(of, width=300)
        header = next(line for line in table.splitlines() if line.startswith("method"))
        end = header.index("vanilla [95 %]") + len("vanilla [95 %]")
        rows = {line.split()[0]: line[:end].split()[-1] for line in table.splitlines() if line[:end].split()}
        return {cell.label: rows[cell.label] for cell in of.header.cells}

    assert ratios(run)["vanilla"] == "1"
    cells = run.header.cells[1:]
    alone = dataclasses.replace(
        run,
        header=dataclasses.replace(run.header, cells=cells),
        records=tuple(record for record in run.records if record.cell != "vanilla"),
    )
    assert set(ratios(alone).values()) == {"–"}


def test_where_room_is_short_labels_fold_and_no_number_is_lost(run):
    wide = render_table(run, width=300).splitlines()
    header = next(line for line in wide if line.startswith("method")).rstrip()
    longest = max(len(cell.label) for cell in run.header.cells)
    narrow = render_table(run, width=len(header) - longest + 6).splitlines()
    row, narrow_row = (next(line for line in lines if line.startswith("vanil")) for lines in (wide, narrow))
    assert narrow_row.split()[1:] == row.split()[1:]


def test_a_run_with_nothing_measured_shows_dashes_not_zeros(run):
    empty = dataclasses.replace(run, records=(), scores=())
    text = render_table(empty)
    assert "Unfinished" in text
    rows = [line for line in text.splitlines() if line.startswith("vanilla")]
    assert "–" in rows[0]
    assert "0.0" not in rows[0]


def test_a_table_of_a_group_is_about_its_answers_alone(run):
    """Equal answers, costs of drafts and judging are those of the group; the run's time of judging is left out."""
    group = group_names(run.samples.values())[-1]
    assert group != ALL
    mine = {key for key, sample in run.samples.items() if in_group(sample, group)}
    label = "speculative[k=4]"

    def told(record):
        """Answers outside the group differ from vanilla's, and all their drafts are rejected."""
        if record.trace is None or record.cell != label or record.sample_id in mine:
            return record
        steps = tuple(
            dataclasses.replace(step, tokens=tuple(token + 1 for token in step.tokens), accepted=0)
            for step in record.trace.steps
        )
        return dataclasses.replace(record, trace=dataclasses.replace(record.trace, steps=steps))

    changed = dataclasses.replace(run, records=tuple(map(told, run.records)))
    of_group, of_all = render_table(changed, group=group, width=300), render_table(changed, width=300)
    num = sum(r.sample_id in mine for r in changed.answered(label))
    num_all = len(changed.answered(label))
    assert f"{num}/{num}" in next(line for line in of_group.splitlines() if line.startswith(label))
    assert f"{num}/{num_all}" in next(line for line in of_all.splitlines() if line.startswith(label))
    drafts = f"{label}: drafts accepted by place"
    own = next(line for line in of_group.splitlines() if line.startswith(drafts))
    assert own == next(
        line for line in render_table(run, group=group, width=300).splitlines() if line.startswith(drafts)
    )
    assert own != next(line for line in of_all.splitlines() if line.startswith(drafts))
    judged = dataclasses.replace(
        run, telemetry=({"kind": "fidelity", "seconds": 1.0, "num_distinct": 7, "num_answers": 9},)
    )
    assert "7 distinct answers of " in render_table(judged)
    assert "7 distinct answers of " not in render_table(judged, group=group)


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (200, ["speculative[k=4,draft=int8,batch=16]"]),
        (150, ["speculative[k=4,", "draft=int8,batch=16]"]),
        (60, ["speculative", "[k=4,", "draft=int8,", "batch=16]"]),
    ],
)
def test_a_label_breaks_between_its_settings_and_numbers_stay_whole(tmp_path, width, lines):
    label = "speculative[k=4,draft=int8,batch=16]"
    plain, drafting = cells()[0], cells()[2]
    drafting = dataclasses.replace(drafting, label=label)
    run = load_run(write_run(tmp_path / "run", (plain, drafting), tasks=TASKS[:1], per_task=8))
    rows = render_table(run, width=width).splitlines()
    first = next(number for number, line in enumerate(rows) if line.startswith("speculative"))
    assert [row[: max(map(len, lines))].rstrip() for row in rows[first : first + len(lines)]] == lines
    whole = next(line for line in render_table(run, width=300).splitlines() if line.startswith(label))
    assert rows[first].removeprefix(lines[0]).split() == whole.removeprefix(label).split()
    assert not any("…" in row for row in rows[: first + len(lines)])
