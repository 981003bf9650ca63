"""Runs a project's gates: each measures base and head, or the head against a committed file, and judges.

``hambench.toml`` declares them (:mod:`hambench.gating.config`); the command is ``hambench gate``.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hambench.analysis.statistics.paired_tests import mean_log_ratio
from hambench.analysis.verdicts import Margins
from hambench.errors import HambenchError, IncompleteError
from hambench.files import write_text
from hambench.gating.baseline import (
    ExactBaseline,
    compare_exact,
    format_baseline,
    measure_exact,
    read_baseline,
)
from hambench.gating.blocks import Block, run_blocks
from hambench.gating.checkout import Code, checked_out
from hambench.gating.checks import CrashedError, Outcome, merge
from hambench.gating.compare import compare_runs, load_side
from hambench.gating.config import (
    AccuracyGate,
    ExactGate,
    GateConfig,
    Primary,
    SpeedGate,
    decide,
    margins_of,
    validate_speed,
)
from hambench.gating.noise import Calibration, load_calibration, refuse_below_floor
from hambench.gating.prompts import gate_prompts
from hambench.gating.speed import CPU_THRESHOLD, GPU_THRESHOLD, Pair, gate_speed
from hambench.gating.worker_process import Arm, Work
from hambench.history.archive import machine_id
from hambench.machine.clock import now
from hambench.records import Cell
from hambench.runner.sweep import Sweep

KINDS = ("exact", "speed", "accuracy")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRequest:
    """The options of one call of ``hambench gate``."""

    config: GateConfig
    root: Path
    """Folder of ``hambench.toml``; file names in it are relative to this folder."""
    only: tuple[str, ...] = ()
    """Kinds to run; empty for all declared ones that can run."""
    base_ref: str | None = None
    """Commit to build the base from."""
    base_method: str | None = None
    head_method: str | None = None
    """Two methods of this code to compare instead of two versions."""
    noise: Path | None = None
    """Folder of calibrations."""
    new_baseline: Path | None = None
    """File for this code's counts, ready to commit."""


def run_gates(request: GateRequest, *, say: Say | None = None) -> Outcome:
    """Runs the declared gates that the request asks for, and marks the deciding checks.

    Raises:
        IncompleteError: If nothing can be compared.
        HambenchError: For an invalid request.
    """
    kinds = _kinds(request)
    if "speed" in kinds and request.config.speed is not None:
        validate_speed(request.config.speed)  # before a base is installed, which takes minutes
    say = say or (lambda line: None)
    outcomes: list[Outcome] = []
    with contextlib.ExitStack() as stack:
        if "exact" in kinds and request.config.exact is not None:
            say("exact: decoding with the toy model")
            outcomes.append(exact_gate(request.config.exact, request, request.config.primary))
        base: Code | None = None
        if request.base_ref is not None and {"speed", "accuracy"} & set(kinds):
            say(f"base: installing {request.base_ref} into its own environment")
            base = stack.enter_context(checked_out(request.base_ref, repository=request.root))
        if "speed" in kinds and request.config.speed is not None:
            outcomes.append(speed_gate(request.config.speed, request, base, say=say))
        if "accuracy" in kinds and request.config.accuracy is not None and base is not None:
            outcomes.append(accuracy_gate(request.config.accuracy, request, base, say=say))
    outcome = merge(outcomes, title="hambench gate") if len(outcomes) > 1 else outcomes[0]
    return replace(outcome, notes=(*outcome.notes, *_left_out(request, kinds)))


def _kinds(request: GateRequest) -> list[str]:
    config = request.config
    declared = [kind for kind in KINDS if getattr(config, kind) is not None]
    for kind in request.only:
        if kind not in declared:
            raise HambenchError(
                f"hambench.toml has no [gate.{kind}]; declared: {', '.join(declared) or 'none'}"
            )
    kinds = [kind for kind in declared if not request.only or kind in request.only]
    two_methods = request.base_method is not None
    if two_methods:
        kinds = [kind for kind in kinds if kind == "speed"]
    if request.base_ref is None and not two_methods:
        needy = [kind for kind in kinds if kind != "exact"]
        if needy and (request.only or kinds == needy):
            raise HambenchError(
                f"the {needy[0]} gate compares two versions or two methods: give --base-ref COMMIT, or --base METHOD"
            )
        kinds = [kind for kind in kinds if kind == "exact"]
    if not kinds:
        raise IncompleteError(
            "hambench.toml declares no gate that can run here: add [gate.exact] or [gate.speed]"
        )
    return kinds


