"""A run that is finished later: the same run, and not one that the options next to --resume would have been."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from cli_calls import invoke
from fakes import TINY_SHAPE, save_tiny_model
from fuzz_effort import examples

from hambench.store import load_run


def cut(folder, num_records):
    """The run as a kill after so many records would have left it."""
    file = folder / "records.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:num_records]))
    (folder / "scores.jsonl").unlink(missing_ok=True)


@pytest.fixture
def options(tiny_model, rows):
    return (
        *("--model", tiny_model, "--dtype", "float32", "--suite", "longbench", "--data", rows, "--tasks"),
        *("multifieldqa_en", "--methods", "vanilla", "--max-new-tokens", "3", "--no-report"),
    )


@pytest.fixture
def begun(capsys, options, tmp_path):
    folder = tmp_path / "run"
    code, _, err = invoke(capsys, "run", *options, "--out", folder)
    assert code == 0, err
    cut(folder, 1)
    return folder


@pytest.mark.parametrize(
    "other",
    [
        ("--limit", "1"),
        ("--temperature", "1.5"),
        ("--methods", "hamburger"),
        ("--suite", "nosuchsuite"),
        ("--budget", "xyz"),
        ("--seed", "7"),
        ("--dtype", "bfloat16"),
        ("--out", "elsewhere"),
        ("--max-new-tokens", "9"),
        ("--ignore-eos",),
    ],
)
def test_an_option_of_another_run_is_named_and_nothing_is_done(capsys, begun, other):
    before = (begun / "records.jsonl").read_bytes()
    code, _, err = invoke(capsys, "run", "--resume", begun, *other, "--no-report")
    assert code == 2
    assert f"leave out {other[0]}, or start a new run" in err
    assert len(err.strip().splitlines()) == 1
    assert (begun / "records.jsonl").read_bytes() == before


def test_options_of_a_sweep_file_count_too(capsys, begun, tmp_path):
    (tmp_path / "sweep.yaml").write_text("limit: 1\ntemperature: 0.5\n")
    code, _, err = invoke(capsys, "run", "--resume", begun, "--config", tmp_path / "sweep.yaml")
    assert code == 2
    assert "--limit" in err
    assert "--temperature" in err


def test_what_the_run_is_anyway_may_be_said_again(capsys, begun, tiny_model):
    same = ("--model", tiny_model, "--dtype", "float32", "--seed", "0", "--max-new-tokens", "3")
    code, _, err = invoke(capsys, "run", "--resume", begun, *same, "--suite", "longbench", "--no-report")
    assert code == 0, err
    assert load_run(begun).complete


def test_versions_that_changed_are_said_and_kept(capsys, begun):
    content = json.loads((begun / "run.json").read_text())
    content["environment"]["torch"] = "2.0.0"
    content["hambench_version"] = "0.0.1"
    (begun / "run.json").write_text(json.dumps(content))
    code, _, err = invoke(capsys, "run", "--resume", begun, "--no-report")
    assert code == 0
    assert "torch 2.0.0 → " in err
    assert "hambench 0.0.1 → " in err
    (kept,) = [reading for reading in load_run(begun).telemetry if reading["kind"] == "resumed"]
    assert set(kept["changed"]) >= {"torch", "hambench"}


def test_other_draft_weights_are_refused(capsys, tmp_path, options):
    draft = save_tiny_model(
        tmp_path / "draft", dataclasses.replace(TINY_SHAPE, max_positions=8192, num_layers=2)
    )
    sweep = [*options]
    sweep[sweep.index("vanilla")] = f"speculative[draft={draft},k=2]"
    folder = tmp_path / "run"
    code, _, err = invoke(capsys, "run", *sweep, "--out", folder)
    assert code == 0, err
    assert list(load_run(folder).header.weights) == [f"draft {draft}"]
    cut(folder, 1)
    save_tiny_model(draft, dataclasses.replace(TINY_SHAPE, max_positions=8192, num_layers=2), seed=9)
    code, _, err = invoke(capsys, "run", "--resume", folder, "--no-report")
    assert code == 2
    assert f"draft {draft}: the weights have changed since this run began" in err
    assert len(load_run(folder).measured) == 1


def outcome(folder):
    """All that a run says but times and the machine's state."""
    run = load_run(folder)
    return {
        (record.cell, record.sample_id, record.repeat): (
            record.trace.token_ids,
            record.trace.finish,
            record.text,
            record.step_texts,
            [
                (step.drafted, step.accepted, step.target_forwards, step.kv_slots, step.kv_bytes)
                for step in record.trace.steps
            ],
        )
        for record in run.measured
    }, {(s.cell, s.sample_id, s.repeat, s.metric): s.value for s in run.scores}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_killed_at_random_moments_equals_an_undisturbed_one(tmp_path, options):
    """SIGKILL has no handler: whatever was on the disk is all there is to go on."""
    sweep = [str(option) for option in options]
    sweep[sweep.index("vanilla")] = "vanilla,speculative[k=2],prompt_lookup"
    sweep[sweep.index("multifieldqa_en")] = "multifieldqa_en,lcc"
    sweep[sweep.index("--max-new-tokens") + 1] = "12"
    sweep += ["--temperature", "0.8", "--repeats", "12", "--seed", "11"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "hambench", "run", *arguments],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    whole = start(*sweep, "--out", str(tmp_path / "whole"))
    _, err = whole.communicate()
    assert whole.returncode == 0, err
    folder, moments = tmp_path / "killed", random.Random(1)
    records = folder / "records.jsonl"
    expected = load_run(tmp_path / "whole").num_expected
    interrupted = []
    # 25 with HAMBENCH_FUZZ=10: each kill costs a start of the interpreter, torch included
    for kill in range(examples(25)):
        arguments = ("--resume", str(folder), "--no-report") if (folder / "run.json").exists() else None
        process = start(*(arguments or (*sweep, "--out", str(folder))))
        before = records.stat().st_size if records.exists() else 0
        # half of them at any moment, loading included; half once it has written again, so that the run gets on
        deadline = time.monotonic() + 300
        while kill % 2 and process.poll() is None and time.monotonic() < deadline:
            if records.exists() and records.stat().st_size > before:
                break
            time.sleep(0.005)
        time.sleep(moments.random() * (0.03 if kill % 2 else 3))
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        done = load_run(folder).measured if records.exists() else ()
        assert len({(r.cell, r.sample_id, r.repeat) for r in done}) == len(done)
        assert len(done) <= expected
        if 0 < len(done) < expected:
            interrupted.append(len(done))
        elif len(done) == expected:
            # too fast to be caught again: what is left is to see that the last one adds nothing
            break
        if kill % 2:
            assert process.returncode == -signal.SIGKILL, err
            assert records.stat().st_size > before, "nothing was written before the kill"
    # a fast machine may end the run between two kills; one that always does has not been killed
    assert len(interrupted) >= examples(25) // 2, f"records after each kill in the middle: {interrupted}"
    last = start(
        *(("--resume", str(folder), "--no-report") if records.exists() else (*sweep, "--out", str(folder)))
    )
    _, err = last.communicate()
    assert last.returncode == 0, err
    assert outcome(folder) == outcome(tmp_path / "whole")
