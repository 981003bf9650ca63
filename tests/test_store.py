import dataclasses
import errno
import json
import os
import subprocess
import sys
import threading

import pytest

from hambench.errors import FolderTakenError, StoreError
from hambench.records import (
    SCHEMA_VERSION,
    Cell,
    Fidelity,
    GenerationTrace,
    RunHeader,
    Sample,
    SampleRecord,
    Score,
    StepRecord,
    answer_key,
)
from hambench.store import PROMPTS, RunWriter, list_runs, load_run, reading

CELL = Cell(method="vanilla", label="vanilla", knobs={}, model="m", dtype="float32")
SAMPLE = Sample(
    sample_id="s/t/0",
    suite="s",
    task="t",
    category="c",
    doc_id=0,
    prompt="p ü",
    stop=("\n",),
    max_new_tokens=3,
)


def header(**kwargs):
    base = {
        "schema_version": SCHEMA_VERSION,
        "run_id": "r",
        "created_at": "2026-01-01T00:00:00+00:00",
        "hambench_version": "0.1.0",
        "commit": None,
        "command": ("hambench", "run"),
        "suites": ("s",),
        "edition": "offline",
        "data_source": "offline edition",
        "data_hashes": {},
        "cells": (CELL,),
        "num_samples": 1,
        "limit": None,
        "repeats": 1,
        "seed": 0,
        "temperature": 0.0,
        "top_p": 1.0,
        "max_new_tokens": None,
        "model": {"name": "m"},
        "environment": {},
    }
    return RunHeader(**{**base, **kwargs})


def record(**kwargs):
    step = StepRecord(tokens=(1, 2), seconds=0.25, kv_slots=3, kv_bytes=12)
    trace = GenerationTrace(prompt_tokens=2, steps=(step,), finish="length")
    base = {"cell": "vanilla", "sample_id": "s/t/0", "prompt_hash": "h", "trace": trace, "text": "ab"}
    return SampleRecord(**{**base, **kwargs})


def score(value, **kwargs):
    return Score(cell="vanilla", sample_id="s/t/0", repeat=0, metric="acc", value=value, **kwargs)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "run"
    RunWriter.create(path, header(), [SAMPLE])
    return path


def test_what_is_written_is_read_back(folder):
    with RunWriter.resume(folder) as writer:
        writer.append_record(record())
        writer.append_scores([score(0.5)])
        writer.append_telemetry({"kind": "x", "value": 1})
    run = load_run(folder)
    assert run.samples == {"s/t/0": SAMPLE}
    assert run.records == (record(),)
    assert run.scores == (score(0.5),)
    assert run.telemetry == ({"kind": "x", "value": 1},)
    assert run.complete


def test_a_line_torn_by_a_kill_is_ignored_by_readers_and_cut_by_the_next_writer(folder):
    with RunWriter.resume(folder) as writer:
        writer.append_record(record())
    with (folder / "records.jsonl").open("ab") as file:
        file.write(b'{"cell":"vanilla","sam')
    assert len(load_run(folder).records) == 1
    with RunWriter.resume(folder) as writer:
        writer.append_record(record(repeat=1))
    assert [item.repeat for item in load_run(folder).records] == [0, 1]


def test_a_run_that_adds_a_sample_while_it_is_read_is_read_as_it_was(folder, monkeypatch):
    """``hambench show`` and ``report --watch`` read runs that go on."""
    read = reading._read_lines
    added = dataclasses.replace(SAMPLE, sample_id="s/t/1")
    with RunWriter.resume(folder) as writer:
        writer.append_record(record())
        writer.append_scores([score(1.0)])

        def meanwhile(path, *rest):
            yield from read(path, *rest)
            if path.name == PROMPTS:
                writer.append_samples([added])
                writer.append_record(record(sample_id=added.sample_id))
                writer.append_scores([dataclasses.replace(score(0.5), sample_id=added.sample_id)])

        with monkeypatch.context() as patched:
            patched.setattr(reading, "_read_lines", meanwhile)
            run = load_run(folder)
    assert [list(run.samples), len(run.records), run.scores] == [[SAMPLE.sample_id], 1, (score(1.0),)]
    later = load_run(folder)
    assert [list(later.samples), len(later.records), len(later.scores)] == [
        [SAMPLE.sample_id, added.sample_id],
        2,
        2,
    ]


