"""The script that tries the speed gate: what it slows, when it fails, what it writes."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import tiny_target

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def trial(monkeypatch):
    spec = importlib.util.spec_from_file_location("gate_trial", ROOT / "scripts/gate_trial.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(ROOT)
    return module


def gates(*verdicts):
    effect = {"value": 0.9, "low": 0.88, "high": 0.93}
    return [
        {"verdict": v, "effect": effect, "reason": "why", "seconds": 1.0, "readings": [{"block": 0}]}
        for v in verdicts
    ]


@pytest.fixture
def slowed(trial, monkeypatch):
    """The step that the slowed arm has, by a clock that only this test moves."""
    from hambench.methods import vanilla

    now = [0.0]

    def clock():
        now[0] += 0.01
        return now[0]

    # what the interpreter runs at its start in the slowed arm; the patch is undone with the fixture
    monkeypatch.setattr(vanilla.VanillaSession, "step", vanilla.VanillaSession.step)
    names = {}
    exec(trial.SLOWED.replace("SHARE", "0.1"), names)
    names["time"] = SimpleNamespace(perf_counter=clock)
    return now


def test_the_slowed_method_waits_for_a_share_of_each_step_its_forward_included(slowed, monkeypatch):
    from hambench.decoding import SamplingParams, answered
    from hambench.engine.loop import generate
    from hambench.methods.vanilla import VanillaConfig

    method, params = VanillaConfig().build(tiny_target()), SamplingParams(max_new_tokens=5)
    session = method.start([1, 2, 3], params)
    answered(session.prefill())
    slowed[0] = 0.0
    step = session.step()
    request = next(step)
    # nothing has been waited for before the forward
    assert slowed[0] == pytest.approx(0.01)
    slowed[0] += 2.0
    with pytest.raises(StopIteration) as ended:
        step.send(request.answer())
    assert len(ended.value.value.tokens) == 1
    assert slowed[0] == pytest.approx(2.0 * 1.1, abs=0.05)
    # the engine's loop decodes the same with it
    plain = generate(method, [1, 2, 3], params)
    monkeypatch.undo()
    assert generate(method, [1, 2, 3], params).token_ids == plain.token_ids


@pytest.mark.parametrize(
    ("unchanged", "slowed", "code"),
    [
        (["equivalent"] * 10, ["regressed"] * 9 + ["inconclusive"], 0),
        (["equivalent"] * 10, ["regressed"] * 8 + ["inconclusive"] * 2, 1),
        (["equivalent"] * 9 + ["regressed"], ["regressed"] * 10, 1),
        (["inconclusive"] * 10, ["crashed"] * 10, 1),
    ],
)
def test_it_fails_on_a_false_alarm_and_on_two_missed_losses(
    trial, monkeypatch, tmp_path, unchanged, slowed, code
):
    answers = {"unchanged": iter(gates(*unchanged)), "slowed": iter(gates(*slowed))}
    monkeypatch.setattr(
        trial, "one_gate", lambda gate, threshold, arm: next(answers["slowed" if arm else "unchanged"])
    )
    monkeypatch.setattr(sys, "argv", ["gate_trial.py", "--load-threads", "0", "--out", str(tmp_path)])
    assert trial.main() == code
    written = json.loads((tmp_path / "gate-trial.json").read_text())
    assert [gate["verdict"] for gate in written["results"]["slowed"]] == slowed
    rows = [
        line for line in (tmp_path / "gate-trial.md").read_text().splitlines() if line.startswith("| slowed")
    ]
    assert len(rows) == 10
    assert "0.900 [0.880, 0.930]" in rows[0]


def test_the_load_ends_with_the_trial(trial):
    with trial.bursts(2):
        running = trial.multiprocessing.active_children()
        assert len(running) >= 2
    for process in running:
        process.join(timeout=10)
        assert not process.is_alive()
