"""Load of the machine: CPU time that other processes took, and memory.

Everything returns ``None`` where the machine does not tell; no reading is ever replaced by a model of it.
GPUs are in :mod:`hambench.machine.nvml`.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    pass

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


def reset_peak_memory(device: str) -> None:
    """Makes the peak of a GPU's allocator begin again; a CPU process has no peak that could be reset."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def allocator_peak_bytes(device: str) -> int | None:
    """Peak since :func:`reset_peak_memory`, all weights included; ``None`` on a CPU.

    The resident set of a CPU process holds the peak of whatever ran in it before: no single answer's.
    """
    return peak_memory_bytes(device) if device.startswith("cuda") else None


def free_memory_bytes() -> int:
    """Memory that can be taken without swapping."""
    return int(psutil.virtual_memory().available)


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole))
