"""Checks compare one metric of one cell, base against head; an outcome holds all checks and gives the exit code."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, assert_never

from hambench.analysis.metrics import Better, MetricClass
from hambench.errors import HambenchError, count
from hambench.groups import ALL
from hambench.records import Estimate
from hambench.records import Verdict as PairVerdict

Verdict = Literal["regressed", "improved", "equivalent", "inconclusive", "not comparable"]

WORST_FIRST: tuple[Verdict, ...] = (
    "regressed",
    "not comparable",
    "inconclusive",
    "improved",
    "equivalent",
)


def change_word(verdict: PairVerdict) -> Verdict:
    """Translates a verdict on two methods of one run into a verdict on a change."""
    match verdict:
        case "better":
            return "improved"
        case "worse":
            return "regressed"
        case "equivalent" | "inconclusive" | "not comparable":
            return verdict
        case _:
            assert_never(verdict)


class ExitCode(enum.IntEnum):
    """Exit codes of ``compare`` and ``gate``; 2 is a usage error."""

    FINE = 0
    REGRESSED = 1
    USAGE = 2
    INCOMPLETE = 3
    UNDECIDED = 4
    CRASHED = 5


class CrashedError(HambenchError):
    """Raised if a benchmark process dies (exit code 5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One metric of one cell, base against head."""

    cell: str
    metric: str
    metric_class: MetricClass
    verdict: Verdict
    better: Better = "higher"
    unit: str = ""
    group: str = ALL
    base: float | None = None
    head: float | None = None
    effect: Estimate | None = None
    """Head / base for speeds, bytes and counts; head - base in points for accuracy, in nats per token for regret."""
    threshold: float | None = None
    """Smallest effect to report: relative, or in points for accuracy; 0 for counts."""
    p_value: float | None = None
    minimum_detectable_effect: float | None = None
    primary: bool = False
    """Whether the exit code depends on this check; other checks are advisory."""
    reason: str = ""

    @property
    def loss(self) -> float:
        """Returns the head's loss for sorting, relative to the base or in points / 100."""
        if self.effect is None:
            return 0.0
        match self.metric_class:
            case "accuracy":
                change = self.effect.value / 100
            case "fidelity":
                change = self.effect.value
            case "exact" | "near-exact" | "speed":
                change = self.effect.value - 1
            case _:
                assert_never(self.metric_class)
        return -change if self.better == "higher" else change


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a comparison or a gate."""

    title: str
    base: str
    """Name of the base: a run, a commit, a baseline file or a method."""
    head: str
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    crashes: tuple[str, ...] = ()
    """One line per benchmark that died."""
    suite: str = ""
    """Identifies this outcome's comment on a pull request among those of other gates."""
    measurements: dict[str, Any] = field(default_factory=dict)
    """The raw readings behind the checks, for the JSON file."""

    @property
    def ranked(self) -> list[Check]:
        """Returns the checks, worst first; among equal verdicts, deciding checks come first."""
        return sorted(
            self.checks,
            key=lambda check: (WORST_FIRST.index(check.verdict), not check.primary, -check.loss),
        )

    def exit_code(self, *, strict: bool = False) -> ExitCode:
        """Returns the exit code of the primary checks.

        Args:
            strict: Whether an undecided check, or a count that improved on its baseline file, gives code 4.
        """
        verdicts = {check.verdict for check in self.checks if check.primary}
        if "regressed" in verdicts:
            return ExitCode.REGRESSED
        if self.crashes:
            return ExitCode.CRASHED
        if not verdicts or "not comparable" in verdicts:
            return ExitCode.INCOMPLETE
        if strict and ("inconclusive" in verdicts or self.stale):
            return ExitCode.UNDECIDED
        return ExitCode.FINE

    @property
    def stale(self) -> bool:
        """Returns whether a count improved, so that the baseline is out of date."""
        return any(
            check.primary and check.metric_class == "exact" and check.verdict == "improved"
            for check in self.checks
        )

    def headline(self, *, strict: bool = False) -> str:
        """Returns the verdict in one line."""
        code = self.exit_code(strict=strict)
        primary = [check for check in self.checks if check.primary]
        worst = [check for check in primary if check.verdict == "regressed"]
        undecided = [check for check in primary if check.verdict == "inconclusive"]
        unclear = [check for check in primary if check.verdict == "not comparable"]
        better = [check for check in primary if check.verdict == "improved"]
        lines: dict[ExitCode, Callable[[], str]] = {
            ExitCode.REGRESSED: lambda: f"Regressed: {_names(worst)}",
            ExitCode.CRASHED: lambda: f"Crashed: {self.crashes[0]}",
            ExitCode.INCOMPLETE: lambda: (
                f"Not comparable: {_names(unclear)}" if unclear else "No deciding check was measured"
            ),
            ExitCode.UNDECIDED: lambda: (
                f"Undecided: {_names(undecided)}"
                if undecided
                else f"Improved on the baseline: {_names(better)}"
            ),
            ExitCode.FINE: lambda: _fine(primary, undecided, better),
        }
        return lines[code]()


def merge(outcomes: Sequence[Outcome], *, title: str) -> Outcome:
    """Merges several outcomes of one command into one."""
    return Outcome(
        title=title,
        base="; ".join(dict.fromkeys(outcome.base for outcome in outcomes)),
        head="; ".join(dict.fromkeys(outcome.head for outcome in outcomes)),
        checks=tuple(check for outcome in outcomes for check in outcome.checks),
        notes=tuple(dict.fromkeys(note for outcome in outcomes for note in outcome.notes)),
        crashes=tuple(line for outcome in outcomes for line in outcome.crashes),
        suite="+".join(dict.fromkeys(outcome.suite for outcome in outcomes if outcome.suite)),
        measurements={key: value for outcome in outcomes for key, value in outcome.measurements.items()},
    )


def _fine(primary: Sequence[Check], undecided: Sequence[Check], better: Sequence[Check]) -> str:
    text = f"No regression in {count(len(primary), 'check')}"
    if better:
        text += f"; improved: {_names(better)}"
    if undecided:
        text += f"; undecided: {_names(undecided)}"
    return text


def _names(checks: Sequence[Check], shown: int = 4) -> str:
    names = list(dict.fromkeys(f"{check.metric} of {check.cell}" for check in checks))
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
