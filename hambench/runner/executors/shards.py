"""Which worker makes which records: pure bookkeeping, no Ray."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from hambench.runner.generator import Job

W = TypeVar("W", bound=Hashable)
Shard = tuple[Job, ...]


def make_shards(jobs: Iterable[Job]) -> list[Shard]:
    """Jobs grouped by (sample, repeat), order kept: a comparison is paired by sample, so it stays on one device."""
    by_sample: dict[tuple[str, int], list[Job]] = {}
    for job in jobs:
        by_sample.setdefault((job.sample.sample_id, job.repeat), []).append(job)
    return [tuple(group) for group in by_sample.values()]


def largest_alike(machines: Mapping[W, Hashable]) -> list[W]:
    """The workers of the most common kind of machine, in order: only like is compared with like."""
    if not machines:
        return []
    kind, _ = Counter(machines.values()).most_common(1)[0]
    return [worker for worker, machine in machines.items() if machine == kind]


class Shards:
    """What is left to do, and who does it.

    Args:
        shards: All of it.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._waiting = deque(shards)
        self._taken: dict[Hashable, Shard] = {}
        self._next: dict[Hashable, int] = {}
        self._finished: set[tuple[str, str, int]] = set()

    def next_job(self, worker: Hashable) -> Job | None:
        """The worker's next job: the rest of its shard, then another; ``None`` if nothing waits."""
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
        """Notes a finished job; false if it had been finished before, by a worker that was lost."""
        new = job.key not in self._finished
        self._finished.add(job.key)
        return new

    def lose(self, worker: Hashable) -> None:
        """Puts a lost worker's whole shard back in front: half of it on another device would compare unlike."""
        shard = self._taken.pop(worker, None)
        self._next.pop(worker, None)
        if shard is not None:
            self._waiting.appendleft(shard)

    @property
    def num_waiting(self) -> int:
        """Shards that nobody has taken."""
        return len(self._waiting)
