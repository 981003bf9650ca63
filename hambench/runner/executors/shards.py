"""Assigns records to workers: pure bookkeeping, no Ray."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from hambench.runner.generator import Job

W = TypeVar("W", bound=Hashable)
Shard = tuple[Job, ...]


def make_shards(jobs: Iterable[Job]) -> list[Shard]:
    """Groups jobs by (sample, repeat) in order: comparisons are paired by sample, so a sample stays on one device.

    The turns of a conversation stay together: a later one needs the answers before it.
    """
    by_sample: dict[tuple[str, int], list[Job]] = {}
    for job in jobs:
        asked = job.sample.conversation or job.sample.sample_id
        by_sample.setdefault((asked, job.repeat), []).append(job)
    return [tuple(group) for group in by_sample.values()]


def largest_alike(machines: Mapping[W, Hashable]) -> list[W]:
    """Returns the workers of the most common kind of machine, in order, so that a run never mixes kinds."""
    if not machines:
        return []
    kind, _ = Counter(machines.values()).most_common(1)[0]
    return [worker for worker, machine in machines.items() if machine == kind]


class Shards:
    """Remaining work and who does it.

    Args:
        shards: All shards of the run.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._waiting = deque(shards)
        self._taken: dict[Hashable, Shard] = {}
        self._next: dict[Hashable, int] = {}
        self._finished: set[tuple[str, str, int]] = set()

    def next_job(self, worker: Hashable) -> Job | None:
        """Returns the worker's next job, first from its own shard, then from a new one; ``None`` if nothing waits."""
        shard = self._taken.get(worker, ())
        position = self._next.get(worker, 0)
        if position == len(shard):
            if not self._waiting:
                self._taken.pop(worker, None)
                return None
            shard = self._taken[worker] = self._waiting.popleft()
            position = 0
        self._next[worker] = position + 1
        return shard[position]

    def finish(self, job: Job) -> bool:
        """Marks a job as finished; returns false if a worker that was lost since had already finished it."""
        new = job.key not in self._finished
        self._finished.add(job.key)
        return new

    def lose(self, worker: Hashable) -> None:
        """Puts a lost worker's whole shard back in front: finishing it elsewhere would mix devices within a sample."""
        shard = self._taken.pop(worker, None)
        self._next.pop(worker, None)
        if shard is not None:
            self._waiting.appendleft(shard)

    @property
    def num_waiting(self) -> int:
        """Number of shards that no worker has taken."""
        return len(self._waiting)
