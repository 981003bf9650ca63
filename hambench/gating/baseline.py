"""The exact gate: compares the toy model's counts with a baseline file that is committed and reviewed."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hambench.errors import HambenchError, IncompleteError
from hambench.gating.checks import Check, CrashedError, Outcome
from hambench.gating.exact import Answer, answer_of, compare_answers
from hambench.registry import BUILTIN, method_config

SCHEMA_VERSION = 1
REGENERATE = "commit the output of `hambench gate --only exact --update-baseline`"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactBaseline:
    """The answers of every cell, with the model, prompts and limit that they belong to."""

    schema_version: int
    workload: str
    """Hash of model, prompts and limit; counts are comparable only if it is equal."""
    smallest_margin: float
    """Smallest gap between the two largest logits of any row; near rounding error, ids could differ by machine."""
    cells: dict[str, tuple[Answer, ...]]


def default_methods() -> tuple[str, ...]:
    """Returns the configurations that the gate decodes by default, as declared by each built-in method."""
    classes = [cls for cls in map(method_config, BUILTIN) if cls.in_all]
    configs = [cls.from_knobs(knobs) for cls in classes for knobs in cls.gate_settings]
    return tuple(config.label for config in configs if not config.depends_on_order)


def measure_exact(methods: Sequence[str]) -> ExactBaseline:
    """Decodes the toy's prompts with every method, in this process and on one thread.

    Raises:
        HambenchError: For an unknown method or knob, or a setting whose answers depend on their order.
        CrashedError: If a method fails.
    """
    import torch

    from hambench.decoding import SamplingParams
    from hambench.engine.loop import generate
    from hambench.gating import toy
    from hambench.runner.generator import torch_threads
    from hambench.runner.sweep import Sweep, config_of

    sweep = Sweep(model=toy.NAME, methods=tuple(methods), dtype="float32")
    cells = sweep.expand(ask_availability=False).cells
    for cell in cells:
        if config_of(cell).depends_on_order:
            raise HambenchError(
                f"{cell.label} can't be gated: what it counts depends on the answers before; leave its memory out"
            )
    target = toy.load_toy()
    answers: dict[str, tuple[Answer, ...]] = {}
    doubts = [float("inf")]
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch_threads(1))
        stack.enter_context(torch.inference_mode())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hambench-toy-")))
        smallest_margin = stack.enter_context(toy.watched_margins(target))
        for cell in cells:
            try:
                method = config_of(cell).for_toy(target, scratch).build(target)
                traces = {
                    name: generate(method, ids, SamplingParams(max_new_tokens=toy.MAX_NEW_TOKENS))
                    for name, ids in toy.prompts().items()
                }
            except (RuntimeError, ValueError, ArithmeticError, LookupError, TypeError) as error:
                raise CrashedError(f"{cell.label}: {type(error).__name__}: {error}") from error
            answers[cell.label] = tuple(
                answer_of(trace, sample_id=name, prompt_hash=toy.workload_hash())
                for name, trace in traces.items()
            )
            # a stop head close to its threshold is as uncertain as two nearly equal logits
            confidence = float(cell.knobs.get("confidence") or 0.0)
            doubts += [
                abs(probability - confidence)
                for trace in traces.values()
                for step in trace.steps
                for probability in step.continue_probs
            ]
        margin = min(smallest_margin(), *doubts)
    return ExactBaseline(
        schema_version=SCHEMA_VERSION,
        workload=toy.workload_hash(),
        smallest_margin=round(margin, 6),
        cells=answers,
    )


def compare_exact(base: ExactBaseline, head: ExactBaseline, *, name: str) -> Outcome:
    """Compares every count of every cell with the baseline file."""
    checks: list[Check] = []
    if base.workload != head.workload:
        raise IncompleteError(
            f"{name} was made with different prompts or a different toy model: {REGENERATE}"
        )
    for cell, answers in base.cells.items():
        checks += compare_answers(cell, answers, head.cells.get(cell, ()), regenerate=REGENERATE)
    added = [cell for cell in head.cells if cell not in base.cells]
    for cell in added:
        checks += compare_answers(cell, (), head.cells[cell])
    notes = [f"{cell} is not in {name} yet: {REGENERATE}" for cell in added]
    if not base.cells:
        raise IncompleteError(f"{name} contains no cells: {REGENERATE}")
    return Outcome(
        title="Exact counts",
        base=name,
        head="this code",
        checks=tuple(checks),
        notes=tuple(notes),
        suite="exact",
    )


def read_baseline(path: Path) -> ExactBaseline:
    """Reads a baseline file.

    Raises:
        IncompleteError: If there is none.
        HambenchError: If it can't be read.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise IncompleteError(f"baseline {path} does not exist: {REGENERATE}") from None
    except OSError as error:
        raise HambenchError(f"can't read {path}: {error.strerror}") from error
    try:
        version = msgspec.json.decode(raw, type=dict[str, Any]).get("schema_version")
        if version != SCHEMA_VERSION:
            raise IncompleteError(
                f"{path} has schema {version}, this hambench reads {SCHEMA_VERSION}: {REGENERATE}"
            )
        return msgspec.json.decode(raw, type=ExactBaseline)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HambenchError(f"{path} is not a baseline: {error}") from error


def format_baseline(baseline: ExactBaseline) -> str:
    """Formats the file with one answer per line, so that a diff shows which answer changed."""
    head: Mapping[str, Any] = {
        "schema_version": baseline.schema_version,
        "workload": baseline.workload,
        "smallest_margin": baseline.smallest_margin,
    }
    cells = []
    for label, answers in sorted(baseline.cells.items()):
        lines = ",\n".join(f"      {msgspec.json.encode(answer).decode()}" for answer in answers)
        cells.append(f"    {json.dumps(label)}: [\n{lines}\n    ]")
    fields = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    body = ",\n".join(cells)
    return "{\n" + ",\n".join(fields) + ',\n  "cells": {\n' + body + "\n  }\n}\n"
