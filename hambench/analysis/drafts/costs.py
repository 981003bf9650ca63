"""The cost of drafting and verifying on a run's machine, in vanilla steps, and the resulting speed-up.

Let delta be the time of a draft forward and v(r) that of a verification of r rows, both in vanilla steps, and E the
tokens that a round of k drafted tokens emits. Then the speed-up is S(k) = E / (v(k + 1) + k delta) (Leviathan et al.
2023, arXiv 2211.17192, theorem 3.8, extended by the cost of rows). Seconds are compared within a sample, so that long
and short contexts have equal weight on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from hambench.analysis.baselines import baseline_of
from hambench.analysis.drafts.acceptance import acceptance_conditional, drafted_histogram
from hambench.analysis.metrics import acceptance_rate, decode_seconds
from hambench.records import Cell, GenerationTrace, StepRecord
from hambench.store import Run

MIN_STEPS = 5
"""Steps of a width from which its cost is taken as measured."""
MAX_DRAFT = 16
"""Longest draft that is asked about."""


@dataclass(frozen=True, slots=True)
class VerifyCost:
    """v(r): one verification over r rows, in vanilla steps.

    Args:
        by_rows: Measured costs by number of rows; r = 1 is 1 by definition.
    """

    by_rows: Mapping[int, float] = field(default_factory=dict)

    def __call__(self, rows: int) -> float:
        """Returns the cost of a width: measured, interpolated, or extrapolated along the line from one row."""
        if rows <= 1:
            return 1.0
        points = sorted({**self.by_rows, 1: 1.0}.items())
        for (left, low), (right, high) in pairwise(points):
            if left <= rows <= right:
                return low + (high - low) * (rows - left) / (right - left)
        widest, cost = points[-1]
        if widest == 1:
            return 1.0
        return cost + (rows - widest) * (cost - 1) / (widest - 1)

    @property
    def widest(self) -> int | None:
        """Most rows that were measured; ``None`` if only one row was."""
        return max((rows for rows in self.by_rows if rows > 1), default=None)


@dataclass(frozen=True, slots=True)
class DraftCosts:
    """Costs of one setting, and its speed-up at its acceptance."""

    delta: float | None
    """Seconds of a draft forward over those of a vanilla step; 0 without a draft model, ``None`` if unknown."""
    verify: VerifyCost
    acceptance: tuple[float, ...]
    """Conditional, by place."""
    rate: float | None = None
    """Accepted over drafted tokens."""
    share: float = 1.0
    """Rounds that drafted anything, over all: a lookup may find nothing. The others are vanilla steps."""

    def speedup(
        self, k: int, *, acceptance: Sequence[float] | None = None, delta: float | None = None
    ) -> float | None:
        """Returns S(k), the speed-up over vanilla; ``None`` if delta or acceptance is unknown.

        Args:
            k: Drafted tokens, >= 1. Positions beyond the measured ones have the last one's acceptance.
            acceptance: Replaces the measured acceptance.
            delta: Replaces the measured delta.
        """
        cost = self.delta if delta is None else delta
        known = self.acceptance if acceptance is None else tuple(acceptance)
        if cost is None or not known:
            return None
        by_place = [*known, *[known[-1]] * (k - len(known))][:k]
        emitted = 1 + math.fsum(math.prod(by_place[:length]) for length in range(1, k + 1))
        idle = 1 - self.share
        return (idle + self.share * emitted) / (idle + self.share * (self.verify(k + 1) + k * cost))

    def best(
        self, *, acceptance: Sequence[float] | None = None, delta: float | None = None
    ) -> tuple[int, float] | None:
        """Returns the k up to :data:`MAX_DRAFT` with the largest S(k), and that S(k)."""
        speeds = {k: self.speedup(k, acceptance=acceptance, delta=delta) for k in range(1, MAX_DRAFT + 1)}
        known = {k: speed for k, speed in speeds.items() if speed is not None}
        if not known:
            return None
        k = max(known, key=lambda each: known[each])
        return k, known[k]

    @property
    def is_limited_by_cost(self) -> bool | None:
        """Whether free drafts would gain more than perfect ones; ``None`` if the costs are unknown."""
        perfect, free = self.best(acceptance=(1.0,)), self.best(delta=0.0)
        if perfect is None or free is None or self.delta is None:
            return None
        return self.delta > 0 and free[1] > perfect[1]

    @property
    def limit(self) -> str | None:
        """Returns the setting's limit as half a sentence; ``None`` if its costs are unknown.

        The limit is whichever would gain more if ideal: drafts without cost, or drafts that are always accepted.
        """
        best, perfect, free = self.best(), self.best(acceptance=(1.0,)), self.best(delta=0.0)
        if best is None or perfect is None or free is None or self.delta is None:
            return None
        rate = math.fsum(self.acceptance) / len(self.acceptance) if self.rate is None else self.rate
        head = f"{rate:.0%} accepted, δ {self.delta:.2f}: no k gains more than {best[1]:.2f}×"
        if self.delta == 0:
            return f"{head}; acceptance limits it: perfect drafts would give {perfect[1]:.2f}×"
        side = "the draft's cost" if self.is_limited_by_cost else "acceptance"
        return (
            f"{head}; {side} limits it: free drafts would give {free[1]:.2f}×, perfect ones {perfect[1]:.2f}×"
        )


def verify_cost(run: Run, baseline: Cell) -> VerifyCost:
    """Estimates v(r) from steps under the baseline's conditions with one target forward and known drafting time.

    Args:
        run: The run.
        baseline: The vanilla cell whose steps are the unit.
    """
    seconds: dict[int, list[float]] = {}
    unit = step_seconds(run, baseline)
    for cell in run.header.cells:
        if cell.conditions != baseline.conditions or cell.label == baseline.label:
            continue
        for sample, trace in _answers(run, cell):
            for step in trace.steps[1:]:
                verified = _verify_seconds(step)
                if sample in unit and verified is not None and step.drafted:
                    seconds.setdefault(1 + step.drafted, []).append(verified / unit[sample])
    return VerifyCost(
        {rows: math.fsum(costs) / len(costs) for rows, costs in seconds.items() if len(costs) >= MIN_STEPS}
    )


def all_draft_costs(run: Run) -> dict[str, DraftCosts]:
    """Computes the costs of every cell that drafts, by label."""
    verify: dict[str, VerifyCost] = {}
    costs = {cell.label: draft_costs(run, cell, known=verify) for cell in run.header.cells}
    return {label: each for label, each in costs.items() if each is not None}


def draft_costs(run: Run, cell: Cell, *, known: dict[str, VerifyCost] | None = None) -> DraftCosts | None:
    """Computes costs and acceptance of a cell; ``None`` if it does not draft, or without a vanilla cell.

    Args:
        run: The run.
        cell: The cell.
        known: Costs of verification by baseline; extended here, so that several cells share them.
    """
    traces = [trace for _, trace in _answers(run, cell)]
    acceptance = acceptance_conditional(traces)
    baseline = baseline_of(cell, run.header.cells)
    # in a batch a verification shares its forward: rows of one sequence have no cost of their own
    if not acceptance or baseline is None or cell.batch > 1:
        return None
    known = {} if known is None else known
    if baseline.label not in known:
        known[baseline.label] = verify_cost(run, baseline)
    verify = known[baseline.label]
    lengths = drafted_histogram(traces)
    return DraftCosts(
        delta=_delta(run, cell, baseline, verify),
        verify=verify,
        acceptance=tuple(acceptance.values()),
        rate=acceptance_rate(traces),
        share=1 - lengths.get(0, 0) / sum(lengths.values()),
    )


def step_seconds(run: Run, cell: Cell) -> dict[str, float]:
    """Returns the mean seconds of a decode step, by sample."""
    sums: dict[str, list[float]] = {}
    for sample, trace in _answers(run, cell):
        if len(trace.steps) > 1:
            total = sums.setdefault(sample, [0.0, 0.0])
            total[0] += decode_seconds([trace])
            total[1] += len(trace.steps) - 1
    return {sample: seconds / steps for sample, (seconds, steps) in sums.items() if seconds > 0}


def _delta(run: Run, cell: Cell, baseline: Cell, verify: VerifyCost) -> float | None:
    """Returns the cost of a draft forward in vanilla steps, as measured or as the steps' rest after verification."""
    unit = step_seconds(run, baseline)
    drafting = forwards = 0.0
    for sample, trace in _answers(run, cell):
        for step in trace.steps[1:]:
            count = _draft_forwards(step)
            if count is None or step.drafted is None:
                return None
            if sample not in unit or not count:
                continue
            if step.draft_seconds is not None:
                drafting += step.draft_seconds / unit[sample]
            elif verify.widest is not None:
                drafting += step.timed_s / unit[sample] - verify(1 + step.drafted)
            else:
                return None
            forwards += count
    return max(0.0, drafting / forwards) if forwards else 0.0


def _draft_forwards(step: StepRecord) -> int | None:
    if step.draft_forwards is None or step.micro_forwards is None:
        return None
    return step.draft_forwards + step.micro_forwards


def _verify_seconds(step: StepRecord) -> float | None:
    """Returns the seconds of a step's target forward; ``None`` if they are not known separately."""
    if step.target_forwards != 1 or step.drafted is None:
        return None
    if step.draft_seconds is not None:
        return step.timed_s - step.draft_seconds
    return step.timed_s if _draft_forwards(step) == 0 else None


def _answers(run: Run, cell: Cell) -> Iterable[tuple[str, GenerationTrace]]:
    return (
        (record.sample_id, record.trace) for record in run.answered(cell.label) if record.trace is not None
    )
