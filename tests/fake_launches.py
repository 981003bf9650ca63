"""Stand-ins for CUDA graphs on a machine without: work that runs at its replay, or only when someone waits for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import MappingProxyType

import torch


class Replayed:
    """Graphs without a device: preparing runs the work twice, as a warm-up does, and each replay once more."""

    captures = True
    conditional = True

    def __init__(self) -> None:
        self.num_captured = 0

    def capture(self, run):
        run()
        run()
        self.num_captured += 1
        return run

    def capture_nested(self, parts, done, last):
        def nested() -> None:
            for part in parts:
                part()
                if done.item():
                    break
            last()

        return self.capture(nested)

    def conditional_obstacle(self):
        return None if self.conditional else "there is no such thing here"

    def fence(self):
        return Fence(self)

    def run_through(self, number: int) -> None:
        """Runs what was launched up to a number."""


class Queued(Replayed):
    """As a device that is late: what is launched runs only once the host waits for a fence behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: list[Callable[[], None]] = []
        self.num_launched = self.num_run = 0

    def capture(self, run):
        run = super().capture(run)

        def replay() -> None:
            self.queue.append(run)
            self.num_launched += 1

        return replay

    @torch.inference_mode()
    def run_through(self, number: int) -> None:
        while self.num_run < number:
            self.queue.pop(0)()
            self.num_run += 1

    def flush(self) -> None:
        """Runs everything launched."""
        self.run_through(self.num_launched)


class Fence:
    def __init__(self, launches) -> None:
        self._launches, self._number = launches, 0

    def record(self) -> None:
        self._number = getattr(self._launches, "num_launched", 0)

    def wait(self) -> None:
        self._launches.run_through(self._number)


class ScriptedParts:
    """Four parts over a state with the fields ``done`` and ``value``, and the log of what they did.

    Run number i ends with part ``counts[i]`` (from 1); parts after it find the flag set and change nothing.
    """

    FIELDS = MappingProxyType({"value": (torch.int64, 1), "done": (torch.int32, 1)})

    def __init__(self, counts: Sequence[int], state) -> None:
        self.counts, self.state = counts, state
        self.parts = [self._first, *(functools.partial(self._later, number) for number in (2, 3, 4))]
        self.restart()

    def restart(self) -> None:
        """Forgets what preparing ran."""
        self.run = -1
        self.log: list[str] = []

    def _first(self) -> None:
        self.run += 1
        self.state["done"].zero_()
        self._do(1)

    def _later(self, number: int) -> None:
        if self.state["done"].item():
            self.log.append(f"skip {number}")
        else:
            self._do(number)

    def _do(self, number: int) -> None:
        self.log.append(f"part {number}")
        self.state["value"].fill_(10 * self.run + number)
        if number == self.counts[self.run % len(self.counts)]:
            self.state["done"].fill_(1)
