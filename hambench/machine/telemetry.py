"""What else happens on the machine: other processes' load, memory, and the bandwidth it gives now.

Everything answers ``None`` where the machine doesn't tell; nothing is ever modelled in place of a reading.
GPUs are in :mod:`hambench.machine.nvml`. torch is imported only by what measures with it.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

    from hambench.engine.llama import Llama

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTimes:
    """Seconds of CPU time since boot, summed over all CPUs, and what this process took of them."""

    total: float
    busy: float
    stolen: float
    own: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuLoad:
    """Shares of the machine's CPU time between two readings, 0..1."""

    other: float
    """What other processes took, time stolen by the hypervisor included."""
    stolen: float
    seconds: float
    """Wall seconds between the readings."""


def read_cpu_times(stat: Path = Path("/proc/stat")) -> CpuTimes | None:
    """CPU times now; ``None`` where there is no ``/proc/stat`` or it tells nothing."""
    try:
        with stat.open() as file:
            name, *fields = file.readline().split()
    except (OSError, ValueError):
        return None
    if name != "cpu" or len(fields) < 8:
        return None
    # guest time is already in user and nice
    user, nice, system, idle, iowait, irq, softirq, stolen = (int(field) / _TICKS for field in fields[:8])
    busy = user + nice + system + irq + softirq + stolen
    children = os.times()
    own = time.process_time() + children.children_user + children.children_system
    return CpuTimes(total=busy + idle + iowait, busy=busy, stolen=stolen, own=own) if busy > 0 else None


class CpuLoadMeter:
    """Other processes' share of the machine between one ``read()`` and the next.

    The kernel counts in ticks of 10 ms, so a window shorter than ``min_window_s`` is kept open and the share
    of the last whole window is given again (``None`` before there was one).

    Args:
        min_window_s: Shortest window that gives a new share.
        stat: The kernel's CPU times.
    """

    def __init__(self, *, min_window_s: float = 0.3, stat: Path = Path("/proc/stat")) -> None:
        self._min_window_s = min_window_s
        self._stat = stat
        self._last: CpuLoad | None = None
        self._before = read_cpu_times(stat)
        self._since = time.monotonic()

    def read(self) -> CpuLoad | None:
        """Load since the last reading; ``None`` where the machine doesn't tell."""
        seconds = time.monotonic() - self._since
        if self._before is None or seconds < self._min_window_s:
            return self._last
        now = read_cpu_times(self._stat)
        if now is not None:
            self._last = load_between(self._before, now, seconds=seconds)
            self._before, self._since = now, time.monotonic()
        return self._last


def load_between(before: CpuTimes, after: CpuTimes, *, seconds: float) -> CpuLoad | None:
    """Shares of the CPU time that passed between two readings; ``None`` when none passed."""
    total = after.total - before.total
    if total <= 0:
        return None
    other = (after.busy - before.busy) - (after.own - before.own)
    stolen = after.stolen - before.stolen
    return CpuLoad(other=_share(other, total), stolen=_share(stolen, total), seconds=seconds)


def peak_memory_bytes(device: str = "cpu") -> int | None:
    """Peak memory so far: bytes allocated by torch on a GPU, the process' largest resident set on a CPU.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:1``.
    """
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device)) if torch.cuda.is_available() else None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory_bytes() -> int:
    """Memory that can be taken without swapping."""
    return int(psutil.virtual_memory().available)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """What the memory gave in this moment, bytes per second: the anchor that speeds are judged against."""

    device: str
    read: float
    """A pass that only reads: the ceiling of a decode step, which reads weights."""
    copy: float
    """A copy, bytes read plus bytes written."""
    buffer_bytes: int
    threads: int | None


PROBE_BYTES = {"cpu": 2**29, "cuda": 2**31}
"""Size of the bandwidth probe's buffer where memory is not short: far more than caches hold."""
PROBE_SECONDS = 0.3


def measure_bandwidth(
    device: str = "cpu", *, buffer_bytes: int | None = None, seconds: float | None = None
) -> Bandwidth:
    """Measures read and copy bandwidth with torch: the best of many passes over a buffer that no cache holds.

    The best, not the mean: what disturbs a pass can only slow it. A slow result means a busy machine.

    Args:
        device: Where to measure.
        buffer_bytes: Size of the buffer; by default ``PROBE_BYTES`` (512 MiB on a CPU, 2 GiB on a GPU), or an eighth
            of what is free.
        seconds: Time to spend on each kind of pass; by default ``PROBE_SECONDS``.
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
    # which of them reads fastest depends on the device and its libraries: seen 33 and 58 GB/s on one machine
    read_passes = (lambda: torch.mv(source, vector), source.sum, lambda: torch.dot(flat, flat))
    size = source.numel() * source.element_size()
    return Bandwidth(
        device=device,
        read=size / min(_best_pass(run, device, seconds) for run in read_passes),
        copy=2 * size / _best_pass(lambda: target.copy_(source), device, seconds),
        buffer_bytes=size,
        threads=None if device.startswith("cuda") else torch.get_num_threads(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KVMemory:
    """KV memory as three numbers that must not be mixed: used, held, and what the allocator says."""

    formula_bytes: int
    """Exact integer: 2 · layers · KV heads · head dim · bytes of the type · slots in use."""
    storage_bytes: int
    """Bytes of the cache tensors' storages: what was reserved, used or not."""
    allocator_bytes: int | None
    """What the device's allocator grew by when the cache was made; ``None`` on a CPU, which doesn't tell."""


def kv_formula_bytes(
    *, num_layers: int, num_kv_heads: int, head_dim: int, dtype_bytes: int, slots: int
) -> int:
    """Bytes of keys and values of ``slots`` cached entries."""
    return 2 * num_layers * num_kv_heads * head_dim * dtype_bytes * slots


def measure_kv_memory(model: Llama, *, capacity: int, slots: int) -> KVMemory:
    """Makes a cache of ``capacity`` slots and tells what it takes when ``slots`` of them are in use."""
    on_gpu = model.device.type == "cuda"
    before = _allocated(model.device) if on_gpu else 0
    cache = model.new_cache(capacity)
    shape = model.shape
    return KVMemory(
        formula_bytes=kv_formula_bytes(
            num_layers=shape.num_layers,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            dtype_bytes=model.dtype.itemsize,
            slots=slots,
        ),
        storage_bytes=storage_bytes([cache.keys, cache.values]),
        allocator_bytes=_allocated(model.device) - before if on_gpu else None,
    )


def storage_bytes(tensors: list[torch.Tensor]) -> int:
    """Bytes of the distinct storages behind some tensors; views of one storage are counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _allocated(device: torch.device) -> int:
    import torch

    return int(torch.cuda.memory_allocated(device))


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


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole))
