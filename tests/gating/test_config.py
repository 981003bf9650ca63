"""hambench.toml: a typing slip is an error, and a declared gate that measures nothing fails."""

from pathlib import Path

import pytest

from hambench.errors import HambenchError, UnknownNameError
from hambench.gating.checks import Check, ExitCode, Outcome
from hambench.gating.config import GateConfig, Primary, decide, read_config

ROOT = Path(__file__).resolve().parents[2]


def config(tmp_path, text):
    path = tmp_path / "hambench.toml"
    path.write_text(text)
    return read_config(path)


@pytest.mark.parametrize(
    "text",
    [
        "[gate.speed]\nblokcs = 10",
        "[gate.speed]\nblocks = 5",
        "[gate.speed]\nblocks = 'ten'",
        "[gate.speed]\nthreshold = 5",
        "[gate.speed]\nthreshold = nan",
        "[gate.speed]\nmethods = []",
        "[gate.exact]",
        "[gate]\nmargin = -1",
        "[gates.exact]\nbaseline = 'x'",
        "[gate.exact\n",
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, text):
    with pytest.raises(HambenchError):
        config(tmp_path, text)


def test_a_file_with_a_mark_and_windows_line_ends_is_read(tmp_path):
    path = tmp_path / "hambench.toml"
    path.write_bytes(b"\xef\xbb\xbf[gate.exact]\r\nbaseline = 'b.json'\r\n")
    assert read_config(path).exact.baseline == "b.json"


def test_an_unknown_metric_answers_with_the_one_meant(tmp_path):
    with pytest.raises(UnknownNameError, match="kv_bytes"):
        config(tmp_path, '[[gate.primary]]\nmetric = "kv_byte"')


def test_a_missing_file_says_where_to_find_one(tmp_path):
    with pytest.raises(HambenchError, match=r"docs/ci\.md"):
        read_config(tmp_path / "hambench.toml")


def test_brackets_in_labels_are_text_and_only_the_star_is_a_pattern():
    found = Check(cell="speculative[k=4]", metric="tps", metric_class="speed", verdict="equivalent")
    assert Primary(metric="tps", cell="speculative[k=4]").matches(found, "speed")
    assert Primary(metric="speed", cell="spec*").matches(found, "speed")
    assert not Primary(metric="tps", cell="speculative[k=2]").matches(found, "speed")
    assert not Primary(metric="tps", cell="speculative4").matches(found, "speed")
    assert not Primary(metric="tps", gate="exact").matches(found, "speed")


def outcome(*names):
    checks = tuple(Check(cell=n, metric="tps", metric_class="speed", verdict="equivalent") for n in names)
    return Outcome(title="t", base="b", head="h", checks=checks)


def test_a_declared_primary_that_was_not_measured_is_incomplete():
    declared = (Primary(metric="tps", cell="vanilla"), Primary(metric="tps", cell="renamed"))
    decided = decide(outcome("vanilla"), declared, kind="speed", classes=("speed",))
    assert decided.exit_code() == ExitCode.INCOMPLETE
    assert "renamed" in decided.headline()


def test_a_primary_of_another_gate_is_not_missed_here():
    declared = (Primary(metric="tps"), Primary(metric="accuracy"))
    decided = decide(outcome("vanilla"), declared, kind="speed", classes=("speed",))
    assert decided.exit_code() == ExitCode.FINE


def test_what_is_not_declared_is_advice():
    decided = decide(
        outcome("vanilla", "other"),
        (Primary(metric="tps", cell="vanilla"),),
        kind="speed",
        classes=("speed",),
    )
    assert {check.cell: check.primary for check in decided.checks} == {"vanilla": True, "other": False}


def test_the_projects_own_file_is_valid_and_its_baseline_is_there():
    gate = read_config(ROOT / "hambench.toml")
    assert gate != GateConfig()
    assert gate.exact is not None
    assert (ROOT / gate.exact.baseline).is_file()
