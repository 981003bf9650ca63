import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from native_fixtures import library_under_test, need_compiler

from hambench.errors import HambenchError, StoreError
from hambench.records import Cell, Sample
from hambench.runner.backend import backend_facts
from hambench.runner.generator import DecodingOptions, Generator, interleave_tasks, schedule
from hambench.runner.request import RunRequest
from hambench.runner.resume import refuse_other_instruction_set
from hambench.runner.start import resume_run, start_run
from hambench.runner.sweep import Sweep
from hambench.store import load_run


def cell(label):
    return Cell(method="vanilla", label=label, knobs={}, model="m", dtype="float32")


def sample(task, doc_id, prompt="p", **kwargs):
    return Sample(
        sample_id=f"s/{task}/{doc_id}",
        suite="s",
        task=task,
        category="c",
        doc_id=doc_id,
        prompt=prompt,
        stop=(),
        max_new_tokens=4,
        **kwargs,
    )


def request(tiny_model, rows, **kwargs):
    sweep = Sweep(
        model=str(tiny_model), methods=kwargs.pop("methods", ("vanilla", "prompt_lookup")), dtype="float32"
    )
    tasks = ("lcc", "multifieldqa_en")
    base = {"suite": "longbench", "tasks": tasks, "data": rows, "limit": 2, "max_new_tokens": 6}
    return RunRequest(sweep=sweep, **{**base, **kwargs})


def tokens_of(run):
    return {
        (record.cell, record.sample_id, record.repeat): record.trace.token_ids
        if record.trace
        else record.error
        for record in run.measured
    }


def test_cells_take_turns_at_going_first_and_tasks_take_turns():
    cells = [cell("a"), cell("b")]
    samples = [sample("x", 0), sample("x", 1), sample("y", 0)]
    jobs = [(job.cell.label, job.sample.sample_id, job.repeat) for job in schedule(cells, samples, 2)]
    assert jobs[:6] == [
        ("a", "s/x/0", 0),
        ("b", "s/x/0", 0),
        ("b", "s/y/0", 0),
        ("a", "s/y/0", 0),
        ("a", "s/x/1", 0),
        ("b", "s/x/1", 0),
    ]
    assert jobs[6:8] == [("b", "s/x/0", 1), ("a", "s/x/0", 1)]
    assert len(set(jobs)) == 12


def test_interleaving_loses_no_sample():
    samples = [sample("x", i) for i in range(3)] + [sample("y", 0)]
    assert sorted(s.sample_id for s in interleave_tasks(samples)) == sorted(s.sample_id for s in samples)


@pytest.fixture(scope="module")
def finished(tiny_model, rows, tmp_path_factory):
    return start_run(request(tiny_model, rows), tmp_path_factory.mktemp("runs") / "finished")


def test_a_run_has_every_record_scored(finished):
    assert finished.complete
    assert not [record.error for record in finished.measured if record.error]
    answered = {(record.cell, record.sample_id) for record in finished.measured}
    assert {(score.cell, score.sample_id) for score in finished.scores if score.primary} == answered


