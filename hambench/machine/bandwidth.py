"""Memory bandwidth of this machine as torch reads and copies: the limit that decode speeds are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from hambench.machine.load import free_memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """Memory bandwidths at one moment in bytes per second, as a reference for speeds."""

    device: str
    read: float
    """Bandwidth of a pass that only reads: the ceiling of a decode step, which reads weights."""
    copy: float
    """Bandwidth of a copy, counting bytes read plus bytes written."""
    buffer_bytes: int
    threads: int | None


PROBE_BYTES = {"cpu": 2**29, "cuda": 2**31}
"""Buffer size of the bandwidth probe unless memory is short: far more than caches hold."""


PROBE_SECONDS = 0.3


def measure_bandwidth(
    device: str = "cpu", *, buffer_bytes: int | None = None, seconds: float | None = None
) -> Bandwidth:
    """Measures read and copy bandwidth with torch, as the best of many passes over a buffer larger than any cache.

    It takes the best, not the mean, because a disturbance can only slow a pass. A slow result means a busy machine.

    Args:
        device: Device to measure.
        buffer_bytes: Size of the buffer; by default ``PROBE_BYTES`` (512 MiB on a CPU, 2 GiB on a GPU), or an eighth
            of the free memory.
        seconds: Seconds to spend on each kind of pass; by default ``PROBE_SECONDS``.
    """
    import torch

    if buffer_bytes is None:
        free = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else free_memory_bytes()
        buffer_bytes = min(PROBE_BYTES["cuda" if device.startswith("cuda") else "cpu"], free // 8)
    seconds = PROBE_SECONDS if seconds is None else seconds
    columns = 4096
    source = torch.ones(max(1, buffer_bytes // (4 * columns)), columns, device=device)
    target, vector = torch.empty_like(source), torch.ones(columns, device=device)
    flat = source.view(-1)
    # the fastest form depends on the device and its libraries: seen 33 and 58 GB/s on one machine
    read_passes = (lambda: torch.mv(source, vector), source.sum, lambda: torch.dot(flat, flat))
    size = source.numel() * source.element_size()
    return Bandwidth(
        device=device,
        read=size / min(_best_pass(run, device, seconds) for run in read_passes),
        copy=2 * size / _best_pass(lambda: target.copy_(source), device, seconds),
        buffer_bytes=size,
        threads=None if device.startswith("cuda") else torch.get_num_threads(),
    )


def _best_pass(run: Callable[[], object], device: str, seconds: float) -> float:
    import torch

    def synchronize() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    run()  # first touch maps the pages
    synchronize()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        run()
        synchronize()
        best = min(best, time.perf_counter() - start)
    return best
