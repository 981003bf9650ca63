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
from hambench.analysis.drafts.acceptance import drafted_histogram, place_counts
from hambench.analysis.metrics import acceptance_rate, decode_seconds
from hambench.records import Cell, GenerationTrace, StepRecord
from hambench.registry import is_lossless
from hambench.store import Run

MIN_STEPS = 5
"""Steps of a width from which its cost is taken as measured."""
MIN_ROUNDS = 10
"""Rounds that tried a place of the draft from which its acceptance is taken as known."""


@dataclass(frozen=True, slots=True)
class VerifyCost:
    """v(r): one verification over r rows, in vanilla steps, of a single cell.

    Args:
        by_rows: Measured costs by number of rows; r = 1 is 1 by definition.
    """

    by_rows: Mapping[int, float] = field(default_factory=dict)

    def __call__(self, rows: int) -> float | None:
        """Returns the cost of a width: measured, interpolated, or extrapolated along the line from one row.

        Returns ``None`` for several rows if no width was measured.
        """
        if rows <= 1:
            return 1.0
        points = sorted({**self.by_rows, 1: 1.0}.items())
        for (left, low), (right, high) in pairwise(points):
            if left <= rows <= right:
                return low + (high - low) * (rows - left) / (right - left)
        widest, cost = points[-1]
        if widest == 1:
            return None
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
    tried: tuple[int, ...]
    """Rounds behind the acceptance of each place."""
    rate: float | None = None
    """Accepted over drafted tokens."""
    share: float = 1.0
    """Rounds that drafted anything, over all: a lookup may find nothing. The others are vanilla steps."""

    @property
    def most_drafted(self) -> int:
        """Largest k that the cell's own rounds tell about: acceptance of every place and cost of so many rows."""
        known = 0
        for rounds in self.tried:
            if rounds < MIN_ROUNDS:
                break
            known += 1
        return min(known, (self.verify.widest or 1) - 1)

    def speedup(
        self, k: int, *, acceptance: Sequence[float] | None = None, delta: float | None = None
    ) -> float | None:
        """Returns S(k), the speed-up over vanilla; ``None`` if delta, acceptance or the verification's cost is unknown.

        Args:
            k: Drafted tokens, >= 1. Positions beyond the measured ones have the last one's acceptance.
            acceptance: Replaces the measured acceptance.
            delta: Replaces the measured delta.
        """
        cost = self.delta if delta is None else delta
        known = self.acceptance if acceptance is None else tuple(acceptance)
        verification = self.verify(k + 1)
        if cost is None or not known or verification is None:
            return None
        by_place = [*known, *[known[-1]] * (k - len(known))][:k]
        emitted = 1 + math.fsum(math.prod(by_place[:length]) for length in range(1, k + 1))
        idle = 1 - self.share
        return (idle + self.share * emitted) / (idle + self.share * (verification + k * cost))

    def best(
        self, *, acceptance: Sequence[float] | None = None, delta: float | None = None
    ) -> tuple[int, float] | None:
        """Returns the k up to :attr:`most_drafted` with the largest S(k), and that S(k)."""
        speeds = {
            k: self.speedup(k, acceptance=acceptance, delta=delta) for k in range(1, self.most_drafted + 1)
        }
        known = {k: speed for k, speed in speeds.items() if speed is not None}
        if not known:
            return None
        k = max(known, key=lambda each: known[each])
        return k, known[k]

    @property
    def best_words(self) -> str | None:
        """Returns the best length of those looked at: ``of k = 1 to 4, k = 4 gives most: 1.16×``."""
        best = self.best()
        if best is None:
            return None
        if self.most_drafted == 1:
            return f"k = 1 gives {best[1]:.2f}×"
        return f"of k = 1 to {self.most_drafted}, k = {best[0]} gives most: {best[1]:.2f}×"

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

        The limit is whichever would gain more if ideal: drafts without cost, or drafts that are always accepted. Both
        are estimates at the lengths that the cell's rounds tell about.
        """
        best, perfect, free = self.best_words, self.best(acceptance=(1.0,)), self.best(delta=0.0)
        if best is None or perfect is None or free is None or self.delta is None:
            return None
        rate = math.fsum(self.acceptance) / len(self.acceptance) if self.rate is None else self.rate
        head = f"{rate:.0%} accepted, δ {self.delta:.2f}: {best}"
        if self.delta == 0:
            return f"{head}; acceptance limits it: perfect drafts would give {perfect[1]:.2f}×"
        side = "the draft's cost" if self.is_limited_by_cost else "acceptance"
        return (
            f"{head}; {side} limits it: free drafts would give {free[1]:.2f}×, perfect ones {perfect[1]:.2f}×"
        )

    @property
    def unknown(self) -> str:
        """Returns what is not known, so that :attr:`limit` is ``None``; empty if it is known."""
        if self.delta is None:
            return "what its drafts cost is unknown"
        if self.verify.widest is None:
            return "what its verifications cost is unknown"
        if not self.most_drafted:
            return f"fewer than {MIN_ROUNDS} rounds drafted: too few to say what limits it"
        return ""


def verify_cost(run: Run, baseline: Cell, cell: Cell | None = None) -> VerifyCost:
    """Estimates v(r) from the steps of one cell with one target forward each and known drafting time.

    Cells differ in what surrounds the forward (lookups, draft models, how the cache is held), so widths of different
    cells are not joined. A cell whose steps don't tell a verification's time apart is given the cost of the cell with
    the most such steps, of those under the same conditions that draft without a model; else of any.

    Args:
        run: The run.
        baseline: The vanilla cell whose steps are the unit.
        cell: The cell that verifies; any by default.
    """
    unit = step_seconds(run, baseline)
    if cell is not None and (own := _by_rows(run, cell, unit)):
        return VerifyCost(_means(own))
    others = [
        (other, rows)
        for other in run.header.cells
        if other.conditions == baseline.conditions
        and other.label != baseline.label
        and is_lossless(other)
        and (rows := _by_rows(run, other, unit))
    ]
    others.sort(key=lambda each: (_has_draft_model(run, each[0]), -sum(map(len, each[1].values()))))
    return VerifyCost(_means(others[0][1]) if others else {})


def _by_rows(run: Run, cell: Cell, unit: Mapping[str, float]) -> dict[int, list[float]]:
    """Returns the costs of a cell's verifications, in vanilla steps, by rows; widths with too few are left out."""
    seconds: dict[int, list[float]] = {}
    for sample, trace in _answers(run, cell):
        for step in trace.steps[1:]:
            verified = _verify_seconds(step)
            if sample in unit and verified is not None and step.drafted:
                seconds.setdefault(1 + step.drafted, []).append(verified / unit[sample])
    return {rows: costs for rows, costs in sorted(seconds.items()) if len(costs) >= MIN_STEPS}