def _left_out(request: GateRequest, kinds: Sequence[str]) -> list[str]:
    """Returns a note per gate that was declared and not excluded but did not run."""
    if request.only or request.base_method is not None:
        return []
    declared = [kind for kind in KINDS if getattr(request.config, kind) is not None]
    return [
        f"the {kind} gate did not run: it needs --base-ref COMMIT" for kind in declared if kind not in kinds
    ]


def exact_gate(gate: ExactGate, request: GateRequest, declared: Sequence[Primary]) -> Outcome:
    """Compares the toy model's counts with the committed file; writes the new one if requested."""
    path = request.root / gate.baseline
    try:
        head = measure_exact(gate.methods)
    except CrashedError as crash:
        return replace(_crashed("exact", gate.baseline), crashes=(str(crash),))
    if request.new_baseline is not None:
        write_text(request.new_baseline, format_baseline(head))
    outcome = compare_exact(read_baseline(path), head, name=gate.baseline)
    return decide(outcome, declared, kind="exact", classes=("exact",))


def _crashed(kind: str, base: str) -> Outcome:
    return Outcome(title=f"The {kind} gate", base=base, head="this code", checks=(), suite=kind)


def update_baseline(gate: ExactGate, root: Path) -> tuple[Path, ExactBaseline]:
    """Writes this code's counts as the baseline file.

    Raises:
        HambenchError: If a method crashes, or two logits are so close that ids could differ between machines.
    """
    from hambench.gating.toy import SAFE_MARGIN

    measured = measure_exact(gate.methods)
    if measured.smallest_margin < SAFE_MARGIN:
        raise HambenchError(
            f"two logits of the toy model differ by {measured.smallest_margin:g}, less than {SAFE_MARGIN:g}, so "
            "another machine could choose a different token: choose another seed in hambench/gating/toy.py"
        )
    path = root / gate.baseline
    write_text(path, format_baseline(measured))
    return path, measured


def speed_gate(gate: SpeedGate, request: GateRequest, base: Code | None, *, say: Say) -> Outcome:
    """Measures every method of the gate in paired blocks."""
    threshold = gate.threshold if gate.threshold is not None else default_threshold()
    notes = []
    if request.noise is not None:
        asked = {"model": gate.model, "dtype": gate.dtype, "kernels": gate.kernels}
        known = load_calibration(request.noise, machine=machine_id(), **asked)
        notes.append(refuse_below_floor(threshold, gate.blocks, known))
    pairs = speed_pairs(gate, request, base)
    outcome = gate_speed(
        pairs,
        work_of(gate),
        num_blocks=gate.blocks,
        threshold=threshold,
        base=base.name if base is not None else str(request.base_method),
        head="this code" if base is not None else str(request.head_method or request.base_method),
        progress=say,
    )
    outcome = replace(outcome, notes=(*outcome.notes, *notes))
    return decide(outcome, request.config.primary, kind="speed", classes=("speed", "near-exact"))


def default_threshold() -> float:
    """Returns the default threshold: 3 % on a GPU, 5 % on a CPU, which rarely is idle otherwise."""
    from hambench.machine.nvml import Gpu

    return GPU_THRESHOLD if Gpu.open() is not None else CPU_THRESHOLD


def work_of(gate: SpeedGate) -> Work:
    """Returns the work of a gate's blocks."""
    return Work(
        prompts=gate_prompts(gate),
        max_new_tokens=gate.max_new_tokens,
        turns=gate.turns,
        device=gate.device,
        together=gate.together,
    )


