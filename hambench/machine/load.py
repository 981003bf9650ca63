"""Load of the machine: memory, and the CPU time of other processes.

Every reading is ``None`` if the machine does not report it; no reading is ever replaced by a model of it.
GPUs are in :mod:`hambench.machine.nvml`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTimes:
    """Seconds of CPU time since boot, summed over all CPUs, and the part that this process used."""

    total: float
    busy: float
    stolen: float
    own: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuLoad:
    """Shares of the machine's CPU time between two readings, 0..1."""

    other: float
    """Share that other processes used, including time stolen by the hypervisor."""
    stolen: float
    seconds: float
    """Wall seconds between the readings."""


def read_cpu_times(stat: Path = Path("/proc/stat")) -> CpuTimes | None:
    """Reads the CPU times now; ``None`` without a usable ``/proc/stat``."""
    try:
        with stat.open() as file:
            name, *fields = file.readline().split()
    except (OSError, ValueError):
        return None
    if name != "cpu" or len(fields) < 8:
        return None
    # user and nice already include guest time
    user, nice, system, idle, iowait, irq, softirq, stolen = (int(field) / _TICKS for field in fields[:8])
    busy = user + nice + system + irq + softirq + stolen
    children = os.times()
    own = time.process_time() + children.children_user + children.children_system
    return CpuTimes(total=busy + idle + iowait, busy=busy, stolen=stolen, own=own) if busy > 0 else None


class CpuLoadMeter:
    """Measures other processes' share of the machine between one ``read()`` and the next.

    The kernel counts in ticks of 10 ms. So a window shorter than ``min_window_s`` stays open, and ``read()`` repeats
    the share of the last whole window (``None`` before there was one).

    Args:
        min_window_s: Shortest window that gives a new share.
        stat: File of the kernel's CPU times.
    """

    def __init__(self, *, min_window_s: float = 0.3, stat: Path = Path("/proc/stat")) -> None:
        self._min_window_s = min_window_s
        self._stat = stat
        self._last: CpuLoad | None = None
        self._before = read_cpu_times(stat)
        self._since = time.monotonic()
        self._helped: dict[int, float] = {}

    def read(self, helpers: Iterable[int] | None = ()) -> CpuLoad | None:
        """Returns the load since the last reading; ``None`` if the machine does not report it.

        Args:
            helpers: Processes that work for this one, such as a measured server; their CPU time and their children's
                does not count as other load. ``None`` if helpers exist but can't be identified; the load is then
                unknown.
        """
        # a helper seen for the first time has used nothing yet
        for pid in helpers or ():
            self._helped.setdefault(pid, cpu_seconds_of(pid))
        seconds = time.monotonic() - self._since
        if self._before is None or seconds < self._min_window_s:
            return None if helpers is None else self._last
        now = read_cpu_times(self._stat)
        if now is None:
            return None if helpers is None else self._last
        taken = {pid: max(cpu_seconds_of(pid), before) for pid, before in self._helped.items()}
        helped = sum(taken[pid] - before for pid, before in self._helped.items())
        self._last = (
            None if helpers is None else load_between(self._before, now, seconds=seconds, helped=helped)
        )
        self._before, self._since, self._helped = now, time.monotonic(), taken
        return self._last


def cpu_seconds_of(pid: int) -> float:
    """Returns the CPU seconds of a process and its children; 0 if it has ended or access is denied."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0.0
    seconds = 0.0
    for member in family:
        with contextlib.suppress(psutil.Error):
            times = member.cpu_times()
            seconds += times.user + times.system
    return seconds


def listening_processes(port: int) -> tuple[int, ...] | None:
    """Returns this machine's processes that listen on a TCP port; ``None`` if access is denied."""
    try:
        sockets = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return None
    pids = {s.pid for s in sockets if s.status == psutil.CONN_LISTEN and s.laddr and s.laddr.port == port}
    return None if not pids or None in pids else tuple(sorted(pid for pid in pids if pid is not None))


def load_between(before: CpuTimes, after: CpuTimes, *, seconds: float, helped: float = 0.0) -> CpuLoad | None:
    """Returns shares of the CPU time that passed between two readings; ``None`` if none passed.

    Args:
        before: The first reading.
        after: The second.
        seconds: Wall seconds between them.
        helped: CPU seconds that helper processes used in between.
    """
    total = after.total - before.total
    if total <= 0:
        return None
    other = (after.busy - before.busy) - (after.own - before.own) - helped
    stolen = after.stolen - before.stolen
    return CpuLoad(other=_share(other, total), stolen=_share(stolen, total), seconds=seconds)


def peak_memory_bytes(device: str = "cpu") -> int | None:
    """Returns peak memory so far: bytes allocated by torch on a GPU, the process's largest resident set on a CPU.

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
    """Resets the peak of a GPU's allocator; a CPU process has no peak to reset."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def allocator_peak_bytes(device: str) -> int | None:
    """Returns the peak since :func:`reset_peak_memory`, all weights included; ``None`` on a CPU.

    The resident set of a CPU process holds the peak of everything that ran before, so it can't be one answer's.
    """
    return peak_memory_bytes(device) if device.startswith("cuda") else None


def free_memory_bytes(device: str = "cpu") -> int:
    """Returns the bytes that can be allocated without swapping, or on a GPU."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole))
