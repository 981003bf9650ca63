"""Runs a chain of device steps that can stop early, with or without a host round trip per step.

A step is called a part. A part may set a flag on the device, and the kernels of later parts return at once if it is
set. A *loop* is a way to run a chain of parts until then and bring the state to the host:

- ``stepwise``: the host waits for each part's flag before it launches the next;
- ``run-ahead``: the host launches the next part before it reads the last one's flag, so that the device never waits
  for the host; the one extra part returns at once;
- ``predicated``: all parts are one graph, launched once and awaited once; extra parts return at once;
- ``conditional``: like ``predicated``, but conditional graph nodes skip extra parts entirely.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, get_args

import torch

from hambench.engine.cuda.graphs import Launcher, Run, log_once
from hambench.engine.cuda.staging import StagingBuffer

Loop = Literal["stepwise", "run-ahead", "predicated", "conditional"]
GRAPH_LOOPS: tuple[Loop, ...] = ("run-ahead", "predicated", "conditional")
"""Loops of the graph regime."""

Chain = Callable[[], StagingBuffer]
"""Runs parts to their end and returns the state on the host, valid until the chain runs again."""


class LoopMaker(Protocol):
    """Builds chains over one state."""

    def chain(self, parts: Sequence[Run]) -> Chain:
        """Builds a chain of at least one part; the last part must set the flag."""


def loop_maker(loop: Loop, launches: Launcher, state: StagingBuffer) -> LoopMaker:
    """Returns a maker of chains that run with ``loop``, or with the nearest loop that is available here.

    Args:
        loop: A loop of this module.
        launches: Launcher that sends parts to the device.
        state: Buffer on the device that the parts write; its field ``done`` is the flag.

    Raises:
        ValueError: If ``loop`` is not the name of a loop.
    """
    actual = available(loop, launches)
    if actual == "stepwise":
        return _Stepped(launches, state, ahead=0)
    if actual == "run-ahead":
        return _Stepped(launches, state, ahead=1)
    return _Whole(launches, state, skips=actual == "conditional")


def available(loop: Loop, launches: Launcher) -> Loop:
    """Returns the loop that really runs if ``loop`` is requested.

    Raises:
        ValueError: If ``loop`` is not the name of a loop.
    """
    if loop not in get_args(Loop):
        raise ValueError(f"loop must be one of {', '.join(get_args(Loop))}, got {loop!r}")
    if not launches.captures:
        # without graphs, running ahead gains nothing
        return "stepwise"
    if loop == "conditional" and (obstacle := launches.conditional_obstacle()) is not None:
        log_once(f"the loop is predicated instead of conditional: {obstacle}")
        return "predicated"
    return loop


class _Part:
    """A part and its own copy of the state on the host, because the next part may be running already."""

    def __init__(self, run: Run, launches: Launcher, state: StagingBuffer) -> None:
        self.cell, self._fence = state.host_copy(), launches.fence()

        def run_and_post() -> None:
            run()
            self.cell.copy_(state)

        self._replay = launches.capture(run_and_post)

    def launch(self) -> None:
        self._replay()
        self._fence.record()

    def wait(self) -> bool:
        """Waits for the part and returns True if it was the last one."""
        self._fence.wait()
        return bool(self.cell["done"])


class _Stepped:
    def __init__(self, launches: Launcher, state: StagingBuffer, *, ahead: int) -> None:
        self._launches, self._state, self._ahead = launches, state, ahead
        self._parts: dict[Run, _Part] = {}

    def chain(self, parts: Sequence[Run]) -> Chain:
        for run in parts:
            if run not in self._parts:
                self._parts[run] = _Part(run, self._launches, self._state)
        return functools.partial(self._run, [self._parts[run] for run in parts])

    @torch.inference_mode()
    def _run(self, parts: Sequence[_Part]) -> StagingBuffer:
        num_launched = 0
        for index, part in enumerate(parts):
            while num_launched < min(index + 1 + self._ahead, len(parts)):
                parts[num_launched].launch()
                num_launched += 1
            if part.wait():
                break
        return part.cell


class _Whole:
    def __init__(self, launches: Launcher, state: StagingBuffer, *, skips: bool) -> None:
        self._launches, self._state, self._skips = launches, state, skips

    def chain(self, parts: Sequence[Run]) -> Chain:
        cell, fence, state = self._state.host_copy(), self._launches.fence(), self._state

        def post() -> None:
            cell.copy_(state)

        def whole() -> None:
            for part in parts:
                part()
            post()

        if self._skips:
            replay = self._launches.capture_nested(parts, state["done"], post)
        else:
            replay = self._launches.capture(whole)

        @torch.inference_mode()
        def run() -> StagingBuffer:
            replay()
            fence.record()
            fence.wait()
            return cell

        return run
