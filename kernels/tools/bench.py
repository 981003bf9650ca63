"""Times the kernels, after checking their numerics in the same process.

On a CUDA device it captures each case into one graph over all its sets of weights and replays that between events.
So the figures hold no launch overhead of the host, and no weights stay in the cache. On a CPU it times only plain torch
and says so in the result: a kernel under the interpreter has no meaningful speed.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from hambench.kernels import tuning
from hambench.kernels.tools.bench_cases import Call, Case, CaseMaker
from hambench.kernels.tools.shapes import KernelShape

REPEATS = 20
GPU_PASS_BYTES = 768 * 2**20
"""Ten times the largest L2 cache of an NVIDIA GPU of the Hopper generation."""
CPU_PASS_BYTES = 64 * 2**20


class NumericsError(Exception):
    """A fused kernel disagrees with its reference, so no speed is given."""


@dataclasses.dataclass(frozen=True)
class OpResult:
    """One op at one size: its error, and the seconds per call in each repeat."""

    op: str
    rows: int
    weights: str
    num_bytes: int
    error: float | None
    """Relative error of the fused kernel against its float32 reference; None if it can't run."""
    tolerance: float
    seconds: dict[str, list[float]]
    """Seconds per call in each repeat, by implementation (`fused`, `torch`, `compiled`)."""

    def median_s(self, implementation: str) -> float | None:
        """Returns the median seconds per call."""
        raw = self.seconds.get(implementation)
        return statistics.median(raw) if raw else None

    def bytes_per_second(self, implementation: str) -> float | None:
        """Returns the bytes that a call must move over its median time."""
        median = self.median_s(implementation)
        return None if median is None else self.num_bytes / median


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """Bandwidths measured in the same process, in bytes per second."""

    copy: float
    """Bandwidth of a device-to-device copy, read and write counted."""
    read: float
    """Bandwidth of a sum."""


@dataclasses.dataclass(frozen=True)
class KernelReport:
    """Result of one `hambench bench kernels`."""

    shape: str
    device: str
    fused_timed: bool
    """False if there is no CUDA device; only plain torch was timed then."""
    dtype: str
    versions: dict[str, str]
    ceiling: Ceiling
    tiles: str
    """Source of the tiles: `default` or `tuned`."""
    results: list[OpResult]

    def to_json(self) -> dict[str, Any]:
        """Returns plain values, raw repeats included."""
        return dataclasses.asdict(self)


def device_name(device: torch.device) -> str:
    """Returns the name that the device reports."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def run(
    shape: KernelShape,
    device: torch.device,
    *,
    rows: Sequence[int] = (1, 5),
    dtype: torch.dtype = torch.bfloat16,
    compiled: bool = True,
    only: str = "",
    progress: Callable[[str], None] = lambda text: None,
) -> KernelReport:
    """Checks and times every op.

    Args:
        shape: Model whose sizes to use.
        device: Device to run on.
        rows: Row counts to time.
        dtype: Dtype of activations and dense weights. INT8 weights are timed too, for the rows a draft uses (1).
        compiled: Also time plain torch under torch.compile (CUDA only; takes seconds of compilation per size).
        only: Time ops whose name contains this.
        progress: Receives one line per case.

    Raises:
        NumericsError: If a fused kernel disagrees with its reference.
    """
    on_gpu = device.type == "cuda"
    maker = CaseMaker(shape, device, dtype, GPU_PASS_BYTES if on_gpu else CPU_PASS_BYTES)
    progress("bandwidth")
    ceiling = measure_ceiling(device)
    results = []
    for case in _cases(maker, rows, dtype, only):
        progress(f"{case.op}, {case.rows} rows, {case.weights}")
        results.append(measure(case, device, compiled=compiled and on_gpu))
        del case
        gc.collect()
    return KernelReport(
        shape=shape.name,
        device=device_name(device),
        fused_timed=on_gpu,
        dtype=str(dtype).removeprefix("torch."),
        versions={name: _version(name) for name in ("torch", "triton")} | {"cuda": str(torch.version.cuda)},
        ceiling=ceiling,
        tiles="tuned" if on_gpu and tuning.is_tuned(device) else "default",
        results=results,
    )


def _cases(maker: CaseMaker, rows: Sequence[int], dtype: torch.dtype, only: str) -> Iterator[Case]:
    for num_rows in rows:
        for kind in (dtype, torch.int8) if num_rows == 1 else (dtype,):
            for case in maker.cases(num_rows, kind):
                if only in case.op:
                    yield case


def measure(case: Case, device: torch.device, *, compiled: bool) -> OpResult:
    """Checks a case, then times each of its implementations.

    Raises:
        NumericsError: If the fused kernel disagrees with its reference.
    """
    on_gpu = device.type == "cuda"
    error = check(case) if on_gpu else None
    implementations: dict[str, list[Call]] = {"fused": case.fused} if on_gpu else {}
    if case.torch is not None:
        implementations["torch"] = case.torch
        if compiled:
            implementations["compiled"] = _compiled(case.torch)
    clock = time_on_gpu if on_gpu else time_on_cpu
    seconds = {name: clock(calls) for name, calls in implementations.items()}
    return OpResult(case.op, case.rows, case.weights, case.num_bytes, error, case.tolerance, seconds)


def check(case: Case) -> float:
    """Returns the fused kernel's relative error.

    Raises:
        NumericsError: If the error exceeds the case's tolerance, or is not a number.
    """
    error = case.error()
    if not error <= case.tolerance:
        raise NumericsError(
            f"{case.op} with {case.rows} rows of {case.weights} weights is off by {error:.3g}, more than "
            f"{case.tolerance:.3g}: no speed is given"
        )
    return error


def time_on_gpu(calls: Sequence[Call], repeats: int = REPEATS) -> list[float]:
    """Returns the seconds per call in each repeat, from replays of a graph that holds all calls."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # compiles what the graph captures
        for call in (*calls[:2], calls[-1]):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(3):
        graph.replay()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]  # type: ignore[no-untyped-call]
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    pairs = itertools.pairwise(events)
    return [first.elapsed_time(second) / 1e3 / len(calls) for first, second in pairs]


