"""``hambench data``, ``hambench score`` and ``hambench bench suites`` from the outside."""

import dataclasses
import json

import pytest
from cli_calls import invoke as call
from click.testing import CliRunner

from hambench.cli import data, score
from hambench.cli.bench import suites as bench_suites
from hambench.errors import DataError, HambenchError, UnknownNameError
from hambench.records import Cell, RunHeader, SampleRecord
from hambench.store import RunWriter, load_run
from hambench.suites import CaptureRequest, capture
from hambench.suites import score as score_answers
from hambench.suites.listing import describe, list_suites


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from hambench.suites import sources

    sources.hub_reachable.cache_clear()
    yield
    sources.hub_reachable.cache_clear()


@pytest.fixture
def folder(tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "gsm8k.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "#### 2"}) + "\n")
    return rows


def invoke(command, *arguments):
    return CliRunner().invoke(command, [str(each) for each in arguments], catch_exceptions=False)


def lines(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_list_names_every_task_with_its_source_and_what_is_missing(folder):
    rows = {row["task"]: row for row in lines(invoke(data.command, "list", "--data", folder, "--json"))}
    assert "gsm8k.jsonl (1 rows)" in rows["gsm8k_cot_llama"]["source"]
    assert rows["gsm8k_cot_llama"]["missing"] == ""
    assert "no input_data.jsonl" in rows["ifeval"]["missing"]
    assert rows["lcc"]["offline"] == "stdlib-next-line"
    assert rows["lcc"]["metric"] == "edit similarity"
    assert len(rows) > 55


def test_without_a_hub_official_tasks_are_missing_and_built_ones_are_not():
    rows = {(row["suite"], row["task"]): row for row in list_suites()}
    assert "can't be reached" in rows["longbench", "lcc"]["missing"]
    assert rows["offline-long", "stdlib-next-line"]["missing"] == ""
    with pytest.raises(UnknownNameError, match="did you mean longbench"):
        describe("longbenhc")


def test_verify_counts_rows_and_fails_on_a_part(folder):
    with pytest.raises(DataError, match=r"1 of 1 tasks are incomplete: gsm8k_cot_llama"):
        invoke(data.command, "verify", "--data", folder, "--tasks", "gsm8k_cot_llama", "--json")


def test_verify_passes_complete_data(shared_data):
    result = invoke(
        data.command, "verify", "--data", shared_data, "--tasks", "gsm8k_cot_llama,mbpp_instruct", "--json"
    )
    assert [(row["rows"], row["problem"], len(row["sha256"])) for row in lines(result)] == [
        (1319, "", 64),
        (500, "", 64),
    ]


def test_verify_of_the_offline_edition_is_complete():
    result = invoke(data.command, "verify", "--suite", "offline-long", "--json")
    assert {row["problem"] for row in lines(result)} == {""}


def test_fetch_without_a_hub_says_what_could_not_be_had(monkeypatch):
    import datasets

    def refuse(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match="1 of 1 tasks could not be fetched: lcc"):
        invoke(data.command, "fetch", "--tasks", "lcc")
    with pytest.raises(UnknownNameError, match="did you mean lcc"):
        invoke(data.command, "fetch", "--tasks", "lccc")


@pytest.fixture
def run(tmp_path, folder):
    """A stored run of one answered problem, scored by an older scorer."""
    captured = capture(CaptureRequest("standard", tasks=("gsm8k_cot_llama",), data=folder))
    (sample,) = captured.samples
    cell = Cell(method="vanilla", label="vanilla", knobs={}, model="m", dtype="float32")
    header = RunHeader(**_header_values(captured, cell))
    record = SampleRecord(
        cell="vanilla",
        sample_id=sample.sample_id,
        prompt_hash=sample.prompt_hash,
        text="The final answer is 2",
    )
    scores = score_answers(captured.spec, {sample.sample_id: sample}, [record])
    path = tmp_path / "run"
    with RunWriter.create(path, header, captured.samples) as writer:
        writer.append_record(record)
        writer.append_scores(dataclasses.replace(each, value=0.5, scorer="lm-eval 0.0.1") for each in scores)
    return path


def _header_values(captured, cell):
    given = {
        "schema_version": 1,
        "run_id": "r",
        "created_at": "2026-01-01T00:00:00Z",
        "hambench_version": "0",
        "suites": (captured.suite,),
        "edition": captured.edition,
        "data_source": captured.data_source,
        "data_hashes": captured.data_hashes,
        "cells": (cell,),
        "num_samples": 1,
        "repeats": 1,
        "suite_spec": captured.spec,
    }
    # whatever else a header needs is of no interest here
    empty = {"str": "", "int": 0, "float": 0.0, "bool": False, "tuple": (), "dict": {}}
    for field in dataclasses.fields(RunHeader):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in given:
            kind = str(field.type)
            given[field.name] = None if "None" in kind.split("[")[0] else empty[kind.split("[")[0]]
    return given


def test_scoring_again_replaces_scores_for_readers_and_keeps_the_old_ones_in_the_file(run):
    result = invoke(score.command, run, "--json")
    (found,) = lines(result)
    assert (found["changed"], found["stored_by"]) == (2, ["lm-eval 0.0.1"])
    loaded = load_run(run)
    assert {each.value for each in loaded.scores} == {1.0}
    assert all(each.scorer != "lm-eval 0.0.1" for each in loaded.scores)
    assert (run / "scores.jsonl").read_text().count("lm-eval 0.0.1") == 2
    (again,) = lines(invoke(score.command, run, "--json"))
    assert again["changed"] == 0


def test_a_dry_run_tells_and_writes_nothing(run):
    before = (run / "scores.jsonl").read_bytes()
    result = invoke(score.command, run, "--dry-run")
    assert "2 changed" in result.stdout
    assert "0.5 → 1.0" in result.stdout
    assert (run / "scores.jsonl").read_bytes() == before


def test_a_score_that_can_not_be_given_now_does_not_take_the_place_of_one_that_could(run, monkeypatch):
    from hambench import suites

    def failing(*args, **kwargs):
        return [dataclasses.replace(each, value=None, error="off") for each in load_run(run).scores]

    monkeypatch.setattr(suites, "score", failing)
    invoke(score.command, run)
    assert {each.value for each in load_run(run).scores} == {0.5}


def test_a_run_without_scores_says_that_there_is_nothing_to_score(run):
    header = json.loads((run / "run.json").read_text())
    header["suite_spec"] = {}
    (run / "run.json").write_text(json.dumps(header))
    with pytest.raises(HambenchError, match="nothing to score"):
        invoke(score.command, run)


def change_header(run, change):
    header = json.loads((run / "run.json").read_text())
    change(header)
    (run / "run.json").write_text(json.dumps(header))


def test_prompts_of_ones_own_without_a_metric_say_that_there_is_nothing_to_score(run, capsys):
    change_header(run, lambda header: header["suite_spec"].update(asks_accuracy=False))
    before = (run / "scores.jsonl").read_bytes()
    code, _, said = call(capsys, "score", run)
    assert (code, said) == (
        2,
        f"hambench: {run} has nothing to score: no row of its prompts has a reference and a metric\n",
    )
    assert (run / "scores.jsonl").read_bytes() == before


def test_a_run_without_answers_says_that_nothing_was_measured(run, capsys):
    (run / "records.jsonl").write_bytes(b"")
    (run / "scores.jsonl").write_bytes(b"")
    assert call(capsys, "score", run)[0] == 3


def test_a_task_that_names_no_scorer_is_refused_where_it_is_scored_and_shown_elsewhere(run, capsys):
    change_header(run, lambda header: header["suite_spec"]["tasks"]["gsm8k_cot_llama"].pop("config"))
    code, shown, _ = call(capsys, "show", run)
    assert code == 0
    assert "vanilla" in shown
    code, _, said = call(capsys, "score", run)
    assert (code, said.count("\n")) == (2, 1)
    assert "the task 'gsm8k_cot_llama' of this run can't be scored: its config in run.json must name" in said
    loaded = load_run(run)
    scores = score_answers(loaded.header.suite_spec, loaded.samples, loaded.measured)
    assert {each.value for each in scores} == {None}
    assert "must name a task file of lm-eval" in scores[0].error


def test_why_scores_failed_is_a_line(run, monkeypatch, capsys):
    from hambench import suites

    def failing(*args, **kwargs):
        return [dataclasses.replace(each, value=None, error="no\nscorer") for each in load_run(run).scores]

    monkeypatch.setattr(suites, "score", failing)
    assert "  2 scores failed: no scorer\n" in call(capsys, "score", run)[1]


def test_bench_suites_measures_in_a_fresh_process():
    result = invoke(
        bench_suites.command, "--suite", "offline-long", "--limit", "1", "--repeats", "1", "--json"
    )
    (found,) = lines(result)
    assert (found["num_samples"], found["not_scored"]) == (8, 0)
    assert found["total_s"] == pytest.approx(found["capture_s"] + found["score_s"])
    assert found["budget_s"] == pytest.approx(3.0 + 0.005 * 8)
