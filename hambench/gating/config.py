"""Reads ``hambench.toml``, which declares a project's gates and which of their checks decide.

Checks that are not declared primary are advisory. With three methods, sixteen tasks and four metrics, each tested at
2.5 %, five false alarms per run would be normal.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from hambench.analysis.metrics import METRIC_CLASSES, METRICS, MetricClass
from hambench.analysis.statistics.paired_tests import MIN_BLOCKS
from hambench.analysis.verdicts import Margins
from hambench.errors import HambenchError, UnknownNameError
from hambench.gating.baseline import default_methods
from hambench.gating.checks import Check, Outcome
from hambench.gating.exact import KV_BYTE_STEPS, TOKEN_IDS
from hambench.groups import ALL
from hambench.runner.backend import KERNELS

FILE = "hambench.toml"
MAX_BLOCKS = 64


class Primary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pattern of checks that decide the exit code; ``*`` matches any text."""

    metric: str
    """A metric's name or class: exact, near-exact, speed, accuracy, fidelity."""
    cell: str = "*"
    group: str = ALL
    gate: str = "*"
    """Limits the pattern to this gate: exact, speed, accuracy or compare."""

    def matches(self, check: Check, kind: str) -> bool:
        """Returns whether the pattern matches a check of a kind of gate."""
        # `compare` measures a method's speed as its ratio to vanilla
        names = (check.metric, check.metric_class, "tps" if check.metric == "tps_ratio" else check.metric)
        return (
            self.gate in ("*", kind)
            and self.metric in names
            and like(self.cell, check.cell)
            and like(self.group, check.group)
        )

    @property
    def metric_class(self) -> MetricClass:
        """Returns the class of metrics that the pattern names."""
        named = [kind for kind in METRIC_CLASSES if kind == self.metric]
        if named:
            return named[0]
        return METRICS[self.metric].metric_class if self.metric in METRICS else "exact"


class ExactGate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[gate.exact]``: compares the toy model's counts with a committed file."""

    baseline: str
    """Path of the file, relative to ``hambench.toml``."""
    methods: tuple[str, ...] = msgspec.field(default_factory=default_methods)


class SpeedGate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[gate.speed]``: compares speeds in paired blocks of fresh processes."""

    model: str = "smollm2-135m"
    dtype: str = "bfloat16"
    methods: tuple[str, ...] = ("vanilla",)
    device: str | None = None
    threads: int | None = None
    kernels: str = "auto"
    """As for ``hambench run``: auto, reference, native or fused; each side chooses what its own version has."""
    blocks: int = 10
    threshold: float | None = None
    """Smallest relative change to report; defaults to 3 % on a GPU and 5 % on a CPU."""
    max_new_tokens: int = 12
    turns: int = 3
    together: bool = True
    """Whether base and head are in memory at once and alternate."""
    prompts: tuple[str, ...] = ()
    """Prompt texts; defaults to four short built-in ones."""
    suite: str | None = None
    """A suite to take the prompts from instead."""
    limit: int = 1
    """Rows per task of the suite."""


class AccuracyGate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[gate.accuracy]``: base and head answer the same samples; the head may lose at most a margin."""

    suite: str
    methods: tuple[str, ...] = ("vanilla",)
    model: str = "smollm2-135m"
    dtype: str = "bfloat16"
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    margin: float = 1.5
    """Points."""


class GateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[gate]`` table."""

    exact: ExactGate | None = None
    speed: SpeedGate | None = None
    accuracy: AccuracyGate | None = None
    primary: tuple[Primary, ...] = ()
    margin: float = 1.5
    """Points of accuracy that the head may lose in ``hambench compare``."""


class ProjectConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A ``hambench.toml``."""

    gate: GateConfig = GateConfig()


DEFAULT_PRIMARY: dict[str, tuple[Primary, ...]] = {
    "exact": (Primary(metric="exact"),),
    "speed": (Primary(metric="tps"), Primary(metric="near-exact")),
    "accuracy": (Primary(metric="accuracy"),),
    "compare": (Primary(metric="exact"), Primary(metric="near-exact"), Primary(metric="accuracy")),
}
"""The deciding checks per kind of gate if a project declares none."""