def time_on_cpu(calls: Sequence[Call], repeats: int = 5) -> list[float]:
    """Returns the seconds per call in each repeat, from passes over all calls."""
    seconds = []
    with torch.inference_mode():
        for call in calls:
            call()
        for _ in range(repeats):
            start = time.perf_counter()
            for call in calls:
                call()
            seconds.append((time.perf_counter() - start) / len(calls))
    return seconds


def _compiled(calls: Sequence[Call]) -> list[Call]:
    function, _, _ = calls[0].parts  # type: ignore[attr-defined]
    torch._dynamo.reset()
    fast = torch.compile(function, dynamic=False)
    compiled_calls: list[Call] = []
    for call in calls:
        _, args, kwargs = call.parts  # type: ignore[attr-defined]
        compiled_calls.append(lambda args=args, kwargs=kwargs: fast(*args, **kwargs))  # type: ignore[misc, no-untyped-call]
    return compiled_calls


def measure_ceiling(device: torch.device) -> Ceiling:
    """Measures the bandwidth of a copy and of a sum over memory much larger than any cache.

    On a CPU it is larger than one core's share of the cache.
    """
    count = (2**30 if device.type == "cuda" else 2**26) // 4
    source = torch.zeros(count, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    clock = time_on_gpu if device.type == "cuda" else time_on_cpu
    copy_s = statistics.median(clock([lambda: target.copy_(source)] * 2))
    read_s = statistics.median(clock([lambda: source.sum()] * 2))
    return Ceiling(copy=2 * source.nbytes / copy_s, read=source.nbytes / read_s)


def tune(
    shape: KernelShape, device: torch.device, *, dtype: torch.dtype, progress: Callable[[str], None]
) -> dict[str, tuning.Tile]:
    """Finds the fastest tile of each GEMV of a shape for one row.

    Returns entries for :func:`hambench.kernels.tuning.table_text`. Every tile is checked before it is timed; one that
    disagrees stops the search with its error.

    Raises:
        NumericsError: If a fused kernel disagrees with its reference.
    """
    maker = CaseMaker(shape, device, dtype, GPU_PASS_BYTES)
    best: dict[str, tuning.Tile] = {}
    for kind in (dtype, torch.int8):
        for case in maker.cases(1, kind):
            entry: list[str] = []
            timed: dict[tuning.Tile, float] = {}
            for tile in tuning.SPACE:
                with tuning.trial(tile, entry):
                    check(case)
                    timed[tile] = statistics.median(time_on_gpu(case.fused, repeats=5))
                if not entry:
                    break  # the op looked up no tile: it has none
            if len(set(entry)) == 1:
                best[entry[0]] = min(timed, key=timed.__getitem__)
                progress(f"{entry[0]}: {best[entry[0]]}, {timed[best[entry[0]]] * 1e6:.2f} µs")
            gc.collect()
    return best


def triton_version() -> str:
    """Returns the version that tiles are filed under."""
    return _version("triton")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
