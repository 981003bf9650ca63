"""Tries the speed gate on this machine: a method against itself, and against itself slowed, under bursts of load.

    python scripts/gate_trial.py --gates 10 --slowdown 0.1 --out docs/results/NAME

The gate is the one of ``hambench.toml`` (``--blocks`` apart), with one method on both sides. Another process loads the
machine in bursts all the while. Written are every gate's verdict with its raw readings (``gate-trial.json``) and a page
(``gate-trial.md``). The exit code is 1 if an unchanged one "regressed", or fewer than nine in ten slowed ones did.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from hambench.gating.config import SpeedGate, read_config
from hambench.gating.gate import single_cell, work_of
from hambench.gating.speed import Pair, gate_speed
from hambench.gating.worker_process import Arm

BURST_S, PAUSE_S = 1.5, 3.0
"""Mean lengths, exponentially distributed."""

SLOWED = """\
import time
from hambench.methods import vanilla
step = vanilla.VanillaSession.step
def slowed(self):
    begin = time.perf_counter()
    emitted = yield from step(self)
    end = time.perf_counter()
    while time.perf_counter() < end + SHARE * (end - begin):
        pass
    return emitted
vanilla.VanillaSession.step = slowed
"""
"""Makes every decode step of vanilla last longer by a share of itself, forward included: a step is a generator, and the
engine runs the forward while it waits for the answer."""


def burn(seed: int) -> None:
    """One thread that is busy in bursts."""
    moments = random.Random(seed)
    while True:
        end = time.monotonic() + moments.expovariate(1 / BURST_S)
        while time.monotonic() < end:
            sum(range(1000))
        time.sleep(moments.expovariate(1 / PAUSE_S))


@contextmanager
def bursts(threads: int) -> Iterator[None]:
    """Loads the machine; every thread has bursts of its own."""
    burners = [multiprocessing.Process(target=burn, args=(seed,), daemon=True) for seed in range(threads)]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()


def one_gate(gate: SpeedGate, threshold: float, environment: dict[str, str]) -> dict[str, Any]:
    """Verdict and raw readings of one gate whose head has an environment of its own."""
    cell = single_cell(gate, "vanilla")
    pair = Pair(label="vanilla", base=Arm(cell=cell), head=Arm(cell=cell, environment=environment))
    begin = time.monotonic()
    outcome = gate_speed(
        [pair], work_of(gate), num_blocks=gate.blocks, threshold=threshold, base="this code", head="this code",
        progress=lambda line: print("   ", line, flush=True),
    )  # fmt: skip
    check = next((check for check in outcome.checks if check.metric == "tps"), None)
    return {
        "verdict": check.verdict if check else "crashed",
        "effect": dataclasses.asdict(check.effect) if check and check.effect else None,
        "reason": check.reason if check else "; ".join(outcome.crashes),
        "seconds": time.monotonic() - begin,
        "readings": outcome.measurements,
    }


def page(facts: dict[str, Any], results: dict[str, list[dict[str, Any]]]) -> str:
    """The result as Markdown."""
    lines = ["# The speed gate, tried", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += [
        "",
        "| arm | gate | verdict | head / base [95 %] | seconds | reason |",
        "|---|--:|---|---|--:|---|",
    ]
    for arm, gates in results.items():
        for number, gate in enumerate(gates, 1):
            effect = gate["effect"]
            shown = "–"
            if effect:
                shown = f"{effect['value']:.3f} [{effect['low']:.3f}, {effect['high']:.3f}]"
            lines.append(
                f"| {arm} | {number} | {gate['verdict']} | {shown} | {gate['seconds']:.0f} | {gate['reason']} |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs the trial, and writes after every gate what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gates", type=int, default=10, help="of each kind")
    parser.add_argument("--blocks", type=int, help="of each gate; by default what hambench.toml says")
    parser.add_argument("--slowdown", type=float, default=0.1, help="share by which each step lasts longer")
    parser.add_argument("--load-threads", type=int, default=1, help="0 for none")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    asked = parser.parse_args()
    gate = read_config(Path("hambench.toml")).speed
    assert gate is not None, "hambench.toml has no [gate.speed]"
    if asked.blocks is not None:
        gate = msgspec.structs.replace(gate, blocks=asked.blocks)
    threshold = gate.threshold if gate.threshold is not None else 0.05
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    facts = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "commit": commit,
        "machine": f"{os.cpu_count()} cores, {cpu_name()}",
        "versions": f"Python {sys.version.split()[0]}, "
        + ", ".join(f"{n} {version(n)}" for n in ("torch", "transformers")),
        "gate": f"vanilla in {gate.dtype}, {gate.blocks} blocks, threshold {threshold:.0%}, {gate.turns} turns of "
        f"{gate.max_new_tokens} tokens, {gate.threads} thread(s)",
        "other load": f"{asked.load_threads} thread(s), bursts of {BURST_S} s and pauses of {PAUSE_S} s in the mean",
        "slowed": f"each decode step lasts {asked.slowdown:.0%} longer",
    }
    results: dict[str, list[dict[str, Any]]] = {"unchanged": [], "slowed": []}
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, bursts(asked.load_threads):
        Path(folder, "sitecustomize.py").write_text(SLOWED.replace("SHARE", repr(asked.slowdown)))
        environments = {"unchanged": {}, "slowed": {"PYTHONPATH": folder}}
        for number in range(asked.gates):
            for arm, environment in environments.items():
                print(f"{arm} {number + 1} of {asked.gates}", flush=True)
                results[arm].append(one_gate(gate, threshold, environment))
                print("  ", results[arm][-1]["verdict"], results[arm][-1]["effect"], flush=True)
                whole = {"facts": facts, "results": results}
                (asked.out / "gate-trial.json").write_text(json.dumps(whole))
                (asked.out / "gate-trial.md").write_text(page(facts, results))
    alarms = sum(gate["verdict"] == "regressed" for gate in results["unchanged"])
    caught = sum(gate["verdict"] == "regressed" for gate in results["slowed"])
    print(f"{alarms} of {asked.gates} unchanged ones regressed; {caught} of {asked.gates} slowed ones caught")
    return int(alarms > 0 or caught < 0.9 * asked.gates)


def cpu_name() -> str:
    """As the system tells it."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].split(":", 1)[1].strip() if names else "unknown CPU"


if __name__ == "__main__":
    sys.exit(main())
