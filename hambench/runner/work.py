"""The work of a run: which records it needs, in which order, and each one while it is made."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol, Self

from hambench.machine.load import CpuLoadMeter
from hambench.records import Cell, Sample, SampleRecord
from hambench.runner.backend import forget_native_waits, native_calls
from hambench.store import RecordKey

NUM_TIMED_PROMPTS = 3
"""Samples that every cell reads itself: enough for a median, and a few per cent of a run's time."""
BLOCK_BATCHES = 4
"""Samples of one turn of a cell, in largest batches: full but for its end, and drift still hits all cells alike."""

FEWEST_BATCHES = 2
"""Samples of a turn that a budget begins with or adds, at least, in largest batches: sequences end one by one, so most
of a single batch runs next to empty places."""


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One (cell, sample, repeat) to decode."""

    cell: Cell
    sample: Sample
    repeat: int
    reads_prompt: bool = False
    """Whether the cell reads the prompt itself although another one has, so that all cells time this one."""

    @property
    def key(self) -> RecordKey:
        """Key of the record that this job makes."""
        return (self.cell.label, self.sample.sample_id, self.repeat)


Progress = Callable[[Job, int, int], None]
"""Called after each job with the job, how many are done and how many there are."""


class MoreSamples(Protocol):
    """Adds samples to a run on the way."""

    def begin(self) -> None:
        """Tells that the first job begins: warm-ups and probes are done."""

    def __call__(self) -> Sequence[Sample]:
        """Called when the samples so far are answered once; returns further ones, none if there is nothing to add."""


@dataclasses.dataclass(frozen=True, slots=True)
class Workload:
    """The jobs that a run still needs, in order, and the callback told of each record."""

    jobs: tuple[Job, ...]
    num_total: int
    """Records of the whole run, those that were there already included and those of further samples left out."""
    progress: Progress | None = None
    more: MoreSamples | None = None
    """Adds samples to the run on the way, in a run whose jobs are all still to do."""
    num_per_sample: int = 0
    """Records of each sample that is added."""
    added: list[Sample] = dataclasses.field(default_factory=list)
    """The samples that it has added."""

    @classmethod
    def of(
        cls,
        cells: Sequence[Cell],
        samples: Sequence[Sample],
        repeats: int,
        *,
        done: Collection[RecordKey] = (),
        progress: Progress | None = None,
        more: MoreSamples | None = None,
    ) -> Self:
        """Returns the jobs of a run that are not in ``done``, cells interleaved as :func:`schedule` says."""
        jobs = list(schedule(cells, samples, repeats))
        left = tuple(job for job in jobs if job.key not in done)
        return cls(left, len(jobs), progress, more, num_per_sample=len(cells) * repeats)

    @property
    def num_done(self) -> int:
        """Records that were there before."""
        return self.num_total - len(self.jobs)

    @property
    def num_jobs(self) -> int:
        """Jobs as far as they are known: those of added samples included."""
        return len(self.jobs) + len(self.added) * self.num_per_sample

    def turns(self, store: Callable[[Sequence[Sample]], None]) -> Iterator[list[Job]]:
        """Yields the jobs in order, those of one cell that follow each other together.

        Behind the first repeat it asks for further samples until there are none; later repeats have them too.
        ``store`` gets them before their first job is yielded.
        """
        if self.more is None:
            yield from _turns(self.jobs)
            return
        self.more.begin()
        cells = tuple({job.cell.label: job.cell for job in self.jobs}.values())
        first = list({job.sample.sample_id: job.sample for job in self.jobs}.values())
        repeats = 1 + max((job.repeat for job in self.jobs), default=0)
        yield from _turns(job for job in self.jobs if job.repeat == 0)
        while samples := self.more():
            before = (*first, *self.added)
            self.added.extend(samples)
            store(samples)
            yield from _turns(schedule(cells, samples, 1, before=before))
        for repeat in range(1, repeats):
            yield from _turns(job for job in self.jobs if job.repeat == repeat)
            further = schedule(cells, self.added, repeats, before=first)
            yield from _turns(job for job in further if job.repeat == repeat)

    def tell(self, job: Job, num_made: int) -> None:
        """Reports that a job is done, the ``num_made``-th of this workload."""
        if self.progress is not None:
            num_total = self.num_total + self.num_jobs - len(self.jobs)
            self.progress(job, self.num_done + num_made, num_total)


def _turns(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    return (list(turn) for _, turn in itertools.groupby(jobs, key=lambda job: job.cell))


def fewest_at_once(cells: Iterable[Cell]) -> int:
    """Returns how many samples a budget gives to cells at once, at least."""
    largest = max(cell.batch for cell in cells)
    return 1 if largest == 1 else FEWEST_BATCHES * largest


def interleave_tasks(samples: Sequence[Sample]) -> list[Sample]:
    """Returns samples round-robin over tasks, each in document order: a run cut short covers tasks evenly."""
    by_task: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        by_task.setdefault((sample.suite, sample.task), []).append(sample)
    rounds = itertools.zip_longest(*by_task.values())
    return [sample for turn in rounds for sample in turn if sample is not None]


def timed_prompts(samples: Sequence[Sample], before: Sequence[Sample] = ()) -> frozenset[str]:
    """Returns the ids of the samples whose prompt every cell reads itself, also where cells share prompts.

    Times to first token are comparable over the same prompts only. Conversations are left out: from the second turn on
    each cell's prompt is its own, and is read by it anyway. Samples ``before`` these have been timed first.
    """
    first = [sample for sample in interleave_tasks(samples) if not sample.conversation]
    num_before = sum(not sample.conversation for sample in before)
    return frozenset(sample.sample_id for sample in first[: max(0, NUM_TIMED_PROMPTS - num_before)])


def schedule(
    cells: Sequence[Cell], samples: Sequence[Sample], repeats: int, *, before: Sequence[Sample] = ()
) -> Iterator[Job]:
    """Returns every (cell, sample, repeat), with cells interleaved per sample in rotating order.

    Machine drift then affects all cells alike, and no cell always runs first. Behind the samples ``before`` these the
    rotation goes on.
    """
    ordered = interleave_tasks(samples)
    # a batch needs samples at once: cells then take turns per block of them
    most = max(cell.batch for cell in cells)
    size = 1 if most == 1 else BLOCK_BATCHES * most
    timed = timed_prompts(samples, before)
    num_before = -(-len(before) // size)
    for repeat in range(repeats):
        for index, start in enumerate(range(0, len(ordered), size), start=num_before):
            block, first = ordered[start : start + size], (index + repeat) % len(cells)
            for cell in (*cells[first:], *cells[:first]):
                for sample in block:
                    yield Job(cell, sample, repeat, reads_prompt=repeat == 0 and sample.sample_id in timed)


class Opening:
    """One record in the making: what is known before its answer is, and what goes on meanwhile.

    Args:
        job: The record to make.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.sample, self.num_truncated = job, job.sample, 0
        self.base: dict[str, Any] = {
            "cell": job.cell.label,
            "sample_id": job.sample.sample_id,
            "prompt_hash": job.sample.prompt_hash,
            "repeat": job.repeat,
            "started_at": time.time(),
        }
        self.meanwhile: dict[str, Any] = {}

    def begin(self, helpers: tuple[int, ...] | None, load: CpuLoadMeter) -> None:
        """Begins to watch the machine; ``helpers`` are processes that work for the method."""
        self._helpers, self._load = helpers, load
        load.read(helpers)
        forget_native_waits(self.job.cell.kernels)
        self._calls = native_calls(self.job.cell.kernels)

    def end(self) -> None:
        """Notes what went on since :meth:`begin`."""
        before, calls = self._calls, native_calls(self.job.cell.kernels)
        load = self._load.read(self._helpers)
        self.meanwhile = {
            "other_load": load.other if load else None,
            "native_calls": calls.num - before.num if calls and before else None,
            "native_calls_alone": calls.num_alone - before.num_alone if calls and before else None,
        }

    def failed(self, error: Exception) -> SampleRecord:
        """Returns the record of an answer that an exception kept from being made."""
        return SampleRecord(**self.base, error=f"{type(error).__name__}: {error}"[:2000])


@contextlib.contextmanager
def torch_threads(num_threads: int | None) -> Iterator[None]:
    """Runs a block with this number of torch threads; ``None`` leaves it unchanged."""
    if num_threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
