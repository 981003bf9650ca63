"""A run for other programs: a tidy table of steps, lm-eval's samples, a table for a paper, costs per token."""

import dataclasses
import hashlib
import json

import pandas as pd
import pytest
import synthetic
from cli_calls import invoke
from click.testing import CliRunner

import hambench
from hambench.analysis.cost import machine_tps
from hambench.analysis.exports.frames import steps_frame
from hambench.analysis.exports.lm_eval_samples import write_lm_eval_samples
from hambench.analysis.summary import cell_objects, render_table
from hambench.api import Results
from hambench.cli.export import command
from hambench.cli.report import command as report_command
from hambench.records import Cell, GenerationTrace, StepRecord
from hambench.reports import latex_table
from hambench.reports.page.cautions import cautions
from hambench.reports.sections.tables import summary_table
from hambench.reports.view import View
from hambench.run_notes import Note
from hambench.store import load_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    cells = synthetic.cells(confidences=(0.5,))
    return synthetic.write_run(tmp_path_factory.mktemp("runs") / "run", cells, per_task=3, error_rate=0.1)


@pytest.fixture(scope="module")
def run(folder):
    return load_run(folder)


def test_the_table_of_steps_has_every_step_and_every_failed_answer(run):
    frame = steps_frame(run)
    steps = sum(len(record.trace.steps) for record in run.measured if record.trace)
    failed = sum(record.trace is None for record in run.measured)
    assert failed > 0
    assert len(frame) == steps + failed
    assert frame["error"].notna().sum() == failed
    tokens = sum(len(record.trace.token_ids) for record in run.measured if record.trace)
    assert frame["num_tokens"].sum() == tokens
    # a step begins where the one before it ended
    answer = frame[(frame["sample_id"] == frame["sample_id"][0]) & (frame["cell"] == frame["cell"][0])]
    assert list(answer["position"]) == [0, *answer["num_tokens"].cumsum()[:-1]]
    assert frame["drafted"].dtype == "Int64"


@pytest.mark.parametrize(
    "arguments", [("-o", "steps.parquet"), ("-o", "steps.csv"), ("--lm-eval", "samples")]
)
def test_a_run_without_answers_exports_nothing_and_says_so(tmp_path, capsys, arguments):
    cells = synthetic.cells(confidences=(0.5,))
    folder = synthetic.write_run(tmp_path / "run", cells, per_task=1)
    (folder / "records.jsonl").write_bytes(b"")
    (folder / "scores.jsonl").write_bytes(b"")
    option, name = arguments
    code, _, said = invoke(capsys, "export", folder, option, tmp_path / name)
    assert (code, said.count("\n")) == (3, 1)
    assert "has no answers to write: nothing was measured" in said
    assert not (tmp_path / name).exists()


def test_exports_have_every_condition_of_a_cell_and_every_number_of_a_step(run):
    """A field that a later release adds to the records must be exported, or be left out here by name."""
    conditions = {field.name for field in dataclasses.fields(Cell)} - {"label", "own_sizes", "run"}
    numbers = {field.name for field in dataclasses.fields(StepRecord)} - {"tokens", "continue_probs"}
    frame = steps_frame(run)
    assert conditions | numbers <= set(frame.columns)
    assert conditions <= set(cell_objects(run)[0])
    assert conditions - {"knobs"} <= set(Results(run).cells.columns)
    first = next(record for record in run.measured if record.trace)
    told = {"relaxed": 2, "discarded": 3, "draft_seconds": 0.25, "share_s": 0.5, "in_round": 4}
    told |= {"round_kv_bytes": 5, "peak_kv_bytes": 6, "drafted": 7, "accepted": 8}
    steps = tuple(dataclasses.replace(step, **told) for step in first.trace.steps)
    changed = dataclasses.replace(first, trace=dataclasses.replace(first.trace, steps=steps))
    cells = tuple(dataclasses.replace(cell, batch=9, max_new_tokens=11) for cell in run.header.cells)
    one = dataclasses.replace(
        run, header=dataclasses.replace(run.header, cells=cells), records=(changed,), fidelity={}
    )
    row = steps_frame(one).iloc[0]
    assert {name: row[name] for name in told} == told
    assert (row["batch"], row["max_new_tokens"]) == (9, 11)
    assert cell_objects(dataclasses.replace(one, records=run.records))[0]["batch"] == 9


def test_samples_for_lm_eval_have_the_limit_that_their_cell_was_asked_with(run, tmp_path):
    limits = dict(zip((cell.label for cell in run.header.cells), (None, *range(5, 50)), strict=False))
    cells = tuple(dataclasses.replace(cell, max_new_tokens=limits[cell.label]) for cell in run.header.cells)
    limited = dataclasses.replace(run, header=dataclasses.replace(run.header, cells=cells))
    files = write_lm_eval_samples(limited, tmp_path / "out")
    own = {sample.doc_id: sample.max_new_tokens for sample in run.samples.values() if sample.task == "lcc"}
    for path in (path for path in files if "_lcc_" in path.name):
        label = next(
            cell.label for cell in cells if path.parent.name == cell.label.replace("[", "_").rstrip("]")
        )
        for line in map(json.loads, path.read_text().splitlines()):
            asked = line["arguments"]["gen_args_0"]["arg_1"]["max_gen_toks"]
            assert asked == (limits[label] or own[line["doc_id"]])


