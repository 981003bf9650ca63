"""``hambench.toml``: which gates a project has, and which of their checks decide.

Everything that is not declared primary is advisory: with three methods, sixteen tasks and four metrics each at 2.5 %,
five false alarms a run would be the rule.
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

FILE = "hambench.toml"
MAX_BLOCKS = 64


class Primary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pattern of checks that decide the exit code; ``*`` stands for anything."""

    metric: str
    """A metric's name, or a class: exact, near-exact, speed, accuracy, fidelity."""
    cell: str = "*"
    group: str = ALL
    gate: str = "*"
    """Only in this gate: exact, speed, accuracy, compare."""

    def matches(self, check: Check, kind: str) -> bool:
        """Whether a check of a kind of gate is meant."""
        # two stored runs compare a method's speed as its ratio to vanilla
        names = (check.metric, check.metric_class, "tps" if check.metric == "tps_ratio" else check.metric)
        return (
            self.gate in ("*", kind)
            and self.metric in names
            and like(self.cell, check.cell)
            and like(self.group, check.group)
        )

    @property
    def metric_class(self) -> MetricClass:
        """The class of metrics it speaks of."""
        named = [kind for kind in METRIC_CLASSES if kind == self.metric]
        if named:
            return named[0]
        return METRICS[self.metric].metric_class if self.metric in METRICS else "exact"


class ExactGate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Counts of the toy model against a committed file."""

    baseline: str
    """The file, relative to ``hambench.toml``."""
    methods: tuple[str, ...] = msgspec.field(default_factory=default_methods)


class SpeedGate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Paired blocks of fresh processes."""

    model: str = "smollm2-135m"
    dtype: str = "bfloat16"
    methods: tuple[str, ...] = ("vanilla",)
    device: str | None = None
    threads: int | None = None
    blocks: int = 10
    threshold: float | None = None
    """Smallest relative change worth a word; by default 3 % on a GPU and 5 % on a CPU."""
    max_new_tokens: int = 12
    turns: int = 3
    together: bool = True
    """Base and head in memory at once, in turns."""
    prompts: tuple[str, ...] = ()
    """Texts; by default a few short ones of our own."""
    suite: str | None = None
    """Take the prompts from a suite instead."""
    limit: int = 1
    """Rows of each task of the suite."""


class AccuracyGate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same samples answered by base and head: not worse by more than a margin."""

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
    """Points that ``hambench compare`` may find an accuracy lower by."""


class ProjectConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A ``hambench.toml``."""

    gate: GateConfig = GateConfig()


DEFAULT_PRIMARY: dict[str, tuple[Primary, ...]] = {
    "exact": (Primary(metric="exact"),),
    "speed": (Primary(metric="tps"), Primary(metric="near-exact")),
    "accuracy": (Primary(metric="accuracy"),),
    "compare": (Primary(metric="exact"), Primary(metric="near-exact"), Primary(metric="accuracy")),
}
"""What decides where a project declares nothing."""


def read_config(path: Path) -> GateConfig:
    """The ``[gate]`` table of a file.

    Raises:
        HambenchError: If the file can't be read, has an unknown key, or a value makes no sense.
    """
    try:
        # utf-8-sig: some editors begin a file with a byte order mark
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise HambenchError(f"there is no {path}: see docs/ci.md for one to start from") from None
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
    """Refuses numbers that no verdict could come from.

    Raises:
        HambenchError: Naming the setting and its mend.
    """
    if not MIN_BLOCKS <= speed.blocks <= MAX_BLOCKS:
        raise HambenchError(
            f"blocks must be {MIN_BLOCKS} to {MAX_BLOCKS}, got {speed.blocks}: with fewer than {MIN_BLOCKS} no "
            "difference can be told from chance"
        )
    if speed.threshold is not None and not 0 < speed.threshold < 1:
        raise HambenchError(f"threshold must be between 0 and 1 (0.05 is 5 %), got {speed.threshold:g}")
    for name in ("max_new_tokens", "turns", "limit"):
        least = 2 if name == "max_new_tokens" else 1
        if getattr(speed, name) < least:
            raise HambenchError(f"{name} must be >= {least}, got {getattr(speed, name)}")


def decide(
    outcome: Outcome, declared: Sequence[Primary], *, kind: str, classes: Iterable[MetricClass]
) -> Outcome:
    """The outcome with its primary checks marked; a declared one that nothing was measured for is added.

    Args:
        outcome: What was found.
        declared: ``[[gate.primary]]``; if empty, the kind's own default.
        kind: Key of :data:`DEFAULT_PRIMARY`.
        classes: Classes of metrics that were to be measured here.
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
        reason="declared primary, but nothing of that name was measured",
    )


def margins_of(accuracy: float, base: Margins) -> Margins:
    """Margins of a machine with the project's own margin of accuracy, in points."""
    return replace(base, accuracy=accuracy)


def like(pattern: str, text: str) -> bool:
    """Whether a text is of a pattern in which ``*`` stands for anything."""
    # labels hold brackets, which shell patterns would read as character classes
    expression = ".*".join(re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(expression, text) is not None