def test_a_samples_answers_are_judged_before_the_next_sample_is_asked(tiny_model, rows, tmp_path):
    """On the prompt that its cells have read: afterwards every prompt would be read again."""
    folder, judged = tmp_path / "run", []

    def look(job, num_done, num_jobs):
        path = folder / "fidelity.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        judged.append({json.loads(line)["sample_id"] for line in lines})

    run = start_run(request(tiny_model, rows), folder, progress=look)
    order = list(dict.fromkeys(record.sample_id for record in run.measured))
    assert len(order) == 4
    num_cells = len(run.header.cells)
    assert judged == [set(order[: index // num_cells]) for index in range(len(judged))]
    # nothing is left for afterwards
    assert sum(item["kind"] == "fidelity" for item in run.telemetry) == 1


def test_lossless_methods_give_the_same_tokens_in_a_run(finished):
    by_cell = {}
    for (label, sample_id, _), tokens in tokens_of(finished).items():
        by_cell.setdefault(label, {})[sample_id] = tokens
    assert by_cell["vanilla"] == by_cell["prompt_lookup"]


def test_the_header_says_what_a_reader_must_know(finished):
    header = finished.header
    notes = " ".join(map(str, header.notes))
    assert header.edition == "official"
    assert header.data_source == "folder"
    assert set(header.data_hashes) == {"lcc", "multifieldqa_en"}
    assert "Partial run" in notes
    assert len(str(header.model["sha256"])) == 64
    assert header.environment["torch"]
    assert {reading["kind"] for reading in finished.telemetry} >= {"warmup", "bandwidth"}


@pytest.mark.parametrize(
    ("changes", "is_partial"),
    [
        ({"limit": 2}, True),
        ({"limit": 3}, False),
        ({"limit": 3, "budget_s": 3600}, False),
        ({"limit": None}, False),
    ],
)
def test_a_run_is_called_partial_if_rows_were_left_out_and_not_because_they_might_have_been(
    changes, is_partial, tiny_model, rows, tmp_path
):
    """Each task has three rows."""
    run = start_run(request(tiny_model, rows, methods=("vanilla",), **changes), tmp_path / "run")
    assert len(run.samples) == (4 if is_partial else 6)
    assert ("partial" in {note.kind for note in run.header.notes}) == is_partial


def test_a_run_with_a_budget_is_partial_until_it_has_added_the_last_row(
    tiny_model, rows, tmp_path, monkeypatch
):
    monkeypatch.setattr("hambench.runner.budget.fit_budget", lambda rows, *_, **__: tuple(rows[:1]))
    told = []

    def look(job, num_done, num_jobs):
        run = load_run(tmp_path / "run")
        told.append((len(run.samples), any(note.kind == "partial" for note in run.header.notes)))

    asked = request(tiny_model, rows, methods=("vanilla",), limit=None, budget_s=3600)
    start_run(asked, tmp_path / "run", progress=look)
    assert told == [(num, num < 6) for num in range(1, 7)]


def test_a_resumed_run_equals_an_undisturbed_one(finished, tiny_model, rows, tmp_path):
    """The store is cut in the middle of a line, as a kill leaves it."""
    folder = tmp_path / "killed"
    start_run(request(tiny_model, rows), folder)
    lines = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "records.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:40])
    (folder / "scores.jsonl").unlink()
    resumed = resume_run(folder)
    assert tokens_of(resumed) == tokens_of(finished)
    assert {(s.cell, s.sample_id, s.metric, s.value) for s in resumed.scores} == {
        (s.cell, s.sample_id, s.metric, s.value) for s in finished.scores
    }


def test_resuming_a_finished_run_changes_nothing(tiny_model, rows, tmp_path):
    run = start_run(request(tiny_model, rows, methods=("vanilla",)), tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    resume_run(run.path)
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before


SLOW_RUN = """
import signal, time
from hambench.store import RunWriter
signal.signal(signal.SIGINT, signal.default_int_handler)
append = RunWriter.append_record
def slowed(self, record):
    append(self, record)
    time.sleep(0.3)
RunWriter.append_record = slowed
from hambench.cli import main
main()
"""
"""A run that a busy machine can't finish before it is killed, and that hears Ctrl-C: children of a background job of a
shell are started deaf to it."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "batch"), [(signal.SIGKILL, "1"), (signal.SIGINT, "1"), (signal.SIGKILL, "1,2")]
)
def test_a_killed_run_is_readable_and_can_be_finished(tiny_model, rows, tmp_path, how, batch):
    folder = tmp_path / "run"
    arguments = [
        "run",
        "--model",
        str(tiny_model),
        "--dtype",
        "float32",
        "--methods",
        "vanilla,prompt_lookup",
    ]
    arguments += [
        "--suite",
        "longbench",
        "--tasks",
        "lcc,multifieldqa_en",
        "--data",
        str(rows),
        "--repeats",
        "3",
    ]
    arguments += ["--no-report", "--batch", batch]
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, *arguments, "--out", str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    records = folder / "records.jsonl"
    deadline = time.monotonic() + 120
    while not (records.exists() and len(load_run(folder).measured) >= 3):
        assert child.poll() is None, child.stderr.read() if child.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(how)
    _, errors = child.communicate()
    unfinished = load_run(folder)
    assert 3 <= len(unfinished.measured) < unfinished.num_expected
    if how == signal.SIGINT:
        assert child.returncode == 130
        assert f"hambench run --resume {folder}" in errors
    finished = resume_run(folder)
    assert finished.complete
    assert {score.value is None for score in finished.scores} == {False}
    kept = tokens_of(unfinished)
    assert kept.items() <= tokens_of(finished).items()


def test_a_run_never_resumes_on_another_model(tiny_model, rows, tmp_path):
    run = start_run(request(tiny_model, rows, methods=("vanilla",)), tmp_path / "run")
    header = json.loads((run.path / "run.json").read_text())
    header["model"]["sha256"] = "f" * 64
    (run.path / "run.json").write_text(json.dumps(header))
    with pytest.raises(HambenchError, match="has changed since this run began"):
        resume_run(run.path)


def test_a_run_never_resumes_on_another_instruction_set(tiny_model, rows, tmp_path, monkeypatch):
    """Two sets may give other tokens, and a cell keeps to one."""
    need_compiler()

    def stop(job, done, of):
        raise KeyboardInterrupt

    sweep = Sweep(model=str(tiny_model), methods=("vanilla",), dtype="float32", kernels=("native",))
    asked = dataclasses.replace(request(tiny_model, rows), sweep=sweep)
    folder = tmp_path / "run"
    monkeypatch.setenv("HAMBENCH_CPU_ISA", "portable")
    with pytest.raises(KeyboardInterrupt):
        start_run(asked, folder, progress=stop)
    environment = json.loads((folder / "run.json").read_text())["environment"]
    environment["native_instruction_set"] = "avx1024"
    refuse = "kernels for avx1024 and would go on with those for portable.*set HAMBENCH_CPU_ISA=avx1024"
    header = dataclasses.replace(load_run(folder).header, environment=environment)
    with pytest.raises(HambenchError, match=refuse):
        refuse_other_instruction_set(header, backend_facts(["native"]))
    refuse_other_instruction_set(header, backend_facts(["reference"]))
    if len(library_under_test().instruction_sets()) > 1:
        monkeypatch.setenv("HAMBENCH_CPU_ISA", library_under_test().instruction_sets()[0])
        with pytest.raises(HambenchError, match="kernels for portable and would go on with those for"):
            resume_run(folder)
        monkeypatch.setenv("HAMBENCH_CPU_ISA", "portable")
    assert resume_run(folder).complete


def test_an_occupied_folder_is_refused_before_the_model_is_loaded(finished, rows, tmp_path):
    with pytest.raises(StoreError, match="already holds a run"):
        start_run(request(tmp_path / "no such model", rows), finished.path)


def test_a_prompt_beyond_the_context_becomes_a_record_with_its_error_and_the_run_goes_on(target):
    generator = Generator(target, [cell("vanilla")], DecodingOptions())
    from hambench.machine.load import CpuLoadMeter
    from hambench.runner.generator import Job

    long, short = sample("x", 0, "a" * 600), sample("x", 1, "abc")
    records = [generator.record(Job(cell("vanilla"), each, 0), CpuLoadMeter()) for each in (long, short)]
    assert "exceed the context of 512 tokens" in records[0].error
    assert records[0].trace is None
    assert records[1].error is None
    assert len(records[1].trace.token_ids) == 4


def test_a_suites_own_rule_cuts_the_middle_and_the_record_says_how_much(target):
    from hambench.machine.load import CpuLoadMeter
    from hambench.runner.generator import Job

    generator = Generator(target, [cell("vanilla")], DecodingOptions())
    job = Job(cell("vanilla"), sample("x", 0, "a" * 600, truncation="middle"), 0)
    record = generator.record(job, CpuLoadMeter())
    assert record.error is None
    assert record.truncated_tokens == 600 - 508


def test_repeats_of_a_sampled_answer_are_other_draws_and_of_a_greedy_one_the_same(target):
    from hambench.machine.load import CpuLoadMeter
    from hambench.runner.generator import Job

    for temperature, expected in ((0.0, 1), (1.0, 2)):
        generator = Generator(target, [cell("vanilla")], DecodingOptions(temperature=temperature))
        jobs = [Job(cell("vanilla"), sample("x", 0, "abcdef"), repeat) for repeat in (0, 1)]
        answers = {generator.record(job, CpuLoadMeter()).trace.token_ids for job in jobs}
        assert len(answers) == expected


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("limit", 0, "limit must be >= 1, got 0"),
        ("repeats", 0, "repeats must be >= 1, got 0"),
        ("max_new_tokens", 0, "max_new_tokens must be >= 1, got 0"),
        ("budget_s", 0.0, "budget must be > 0 seconds, got 0"),
        ("decoding", DecodingOptions(temperature=-1), "temperature must be >= 0"),
        ("decoding", DecodingOptions(seed=2**64), "seed must be a whole number"),
    ],
)
def test_impossible_requests_are_refused_at_once(field, value, message):
    with pytest.raises(HambenchError, match=message):
        RunRequest(sweep=Sweep(model="m"), suite="longbench", **{field: value})


def test_a_model_without_a_tokenizer_is_refused_with_the_mend(tiny_model, rows, tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((tiny_model / name).read_bytes())
    with pytest.raises(HambenchError, match=r"has no tokenizer.*--prompt-ids"):
        start_run(request(folder, rows), tmp_path / "run")


def test_a_rule_that_needs_sampling_is_refused_before_the_model_is_loaded(tiny_model, rows, monkeypatch):
    from hambench.runner.start import prepare

    methods = ("vanilla", "prompt_lookup[accept=typical,c=0.3]")
    greedy = request(tiny_model, rows, methods=methods)
    monkeypatch.setattr("hambench.models.target.load", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(HambenchError, match="accept='typical' needs sampling"):
        prepare(greedy)


def test_a_cell_that_remembers_answers_is_noted(tiny_model, rows):
    from hambench.runner.header import warnings_of
    from hambench.runner.start import prepare

    prepared = prepare(request(tiny_model, rows, methods=("vanilla", "suffix[cache=2]")))
    (note,) = [note for note in warnings_of(prepared) if note.kind == "order"]
    assert note.text.startswith("suffix[cache=2]: an answer's speed depends on the answers before it")
