"""Launchers of device work: launch it directly, or capture it once in a CUDA graph and replay it.

Both offer the same calls (:class:`Launcher`), so that CPU tests with stand-ins cover the code built on them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

Run = Callable[[], None]

_log = logging.getLogger("hambench.engine.cuda.graphs")


class Fence(Protocol):
    """A point in the device's work that the host can wait for."""

    def record(self) -> None:
        """Moves the point after the work launched so far."""

    def wait(self) -> None:
        """Waits until the device has passed the point."""


class Launcher(Protocol):
    """Launches work over buffers with fixed addresses."""

    captures: bool
    """True if prepared work is bound to its buffers and worth storing with them."""

    def capture(self, run: Run) -> Run:
        """Returns a function that repeats ``run``, now and later; preparing it may run ``run`` several times."""

    def capture_nested(self, parts: Sequence[Run], done: torch.Tensor, last: Run) -> Run:
        """Like :meth:`capture` for a chain: each part but the first runs only if ``done`` ``[1]`` is unset by then.

        ``last`` always runs.
        """

    def conditional_obstacle(self) -> str | None:
        """Returns why :meth:`capture_nested` can't skip parts here, ``None`` if it can."""

    def fence(self) -> Fence:
        """Returns a new fence."""


class EagerLauncher:
    """Launches everything directly.

    Args:
        device: Device to run the work on.
    """

    captures = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def capture(self, run: Run) -> Run:
        """See :class:`Launcher`."""
        return run

    def capture_nested(self, parts: Sequence[Run], done: torch.Tensor, last: Run) -> Run:
        """Refuses, because skipping parts needs a graph.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(f"parts can't be skipped: {self.conditional_obstacle()}")

    def conditional_obstacle(self) -> str | None:
        """See :class:`Launcher`."""
        return "work that is launched directly has no conditional nodes; use the graph regime"

    def fence(self) -> Fence:
        """See :class:`Launcher`."""
        return _CudaFence() if self._device.type == "cuda" else _NoFence()


class GraphLauncher:
    """Captures work once and replays it with one launch."""

    captures = True

    def capture(self, run: Run) -> Run:
        """See :class:`Launcher`.

        Runs the work twice on a side stream before the capture, which compiles its kernels.
        """
        _warm_up(run)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        replay: Run = graph.replay
        return replay

    def capture_nested(self, parts: Sequence[Run], done: torch.Tensor, last: Run) -> Run:
        """See :class:`Launcher`. Each part is the body of an IF node inside the previous one.

        Raises:
            RuntimeError: If this torch or CUDA has no conditional nodes.
        """
        obstacle = self.conditional_obstacle()
        if obstacle is not None:
            raise RuntimeError(f"parts can't be skipped: {obstacle}")

        def whole() -> None:
            for part in parts:
                part()
            last()

        _warm_up(whole)
        going = [torch.zeros((), dtype=torch.bool, device=done.device) for _ in parts[1:]]
        # torch's stubs list both calls and its own torch.cond uses them, but its documentation does not
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            _nest(graph, parts, going, done)
            last()
        replay: Run = graph.replay
        return replay

    def conditional_obstacle(self) -> str | None:
        """See :class:`Launcher`."""
        if not hasattr(torch.cuda.CUDAGraph, "begin_capture_to_if_node"):
            return f"torch {torch.__version__} has no conditional graph nodes"
        version = tuple(int(part) for part in (torch.version.cuda or "0.0").split(".")[:2])
        return (
            None
            if version >= (12, 4)
            else f"torch was built for CUDA {torch.version.cuda}; IF nodes need 12.4 or later"
        )

    def fence(self) -> Fence:
        """See :class:`Launcher`."""
        return _CudaFence()


def _nest(graph: Any, parts: Sequence[Run], going: Sequence[torch.Tensor], done: torch.Tensor) -> None:
    first, *rest = parts
    first()
    if not rest:
        return
    torch.eq(done[0], 0, out=going[0])
    graph.begin_capture_to_if_node(going[0])
    try:
        _nest(graph, rest, going[1:], done)
    finally:
        graph.end_capture_to_conditional_node()


def _warm_up(run: Run) -> None:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
        run()
    torch.cuda.current_stream().wait_stream(side)


class _CudaFence:
    def __init__(self) -> None:
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def record(self) -> None:
        self._event.record()

    def wait(self) -> None:
        self._event.synchronize()


class _NoFence:
    def record(self) -> None:
        """Does nothing: on a CPU, work is done when its call returns."""

    def wait(self) -> None:
        """Does nothing: no work is pending."""


@functools.cache
def log_once(message: str) -> None:
    """Logs a message once per process."""
    _log.warning("%s", message)
