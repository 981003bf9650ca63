"""The work of a run: which records it needs, in which order, and each one while it is made."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Self

from hambench.machine.load import CpuLoadMeter
from hambench.records import Cell, Sample, SampleRecord
from hambench.runner.backend import forget_native_waits, native_calls
from hambench.store import RecordKey

NUM_TIMED_PROMPTS = 3
"""Samples that every cell reads itself: enough for a median, and a few per cent of a run's time."""
BLOCK_BATCHES = 4
"""Samples of one turn of a cell, in largest batches: full but for its end, and drift still hits all cells alike."""


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


@dataclasses.dataclass(frozen=True, slots=True)
class Workload:
    """The jobs that a run still needs, in order, and the callback told of each record."""

    jobs: tuple[Job, ...]
    num_total: int
    """Records of the whole run, those that were there already included."""
    progress: Progress | None = None

    @classmethod
    def of(
        cls,
        cells: Sequence[Cell],
        samples: Sequence[Sample],
        repeats: int,
        *,
        done: Collection[RecordKey] = (),
        progress: Progress | None = None,
    ) -> Self:
        """Returns the jobs of a run that are not in ``done``, cells interleaved as :func:`schedule` says."""
        jobs = list(schedule(cells, samples, repeats))
        return cls(tuple(job for job in jobs if job.key not in done), len(jobs), progress)

    @property
    def num_done(self) -> int:
        """Records that were there before."""
        return self.num_total - len(self.jobs)

    def tell(self, job: Job, num_made: int) -> None:
        """Reports that a job is done, the ``num_made``-th of this workload."""
        if self.progress is not None:
            self.progress(job, self.num_done + num_made, self.num_total)


def interleave_tasks(samples: Sequence[Sample]) -> list[Sample]:
    """Returns samples round-robin over tasks, each in document order: a run cut short covers tasks evenly."""
    by_task: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        by_task.setdefault((sample.suite, sample.task), []).append(sample)
    rounds = itertools.zip_longest(*by_task.values())
    return [sample for turn in rounds for sample in turn if sample is not None]


def timed_prompts(samples: Sequence[Sample]) -> frozenset[str]:
    """Returns the ids of the samples whose prompt every cell reads itself, also where cells share prompts.

    Times to first token are comparable over the same prompts only. Conversations are left out: from the second turn on
    each cell's prompt is its own, and is read by it anyway.
    """
    first = [sample for sample in interleave_tasks(samples) if not sample.conversation]
    return frozenset(sample.sample_id for sample in first[:NUM_TIMED_PROMPTS])


def schedule(cells: Sequence[Cell], samples: Sequence[Sample], repeats: int) -> Iterator[Job]:
    """Returns every (cell, sample, repeat), with cells interleaved per sample in rotating order.

    Machine drift then affects all cells alike, and no cell always runs first.
    """
    ordered = interleave_tasks(samples)
    # a batch needs samples at once: cells then take turns per block of them
    most = max(cell.batch for cell in cells)
    size = 1 if most == 1 else BLOCK_BATCHES * most
    timed = timed_prompts(samples)
    for repeat in range(repeats):
        for index, start in enumerate(range(0, len(ordered), size)):
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