def read_config(path: Path) -> GateConfig:
    """Reads the ``[gate]`` table of a file.

    Raises:
        HambenchError: If the file can't be read, has an unknown key or an invalid value.
    """
    try:
        # utf-8-sig because some editors write a byte order mark
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise HambenchError(f"{path} does not exist: docs/ci.md has one to start from") from None
    except (OSError, UnicodeDecodeError) as error:
        raise HambenchError(f"can't read {path}: {error}") from error
    try:
        gate = msgspec.convert(tomllib.loads(text), ProjectConfig).gate
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise HambenchError(f"{path}: {error}") from error
    _validate(gate, path)
    return gate


def _validate(gate: GateConfig, path: Path) -> None:
    known = [*METRICS, *METRIC_CLASSES, TOKEN_IDS, KV_BYTE_STEPS]
    for primary in gate.primary:
        if primary.metric not in known:
            raise UnknownNameError("metric", primary.metric, known)
        if primary.gate not in ("*", *DEFAULT_PRIMARY):
            raise UnknownNameError("gate", primary.gate, DEFAULT_PRIMARY)
    for margin in (gate.margin, *([gate.accuracy.margin] if gate.accuracy else [])):
        if not 0 < margin < 100:
            raise HambenchError(f"{path}: margin must be between 0 and 100 points, got {margin:g}")
    if gate.speed is not None:
        validate_speed(gate.speed)
    for name in ("exact", "speed", "accuracy"):
        section = getattr(gate, name)
        if section is not None and not section.methods:
            raise HambenchError(f"{path}: [gate.{name}] methods must name at least one method")


def validate_speed(speed: SpeedGate) -> None:
    """Checks the numbers of a speed gate.

    Raises:
        HambenchError: If no verdict is possible with a setting; the message names it and the fix.
    """
    if not MIN_BLOCKS <= speed.blocks <= MAX_BLOCKS:
        raise HambenchError(
            f"blocks must be {MIN_BLOCKS} to {MAX_BLOCKS}, got {speed.blocks}: with fewer than {MIN_BLOCKS} no "
            "difference can be told from chance"
        )
    if speed.kernels not in KERNELS:
        raise UnknownNameError("kernels", speed.kernels, KERNELS)
    if speed.threshold is not None and not 0 < speed.threshold < 1:
        raise HambenchError(f"threshold must be between 0 and 1 (0.05 is 5 %), got {speed.threshold:g}")
    for name in ("max_new_tokens", "turns", "limit"):
        least = 2 if name == "max_new_tokens" else 1
        if getattr(speed, name) < least:
            raise HambenchError(f"{name} must be >= {least}, got {getattr(speed, name)}")


def decide(
    outcome: Outcome, declared: Sequence[Primary], *, kind: str, classes: Iterable[MetricClass]
) -> Outcome:
    """Marks an outcome's primary checks, and adds a failing check for each declared one that was not measured.

    Args:
        outcome: The outcome to mark.
        declared: ``[[gate.primary]]``; if empty, the kind's own default.
        kind: Key of :data:`DEFAULT_PRIMARY`.
        classes: Classes of metrics that this gate measures.
    """
    wanted = set(classes)
    patterns = tuple(declared) or DEFAULT_PRIMARY[kind]
    checks = [
        replace(c, primary=c.primary or any(p.matches(c, kind) for p in patterns)) for c in outcome.checks
    ]
    if not outcome.crashes:
        for pattern in declared:
            here = pattern.gate in ("*", kind) and pattern.metric_class in wanted
            if here and not any(pattern.matches(check, kind) for check in checks):
                checks.append(_unmeasured(pattern))
    return replace(outcome, checks=tuple(checks))


def _unmeasured(pattern: Primary) -> Check:
    return Check(
        cell=pattern.cell,
        metric=pattern.metric,
        metric_class=pattern.metric_class,
        group=pattern.group,
        verdict="not comparable",
        primary=True,
        reason="declared primary, but no metric of that name was measured",
    )


def margins_of(accuracy: float, base: Margins) -> Margins:
    """Returns a machine's margins with the project's accuracy margin, in points."""
    return replace(base, accuracy=accuracy)


def like(pattern: str, text: str) -> bool:
    """Returns whether a text matches a pattern in which ``*`` matches any text."""
    # labels contain brackets, which fnmatch would read as character classes
    expression = ".*".join(re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(expression, text) is not None
