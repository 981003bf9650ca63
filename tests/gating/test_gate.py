"""What a call of the gate runs, refuses and says; and another version of the code beside this one."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from hambench.cli.calibrate import command as calibrate_command
from hambench.cli.gate import command as gate_command
from hambench.errors import HambenchError, IncompleteError
from hambench.gating import checkout, gate
from hambench.gating.blocks import Block
from hambench.gating.checkout import Code, checked_out, same_dependencies
from hambench.gating.checks import CrashedError
from hambench.gating.config import ExactGate, GateConfig, SpeedGate
from hambench.gating.gate import GateRequest, calibrate, run_gates, speed_pairs
from hambench.gating.noise import load_calibration
from hambench.gating.worker_process import Turn
from hambench.records import GenerationTrace, StepRecord

ROOT = Path(__file__).resolve().parents[2]
TOY = SpeedGate(model="toy", dtype="float32", methods=("vanilla", "prompt_lookup"), blocks=6)


def request(root, **changes):
    base = GateRequest(config=GateConfig(exact=ExactGate(baseline="x.json"), speed=TOY), root=root)
    return replace(base, **changes)


def test_a_kind_that_is_not_declared_is_refused(tmp_path):
    with pytest.raises(HambenchError, match=r"no \[gate.accuracy\]"):
        run_gates(request(tmp_path, only=("accuracy",)))


def test_a_speed_gate_without_a_base_is_refused_rather_than_skipped(tmp_path):
    with pytest.raises(HambenchError, match="--base-ref"):
        run_gates(request(tmp_path, only=("speed",)))
    with pytest.raises(HambenchError, match="--base-ref"):
        run_gates(request(tmp_path, config=GateConfig(speed=TOY)))


def test_no_gate_at_all_is_incomplete(tmp_path):
    with pytest.raises(IncompleteError):
        run_gates(request(tmp_path, config=GateConfig()))


def test_a_declared_gate_that_could_not_run_here_is_named(tmp_path, monkeypatch):
    def counted(*args):
        from hambench.gating.checks import Outcome

        return Outcome(title="t", base="b", head="h", checks=())

    monkeypatch.setattr(gate, "exact_gate", counted)
    assert any("speed" in note and "--base-ref" in note for note in run_gates(request(tmp_path)).notes)


def test_base_ref_pairs_every_method_with_itself_in_the_other_version(tmp_path):
    base = Code(name="main", commit="c", python="/other/python", package=Path("/other/hambench"))
    pairs = speed_pairs(TOY, request(tmp_path), base)
    assert [pair.label for pair in pairs] == ["vanilla", "prompt_lookup"]
    for pair in pairs:
        assert pair.base.cell == pair.head.cell
        assert (pair.base.python, pair.base.code) == ("/other/python", Path("/other/hambench"))
        assert pair.head.python != pair.base.python


def test_base_method_pairs_two_methods_of_this_code(tmp_path):
    ways = {"base_method": "vanilla", "head_method": "prompt_lookup"}
    (pair,) = speed_pairs(TOY, request(tmp_path, **ways), None)
    assert pair.label == "prompt_lookup against vanilla"
    assert (pair.base.cell.label, pair.head.cell.label) == ("vanilla", "prompt_lookup")
    (same,) = speed_pairs(TOY, request(tmp_path, base_method="vanilla"), None)
    assert same.base == same.head


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--head", "vanilla"], "--head METHOD needs --base METHOD"),
        (["--base-ref", "main", "--base", "vanilla"], "give one of them"),
        (["--only", "speed", "--base", "vanilla", "--blocks", "3"], "blocks must be 6 to"),
        (["--only", "speed", "--base-ref", "no-such-commit", "--blocks", "3"], "blocks must be 6 to"),
        (["--only", "speed", "--base", "vanilla", "--threshold", "7"], "threshold must be between"),
        (["--only", "speed", "--base", "vanila"], "vanilla"),
    ],
)
def test_wrong_words_are_answered_with_what_would_be_right(tmp_path, words, message):
    (tmp_path / "hambench.toml").write_text('[gate.speed]\nmodel = "toy"\ndtype = "float32"\n')
    result = CliRunner().invoke(gate_command, ["--config", str(tmp_path / "hambench.toml"), *words])
    assert isinstance(result.exception, HambenchError)
    assert message in str(result.exception)


def blocks(spread, *, number=6, seconds=1.0):
    """Blocks of which every second one is so much slower on one side."""

    def turn(side, each):
        steps = tuple(StepRecord(tokens=(1,), seconds=each) for _ in range(5))
        return Turn(side=side, prompt=0, trace=GenerationTrace(prompt_tokens=1, steps=steps, finish="length"))

    return [
        Block(number=i, turns=(turn("base", seconds), turn("head", seconds * (1 + spread * (i % 2)))))
        for i in range(number)
    ]


def test_calibration_keeps_the_spread_of_blocks_that_measured_the_same_twice():
    quiet = calibrate(TOY, "vanilla", measure=lambda *_: blocks(0.001))
    noisy = calibrate(TOY, "vanilla", measure=lambda *_: blocks(0.2))
    assert quiet.floor(10) < 0.01 < 0.05 < noisy.floor(10)
    assert noisy.floor(24) < noisy.floor(6)
    assert noisy.method == "vanilla"


def test_a_calibration_that_measured_nothing_is_incomplete():
    with pytest.raises(IncompleteError):
        calibrate(TOY, "vanilla", measure=lambda *_: blocks(0.0, seconds=0.0))


def test_a_gate_below_the_calibrated_floor_is_refused_and_above_it_says_the_floor(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "run_blocks", lambda *args, **kwargs: blocks(0.2))
    noise = tmp_path / "noise"
    (tmp_path / "hambench.toml").write_text('[gate.speed]\nmodel = "toy"\ndtype = "float32"\nblocks = 6\n')
    words = ["--config", str(tmp_path / "hambench.toml"), "--noise", str(noise)]
    result = CliRunner().invoke(calibrate_command, words)
    assert result.exit_code == 0, result.output
    assert "noise floor with 10 blocks" in result.output
    assert (
        load_calibration(noise, machine=gate.machine_id(), model="toy", dtype="float32", kernels="auto")
        is not None
    )
    refused = CliRunner().invoke(gate_command, [*words, "--base", "vanilla", "--threshold", "0.01"])
    assert "below this machine's noise floor" in str(refused.exception)


def test_a_calibration_whose_processes_die_is_code_5(tmp_path, monkeypatch):
    def die(*args, **kwargs):
        raise CrashedError("vanilla: killed by signal 9")

    monkeypatch.setattr(gate, "run_blocks", die)
    result = CliRunner().invoke(calibrate_command, ["--model", "toy", "--noise", str(tmp_path)])
    assert result.exit_code == 5


def test_dependencies_are_compared_as_sets_and_a_missing_project_is_named(tmp_path):
    for name, listed in (("a", '["x>=1", "y"]'), ("b", '["y", "x>=1"]'), ("c", '["x>=2", "y"]')):
        (tmp_path / name).write_text(f"[project]\nname = 'p'\ndependencies = {listed}\n")
    assert same_dependencies(tmp_path / "a", tmp_path / "b")
    assert not same_dependencies(tmp_path / "a", tmp_path / "c")
    with pytest.raises(HambenchError, match="pyproject"):
        same_dependencies(tmp_path / "a", tmp_path / "none")


def test_dependencies_are_read_whatever_mark_the_file_begins_with(tmp_path):
    plain, marked = tmp_path / "plain", tmp_path / "marked"
    plain.write_text("[project]\ndependencies = ['x']\n")
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert same_dependencies(plain, marked)


@pytest.mark.parametrize("where", ["bench", "bench/tests", "."])
def test_a_project_may_be_a_folder_of_a_bigger_repository(tmp_path, monkeypatch, where):
    installed = []

    def install(tree, project, environment):
        installed.append((tree.name, project, (tree / "pyproject.toml").read_text()))
        return sys.executable

    home = tmp_path if where == "." else tmp_path / "bench"
    (tmp_path / where).mkdir(exist_ok=True, parents=True)
    (home / "pyproject.toml").write_text("committed")
    git = ("git", "-C", str(tmp_path), "-c", "user.name=me", "-c", "user.email=me@example.com")
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "all")):
        subprocess.run([*git, *words], check=True)
    (home / "pyproject.toml").write_text("changed since")
    monkeypatch.setattr(checkout, "_install", install)
    with checked_out("HEAD", repository=tmp_path / where):
        pass
    assert installed == [("code" if where == "." else "bench", home, "committed")]


def test_a_commit_that_is_none_is_a_usage_error(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    with (
        pytest.raises(HambenchError, match="no commit 'nowhere'"),
        checked_out("nowhere", repository=tmp_path),
    ):
        pass


@pytest.mark.slow
def test_another_version_runs_from_its_own_folder_with_the_same_torch(tmp_path):
    """The committed version, while the working tree holds a change: the change must not leak into the base."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs the repository: a source archive has no commits to build from")
    import torch

    with checked_out("HEAD", repository=ROOT) as code:
        shown = subprocess.run(
            [
                code.python,
                "-P",
                "-c",
                "import hambench, torch; print(hambench.__file__); print(torch.__version__)",
            ],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        ).stdout.splitlines()
        assert Path(shown[0]).parent == code.package
        assert ROOT not in Path(shown[0]).resolve().parents
        assert shown[1] == torch.__version__
        kept = code.package
    assert not kept.exists()
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "worktree", "list"], capture_output=True, text=True, check=True
    )
    assert str(kept.parents[4]) not in listed.stdout