def test_parquet_and_csv_hold_the_same(folder, run, tmp_path):
    for name in ("steps.parquet", "steps.csv"):
        result = CliRunner().invoke(command, [str(folder), "-o", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
    parquet, csv = pd.read_parquet(tmp_path / "steps.parquet"), pd.read_csv(tmp_path / "steps.csv")
    assert list(parquet.columns) == list(csv.columns)
    assert len(parquet) == len(csv) == len(steps_frame(run))
    assert parquet["seconds"].sum() == pytest.approx(csv["seconds"].sum())
    ids = next(record for record in run.measured if record.trace).trace.steps[0].tokens
    assert tuple(parquet["token_ids"][0]) == ids
    assert csv["token_ids"][0] == " ".join(map(str, ids))


def test_another_ending_and_no_target_are_refused(folder, tmp_path):
    result = CliRunner().invoke(command, [str(folder), "-o", str(tmp_path / "steps.xlsx")])
    assert "must end in .parquet or .csv" in str(result.exception)
    assert "name a file to write" in str(CliRunner().invoke(command, [str(folder)]).exception)
    assert list(tmp_path.iterdir()) == []


def test_samples_have_lm_evals_keys_and_its_hashes(folder, run, tmp_path):
    result = CliRunner().invoke(command, [str(folder), "--lm-eval", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    files = sorted((tmp_path / "out").rglob("*.jsonl"))
    tasks = {sample.task for sample in run.samples.values()}
    assert len(files) == len(tasks) * len(run.header.cells)
    assert all(path.name.startswith("samples_") for path in files)
    lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert len(lines) == sum(record.text is not None for record in run.measured if record.repeat == 0)
    keys = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"}
    keys |= {"doc_hash", "prompt_hash", "target_hash"}
    for line in lines:
        assert keys <= set(line)
        assert set(line["metrics"]) <= set(line)
        prompt = line["arguments"]["gen_args_0"]["arg_0"]
        assert line["prompt_hash"] == hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
        assert len(line["filtered_resps"]) == len(line["resps"]) == 1


def test_open_run_gives_frames(folder, run):
    results = hambench.open_run(folder)
    assert len(results.cells) == len(run.header.cells)
    assert len(results.samples) == len(run.measured)
    assert len(results.steps) == len(steps_frame(run))


def test_the_table_for_a_paper_is_latex_with_the_reports_numbers(folder, run):
    text = latex_table(run)
    assert text.startswith("\\begin{table}")
    for rule in ("\\toprule", "\\midrule", "\\bottomrule", "\\end{table}"):
        assert rule in text
    # nothing that LaTeX would trip over
    assert not set("×Δ−–%_&") & set(text.replace("\\%", "").replace("\\_", "").replace(" & ", " ")) - set("_")
    body = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert len(body) == 1 + len(run.header.cells)
    table = summary_table(View(run))
    place = [column.title for column in table.columns].index("TPS")
    assert table.rows[0][place].text in body[1]
    result = CliRunner().invoke(report_command, [str(folder), "-o", str(folder / "r.html"), "--latex", "-"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == text.strip()


def test_the_table_for_a_paper_carries_the_reports_cautions(run):
    notes = (
        *run.header.notes,
        Note("missing", "Missing task: no rows of `a_b` with --data"),
        Note("cpu", "on a CPU"),
    )
    partial = dataclasses.replace(
        run, header=dataclasses.replace(run.header, notes=notes), records=run.records[:-3]
    )
    caption = next(line for line in latex_table(partial).splitlines() if line.startswith("\\caption"))
    shown = caption.replace("\\", "")
    assert "Simulated: times and answers were invented by a test, nothing was measured." in shown
    assert "Partial run: " in shown
    assert "finish it with hambench run -{}-resume." in shown
    assert "Missing task: no rows of a_b with -{}-data." in shown
    assert "CPU, " in shown.partition("Cautions: ")[2]
    for caution in cautions(View(partial)):
        assert caution.title.lower() in shown.lower()
    assert "Partial run" not in latex_table(run)


def test_a_price_adds_a_column_everywhere_and_only_then(run):
    assert "$/M tok" not in render_table(run)
    assert cell_objects(run)[0]["dollars_per_million_tokens"] is None
    priced = run.priced(3.6)
    assert "$/M tok" in render_table(priced)
    (first, *_), table = cell_objects(priced), summary_table(View(priced))
    assert first["dollars_per_million_tokens"] == pytest.approx(1000 / first["machine_tps"])
    place = [column.title for column in table.columns].index("Cost")
    assert table.rows[0][place].value == pytest.approx(first["dollars_per_million_tokens"])
    assert "Cost" in latex_table(priced)
    assert run.priced(None) is run


def test_the_machine_is_busy_for_prefills_too_and_shares_a_batch():
    steps = (StepRecord(tokens=(1,), seconds=2.0), StepRecord(tokens=(2, 3), seconds=1.0))
    alone = GenerationTrace(prompt_tokens=1, steps=steps, finish="length")
    assert machine_tps([alone]) == pytest.approx(3 / 3.0)
    shared = dataclasses.replace(steps[1], share_s=0.25)
    batched = dataclasses.replace(alone, steps=(steps[0], shared))
    assert machine_tps([batched]) == pytest.approx(3 / 2.25)
    untimed = dataclasses.replace(alone, steps=(dataclasses.replace(steps[0], seconds=None), steps[1]))
    assert machine_tps([untimed]) is None
    # another cell read this prompt: it counts as one of these tokens does
    longer = dataclasses.replace(untimed, prompt_tokens=3)
    assert machine_tps([alone, longer]) == pytest.approx(6 / (2.0 + 1.0 + 3 * 2.0 + 1.0))
