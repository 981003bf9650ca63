"""How work reaches the device: launched as it comes, or captured once in a CUDA graph and replayed.

Both ways have the same calls (:class:`Launcher`), so that what is built on them is tested on a CPU with stand-ins.
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
    """A point of the device's work that the host can wait for."""

    def record(self) -> None:
        """Moves it behind the work launched so far."""

    def wait(self) -> None:
        """Returns once the device has passed it."""


class Launcher(Protocol):
    """Ways of launching work over buffers that stay where they are."""

    captures: bool
    """Whether prepared work is bound to its buffers and worth keeping with them."""

    def capture(self, run: Run) -> Run:
        """What does ``run`` again, now and later; preparing may run it several times."""

    def capture_nested(self, parts: Sequence[Run], done: torch.Tensor, last: Run) -> Run:
        """Likewise, each part but the first only where the flag ``done`` ``[1]`` is unset by then; ``last`` always."""

    def conditional_obstacle(self) -> str | None:
        """Why :meth:`capture_nested` can't skip parts here, ``None`` if it can."""

    def fence(self) -> Fence:
        """A new fence."""


class EagerLauncher:
    """Launcher everything as it comes.

    Args:
        device: Where the work runs.
    """

    captures = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def capture(self, run: Run) -> Run:
        """See :class:`Launcher`."""
        return run

    def capture_nested(self, parts: Sequence[Run], done: torch.Tensor, last: Run) -> Run:
        """Not to be had without a graph.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(f"parts can't be skipped: {self.conditional_obstacle()}")

    def conditional_obstacle(self) -> str | None:
        """See :class:`Launcher`."""
        return "work that is launched as it comes has no conditional nodes; use the graph regime"

    def fence(self) -> Fence:
        """See :class:`Launcher`."""
        return _CudaFence() if self._device.type == "cuda" else _NoFence()


class GraphLauncher:
    """Captures work once and replays it with one launch."""

    captures = True

    def capture(self, run: Run) -> Run:
        """See :class:`Launcher`.

        Before it is captured, the work runs twice beside the current stream, which compiles its kernels.
        """
        _warm_up(run)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        replay: Run = graph.replay
        return replay

    def capture_nested(self, parts: Sequence[Run], done: torch.Tensor, last: Run) -> Run:
        """See :class:`Launcher`: each part is the body of an IF node inside the one before it.

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
        # the two calls are in torch's stubs and behind its own torch.cond, but not in its documentation
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
        """On a CPU work is done when its call returns."""

    def wait(self) -> None:
        """Nothing is under way."""


@functools.cache
def log_once(message: str) -> None:
    """Says something once a process."""
    _log.warning("%s", message)
