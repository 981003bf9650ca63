"""What is left of a run's budget: further samples, chosen while the run goes on by what it has really taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hambench.records import Sample
from hambench.runner.budget import MARGIN, PROBES_S, Bound
from hambench.runner.work import BLOCK_BATCHES, fewest_at_once, interleave_tasks

if TYPE_CHECKING:
    from hambench.runner.request import Prepared, RunRequest

ENDING_S = 6.0
"""Kept for what follows the last sample, next to the bandwidth probe: scoring and the report. A judgement: to run
programs of the model, or to draw a large run, takes longer."""

FIRST_SHARE = 0.25
"""Part of the time that the first samples get: the machine may become slower than it was when calibrated."""


class TimeLeft:
    """Gives further samples as long as each ends before the budget does, as far as the samples so far can tell.

    A budget's first samples are chosen by bounds: every answer at its limit and unlike the others. Most answers end
    earlier, so time is left. A further sample is foretold by its bound times the largest part of a bound that samples
    of this run have taken, with the same margin, so a machine that has become slower is noticed too. The first sample
    of a task is foretold by its bound at least: other tasks' short answers say nothing of its own. In a run of one
    repeat, samples pass the budget by what the last one takes longer than that, at most.

    Args:
        samples: All samples of the suite, in its order.
        chosen: Those of the run already.
        bound: Foretells a sample.
        ends_at: When the last sample must have ended, in seconds of ``clock``.
        repeats: Repeats of the run. Samples are added to the first one; the others then need their time too.
        most: Most samples at a time: a block of the largest batch.
        fewest: Fewest at a time, unless the suite has no more: they keep the largest batch full for a while.
        is_judged_after: Whether answers are judged when all samples have ended, and not with each sample.
        clock: Returns seconds from any fixed point.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        chosen: Sequence[Sample],
        bound: Bound,
        ends_at: float,
        *,
        repeats: int = 1,
        most: int = 1,
        fewest: int = 1,
        is_judged_after: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bound, self._ends_at, self._repeats = bound, ends_at, repeats
        self._most, self._fewest = most, fewest
        self._is_judged_after, self._clock = is_judged_after, clock
        ids = {sample.sample_id for sample in chosen}
        # a header names the suites of the first samples
        suites = {sample.suite for sample in chosen}
        self._waiting = [
            sample
            for sample in interleave_tasks(samples)
            if sample.sample_id not in ids and sample.suite in suites
        ]
        self._num_chosen, self._pace = 0, 0.0
        # tasks with an answer, and the samples that are answered now
        self._begun: set[tuple[str, str]] = set()
        self._asked: Sequence[Sample] = chosen
        # of all samples: the bounds of answering and of what is judged when all have ended
        self._answers_s = self._judging_s = 0.0
        for sample in interleave_tasks(chosen):
            self._count(sample)
        self._began, self._part_s = clock(), self._answers_s

    def begin(self) -> None:
        """Tells that the first sample begins now."""
        self._began = self._clock()

    def __call__(self) -> tuple[Sample, ...]:
        """Returns the next samples, none if no more fit; to be called whenever those given before have ended."""
        now = self._clock()
        if self._part_s > 0:
            self._pace = max(self._pace, (now - self._began) / self._part_s)
        self._begun.update((sample.suite, sample.task) for sample in self._asked)
        before = self._answers_s, self._judging_s, self._num_chosen
        answers_before, self._began = self._answers_s, now
        taken: list[Sample] = []
        taken_s = 0.0
        closed: set[tuple[str, str]] = set()
        for sample in self._waiting:
            task = (sample.suite, sample.task)
            # a task that is closed stays so for this time: later turns of a conversation need the earlier ones
            if len(taken) == self._most or task in closed:
                continue
            answering_s = self._pace_of(sample) * self._foretold(sample)[0]
            if self._left(now, sample, taken_s, answering_s) < 0:
                closed.add(task)
                continue
            taken_s += answering_s
            self._count(sample)
            taken.append(sample)
        # cells would be timed at smaller batches than their own
        if len(taken) < min(self._fewest, len(self._waiting)):
            taken = []
            self._answers_s, self._judging_s, self._num_chosen = before
        self._part_s = self._answers_s - answers_before
        self._asked = taken
        ids = {sample.sample_id for sample in taken}
        self._waiting = [sample for sample in self._waiting if sample.sample_id not in ids]
        return tuple(taken)

    def _pace_of(self, sample: Sample) -> float:
        """Returns the part of its bound that a sample is foretold to take."""
        return self._pace if (sample.suite, sample.task) in self._begun else max(1.0, self._pace)

    def _left(self, now: float, sample: Sample, taken_s: float, answering_s: float) -> float:
        """Returns the seconds that would be left with one more sample, which is answered in ``answering_s``.

        Args:
            now: Seconds of the clock.
            sample: The sample.
            taken_s: Seconds of those that are taken already and go before it.
            answering_s: Seconds of one repeat of it.
        """
        _, judging_s = self._foretold(sample)
        # this repeat of what is taken now, and the later repeats of everything
        later_s = self._pace * self._answers_s + answering_s
        answering = taken_s + answering_s + (self._repeats - 1) * later_s
        # it keeps its bound however early answers end; a machine that answers more slowly than bounds judges so too
        judging = max(1.0, self._pace) * self._repeats * (self._judging_s + judging_s)
        return self._ends_at - now - MARGIN * (answering + judging)

    def _foretold(self, sample: Sample) -> tuple[float, float]:
        total = self._bound(sample, self._num_chosen)
        if not self._is_judged_after:
            return total, 0.0
        answers_s = self._bound(sample, self._num_chosen, is_judged=False)
        return answers_s, total - answers_s

    def _count(self, sample: Sample) -> None:
        answers_s, judging_s = self._foretold(sample)
        self._answers_s += answers_s
        self._judging_s += judging_s
        self._num_chosen += 1


def adds_samples(request: RunRequest) -> bool:
    """Returns whether a run adds samples on the way: it has a budget and goes on in this process."""
    return request.budget_s is not None and request.executor == "local"


def first_share(request: RunRequest) -> float:
    """Returns the part of a budget's time for samples that is given away before the run has begun.

    All of it on a cluster, where none can be added.
    """
    return FIRST_SHARE if adds_samples(request) else 1.0


def time_left(prepared: Prepared) -> TimeLeft | None:
    """Returns what adds samples to a run; ``None`` for a run that adds none."""
    request, cells = prepared.request, prepared.expansion.cells
    if request.budget_s is None or prepared.bound is None or not adds_samples(request):
        return None
    largest = max(cell.batch for cell in cells)
    # half of the probes follow the samples
    ending_s = PROBES_S / 2 * len({cell.threads for cell in cells}) + ENDING_S
    return TimeLeft(
        prepared.captured.samples,
        prepared.samples,
        prepared.bound,
        prepared.began + request.budget_s - ending_s,
        repeats=request.repeats,
        most=1 if largest == 1 else BLOCK_BATCHES * largest,
        fewest=fewest_at_once(cells),
        is_judged_after=request.fidelity and not prepared.generator.shares_prompts,
    )