def speed_pairs(gate: SpeedGate, request: GateRequest, base: Code | None) -> list[Pair]:
    """Returns the pairs of a speed gate: every method in two versions, or two methods in this version."""
    if request.base_method is not None:
        theirs = single_cell(gate, request.base_method)
        ours = single_cell(gate, request.head_method or request.base_method)
        label = ours.label if ours.label == theirs.label else f"{ours.label} against {theirs.label}"
        return [Pair(label=label, base=Arm(cell=theirs), head=Arm(cell=ours))]
    assert base is not None
    return [
        Pair(
            label=cell.label,
            base=Arm(cell=cell, python=base.python, code=base.package),
            head=Arm(cell=cell),
        )
        for cell in _sweep(gate, *gate.methods).expand().cells
    ]


def single_cell(gate: SpeedGate, method: str) -> Cell:
    """Parses a method with knobs that must give a single configuration."""
    return _sweep(gate, method).single()


def _sweep(gate: SpeedGate, *methods: str) -> Sweep:
    return Sweep(
        model=gate.model, methods=methods, dtype=gate.dtype, threads=(gate.threads,), kernels=(gate.kernels,)
    )


def accuracy_gate(gate: AccuracyGate, request: GateRequest, base: Code, *, say: Say) -> Outcome:
    """Runs both versions on the same samples with ``hambench run`` and compares the two runs."""
    with tempfile.TemporaryDirectory(prefix="hambench-accuracy-") as scratch:
        for side, python in (("base", base.python), ("head", sys.executable)):
            say(f"accuracy: {side} answers {gate.suite}")
            try:
                _run_suite(gate, python, Path(scratch) / side, clean=side == "base")
            except CrashedError as crash:
                return replace(_crashed("accuracy", base.name), crashes=(f"{side}: {crash}",))
        runs = [load_side(Path(scratch) / side, side) for side in ("base", "head")]
        outcome = compare_runs(*runs, margins=margins_of(gate.margin, Margins.of(runs[0])))
    # two runs in sequence are measured at different times; judging speed is the speed gate's job
    kept = tuple(check for check in outcome.checks if check.metric_class != "speed")
    outcome = replace(
        outcome, title="Accuracy", base=base.name, head="this code", checks=kept, suite="accuracy"
    )
    return decide(outcome, request.config.primary, kind="accuracy", classes=("accuracy", "fidelity"))


def _run_suite(gate: AccuracyGate, python: str, folder: Path, *, clean: bool) -> None:
    command = [
        *(python, "-P", "-c", "from hambench.cli import main; main()", "run", "--no-report"),
        *("--suite", gate.suite, "--model", gate.model, "--dtype", gate.dtype),
        *("--methods", ",".join(gate.methods), "--out", str(folder)),
        *(("--tasks", ",".join(gate.tasks)) if gate.tasks else ()),
        *(("--limit", str(gate.limit)) if gate.limit is not None else ()),
    ]
    environment = dict(os.environ)
    if clean:
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise CrashedError(
            f"{shlex.join(command[4:8])} …: {lines[-1] if lines else f'exit code {done.returncode}'}"
        )


def calibrate(
    gate: SpeedGate,
    method: str,
    *,
    say: Say | None = None,
    measure: Callable[[Arm, Work, int], list[Block]] | None = None,
) -> Calibration:
    """Runs an A/A gate, with the same configuration on both sides.

    Raises:
        CrashedError: If blocks keep dying.
        IncompleteError: If a block measured nothing.
    """
    validate_speed(gate)
    arm, work = Arm(cell=single_cell(gate, method)), work_of(gate)
    if measure is not None:
        blocks = measure(arm, work, gate.blocks)
    else:
        blocks = run_blocks({"base": arm, "head": arm}, work, gate.blocks, progress=say)
    logs = [block.log_ratio for block in blocks if block.error is None]
    usable = [value for value in logs if value is not None]
    if len(usable) < gate.blocks:
        raise IncompleteError(f"{len(usable)} of {gate.blocks} blocks measured a speed")
    result = mean_log_ratio(usable)
    assert result.standard_error is not None
    return Calibration(
        schema_version=1,
        created_at=now(),
        machine=machine_id(),
        model=gate.model,
        dtype=gate.dtype,
        kernels=gate.kernels,
        method=arm.cell.label,
        num_blocks=len(usable),
        effect=result.effect,
        # keep disturbed blocks, because the floor should describe the machine as it is
        sd=result.standard_error * len(usable) ** 0.5,
    )