def test_a_broken_line_in_the_middle_is_named(folder):
    (folder / "records.jsonl").write_bytes(b'{"cell": 3}\n')
    with pytest.raises(StoreError, match=r"records\.jsonl, line 1: .*cell"):
        load_run(folder)


def test_a_killed_writer_leaves_every_finished_record_readable(folder):
    """SIGKILL in the middle of a stream of appends: nothing that was acknowledged may be missing."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[2]); from test_store import record; "
        "from hambench.store import RunWriter\n"
        "with RunWriter.resume(__import__('pathlib').Path(sys.argv[1])) as writer:\n"
        "    for repeat in range(10_000):\n"
        "        writer.append_record(record(repeat=repeat)); print(repeat, flush=True)\n"
    )
    here = os.path.dirname(__file__)  # noqa: PTH120 - a plain string for the child's sys.path
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(folder), here], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(20)][-1]
    child.kill()
    child.wait()
    assert len(load_run(folder).records) > acknowledged
    with RunWriter.resume(folder):
        pass  # the dead process' lock does not outlive it


def test_a_newer_score_supersedes_an_older_one_and_both_are_kept(folder):
    with RunWriter.resume(folder) as writer:
        writer.append_scores([score(0.0, scorer="old")])
        writer.append_scores([score(1.0, scorer="new")])
    assert [item.scorer for item in load_run(folder).scores] == ["new"]
    assert len((folder / "scores.jsonl").read_text().splitlines()) == 2


def test_a_contaminated_record_is_superseded_by_its_re_measurement(folder):
    with RunWriter.resume(folder) as writer:
        writer.append_record(record(contaminated=True))
        writer.append_record(record(text="again"))
    assert [item.text for item in load_run(folder).measured] == ["again"]


def test_two_writers_at_once_are_refused(folder):
    failures = []

    def second():
        try:
            with RunWriter.resume(folder):
                pass
        except StoreError as error:
            failures.append(str(error))

    with RunWriter.resume(folder):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "another hambench process is writing" in failures[0]


@pytest.mark.parametrize("name", ["records", "scores", "telemetry", "fidelity"])
def test_a_second_writer_cuts_nothing_while_the_first_is_in_the_middle_of_a_line(folder, name):
    file = folder / f"{name}.jsonl"
    with RunWriter.resume(folder):
        file.write_bytes(b'{"half":')
        with pytest.raises(FolderTakenError), RunWriter.resume(folder):
            pass
        assert file.read_bytes() == b'{"half":'
    with RunWriter.resume(folder):
        assert file.read_bytes() == b""


def test_a_run_is_never_overwritten(folder):
    with pytest.raises(StoreError, match="already holds a run; resume it"):
        RunWriter.create(folder, header(), [SAMPLE])


def test_a_newer_schema_is_refused_with_the_mend(folder):
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**content, "schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(StoreError, match="upgrade hambench"):
        load_run(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema_version": "one"}', '{"schema_version": 1}'])
def test_a_broken_header_is_one_clear_error(folder, content):
    (folder / "run.json").write_text(content)
    with pytest.raises(StoreError, match=r"run\.json"):
        load_run(folder)


def test_a_folder_without_a_header_is_no_run(tmp_path):
    with pytest.raises(StoreError, match="is not a run folder"):
        load_run(tmp_path)
    assert list_runs(tmp_path) == []


def test_a_full_disk_is_one_clear_error_and_loses_nothing(folder, monkeypatch):
    with RunWriter.resume(folder) as writer:
        writer.append_record(record())
        real = os.fsync

        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"the disk is full; what was stored before is intact"):
            writer.append_record(record(repeat=1))
        monkeypatch.setattr(os, "fsync", real)
        writer.append_record(record(repeat=1))
    assert [item.repeat for item in load_run(folder).records] == [0, 1]


def test_not_a_number_is_stored_as_absent(folder):
    with RunWriter.resume(folder) as writer:
        writer.append_scores([score(float("nan"))])
    assert load_run(folder).scores[0].value is None


def test_a_stored_run_of_schema_version_1_still_loads_and_measures_the_same():
    """Made by hambench 0.1.0 with a tiny random model; later versions must go on reading it."""
    from pathlib import Path

    from hambench.analysis.measurements import measure_run

    run = load_run(Path(__file__).parent / "data" / "run-v1")
    assert (run.header.schema_version, run.complete, len(run.records), len(run.samples)) == (1, True, 4, 2)
    overall = {m.cell: m for m in measure_run(run) if m.group == "all"}
    assert overall["vanilla"].tokens_per_target_forward == 1
    assert overall["speculative[k=2]"].tokens_per_target_forward == 2.5
    assert overall["speculative[k=2]"].acceptance_rate == 1
    assert overall["vanilla"].accuracy is not None
    assert overall["vanilla"].accuracy.value == 0


def test_a_claimed_folder_keeps_others_out_before_there_is_a_header(tmp_path):
    folder, refusals = tmp_path / "runs" / "one", []

    def second():
        try:
            with RunWriter.claim(folder):
                pass
        except StoreError as error:
            refusals.append(str(error))

    with RunWriter.claim(folder) as writer:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        writer.begin(header(), [SAMPLE])
    assert "another hambench process is writing" in refusals[0]
    assert load_run(folder).samples == {"s/t/0": SAMPLE}


def test_a_claim_given_up_leaves_nothing_behind(tmp_path):
    def give_up():
        with RunWriter.claim(tmp_path / "runs" / "one"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        give_up()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file/below", "x" * 300])
def test_a_folder_that_can_not_be_made_is_one_error(tmp_path, name):
    (tmp_path / "file").write_text("a file where a folder should be")
    with pytest.raises(StoreError, match="can't write to"), RunWriter.claim(tmp_path / name):
        pass


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"cell": "other"}, "names no cell 'other'"),
        ({"sample_id": "s/t/9"}, "holds no sample 's/t/9'"),
        ({"trace": GenerationTrace(prompt_tokens=1, steps=(), finish="eos")}, "has no steps"),
        (
            {
                "trace": GenerationTrace(
                    prompt_tokens=1, steps=(StepRecord(tokens=(1,), seconds=None),) * 2, finish="eos"
                )
            },
            "step 1 has no seconds",
        ),
    ],
)
def test_a_record_that_does_not_belong_to_its_run_is_named_by_its_line(folder, odd, reason):
    with RunWriter.resume(folder) as writer:
        writer.append_records([record(), record(**odd)])
    with pytest.raises(StoreError, match=rf"records\.jsonl, line 2: .*{reason}"):
        load_run(folder)


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"sample_id": "s/t/9"}, "is one to 's/t/0', not to 's/t/9'"),
        ({"regrets": (0.0,), "logprobs": (-1.0,), "gaps": (1.0,)}, "1 regrets for an answer of 2 tokens"),
        ({"regrets": (0.0, -0.5)}, "regrets are differences to the best and must be >= 0, got -0.5"),
        ({"gaps": (-2.0, 1.0)}, "gaps are differences to the best and must be >= 0, got -2.0"),
        ({"logprobs": (-1.0, 0.5)}, "logprobs must be <= 0, got 0.5"),
        ({"gaps": (1.0,)}, "must have the same length"),
    ],
)
def test_a_judgement_that_does_not_fit_its_answer_is_named_by_its_line(folder, odd, reason):
    whole = {"regrets": (0.0, 0.5), "logprobs": (-1.0, 1e-6), "gaps": (0.0, 1.0)}
    line = {"sample_id": "s/t/0", "answer": answer_key(record()), **whole}
    with RunWriter.resume(folder) as writer:
        writer.append_record(record())
        writer.append_fidelity(
            [Fidelity(**line), Fidelity(**{**line, "answer": "of no record", "gaps": (0.0,) * 2})]
        )
    assert load_run(folder).judged(record()) == Fidelity(**line)
    with (folder / "fidelity.jsonl").open("a") as file:
        file.write(json.dumps({**line, **odd}) + "\n")
    with pytest.raises(StoreError, match=rf"fidelity\.jsonl, line 3: .*{reason}"):
        load_run(folder)


def test_a_score_of_another_run_is_named_by_its_line(folder):
    with RunWriter.resume(folder) as writer:
        writer.append_scores([Score(cell="other", sample_id="s/t/0", repeat=0, metric="acc", value=1.0)])
    with pytest.raises(StoreError, match=r"scores\.jsonl, line 1: .*'other'"):
        load_run(folder)


@pytest.mark.parametrize("cells", [[], [{}, {}]])
def test_a_header_needs_cells_each_with_a_label_of_its_own(folder, cells):
    content = json.loads((folder / "run.json").read_text())
    content["cells"] = [content["cells"][0] for _ in cells]
    (folder / "run.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match=r"run\.json names (no cells|a cell twice)"):
        load_run(folder)