def _means(costs: Mapping[int, list[float]]) -> dict[int, float]:
    return {rows: math.fsum(each) / len(each) for rows, each in costs.items()}


def _has_draft_model(run: Run, cell: Cell) -> bool:
    return any(_draft_forwards(step) for _, trace in _answers(run, cell) for step in trace.steps[1:])


def all_draft_costs(run: Run) -> dict[str, DraftCosts]:
    """Computes the costs of every cell that drafts, by label."""
    costs = {cell.label: draft_costs(run, cell) for cell in run.header.cells}
    return {label: each for label, each in costs.items() if each is not None}


def draft_costs(run: Run, cell: Cell) -> DraftCosts | None:
    """Computes costs and acceptance of a cell.

    Returns ``None`` if it does not draft, or without a vanilla cell under its conditions.
    """
    traces = [trace for _, trace in _answers(run, cell)]
    places = [(place.conditional, place.tried) for place in place_counts(traces)]
    acceptance = [(share, tried) for share, tried in places if share is not None]
    baseline = baseline_of(cell, run.header.cells)
    # in a batch a verification shares its forward: rows of one sequence have no cost of their own
    if not acceptance or baseline is None or cell.batch > 1 or cell.conditions != baseline.conditions:
        return None
    verify = verify_cost(run, baseline, cell)
    lengths = drafted_histogram(traces)
    return DraftCosts(
        delta=_delta(run, cell, baseline, verify),
        verify=verify,
        acceptance=tuple(share for share, _ in acceptance),
        tried=tuple(tried for _, tried in acceptance),
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
    """Returns the cost of a draft forward in vanilla steps, as measured or as the steps' rest after verification.

    Returns ``None`` if no forward was timed, or if verifications leave nothing of the steps: forwards are not free.
    """
    unit = step_seconds(run, baseline)
    drafting = forwards = 0.0
    has_model = False
    for sample, trace in _answers(run, cell):
        for step in trace.steps[1:]:
            count = _draft_forwards(step)
            if count is None or step.drafted is None:
                return None
            has_model = has_model or count > 0
            if sample not in unit or not count:
                continue
            if step.draft_seconds is not None:
                drafting += step.draft_seconds / unit[sample]
            elif (verified := verify(1 + step.drafted)) is not None:
                drafting += step.timed_s / unit[sample] - verified
            else:
                return None
            forwards += count
    if not has_model:
        return 0.0
    return drafting / forwards if forwards and drafting > 0 else None


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
