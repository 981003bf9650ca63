"""Readings of a GPU through NVML: power, energy, clocks, temperature, throttling, memory.

A reading that the driver refuses is ``None``; without a driver there is no :class:`Gpu`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    import torch

THROTTLES = {
    "HwSlowdown": "hardware slowdown",
    "HwThermalSlowdown": "too hot (hardware)",
    "SwThermalSlowdown": "too hot (driver)",
    "HwPowerBrakeSlowdown": "power brake",
    "SwPowerCap": "power cap",
}
"""Clock event reasons that make a timing suspect, by the name of NVML's constant."""

MIN_ENERGY_WINDOW_S = 10.0
"""Shortest window to quote an energy for, because a large GPU's counter samples a quarter of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """Readings of one GPU at one moment."""

    at: float
    """``time.monotonic()`` seconds."""
    power_w: float | None
    """Power, which recent GPUs average over about a second."""
    energy_j: float | None
    """Energy counter since the driver was loaded."""
    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    utilization: float | None
    """Share of the last sampling period with a kernel running, 0..1."""
    memory_used_bytes: int | None
    temperature_c: int | None
    throttles: tuple[str, ...] | None
    """Reasons for reduced clocks; empty if they are not reduced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Joules of a window of at least :data:`MIN_ENERGY_WINDOW_S` seconds."""

    joules: float
    seconds: float
    idle_power_w: float | None
    """Power before the window, while the GPU was idle."""

    def per_token(self, num_tokens: int) -> tuple[float, float | None]:
        """Returns joules per token, gross and net of idle power (``None`` if that is unknown)."""
        net = None if self.idle_power_w is None else self.joules - self.idle_power_w * self.seconds
        return self.joules / num_tokens, None if net is None else net / num_tokens


class Gpu:
    """One GPU in NVML.

    Args:
        nvml: The initialised ``pynvml`` module, or a stand-in.
        handle: NVML's handle of the device.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self.name = _text(self._ask(lambda: nvml.nvmlDeviceGetName(handle)))
        self.driver = _text(self._ask(nvml.nvmlSystemGetDriverVersion))
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        self.memory_bytes: int | None = None if memory is None else int(memory.total)

    @classmethod
    def open(cls, index: int = 0, *, nvml: Any = None) -> Gpu | None:
        """Opens the GPU of that number in NVML's order; ``None`` without a driver or such a GPU."""
        if nvml is None:
            import pynvml

            nvml = pynvml
        try:
            nvml.nvmlInit()
            return cls(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
        except nvml.NVMLError:
            return None

    @classmethod
    def by_uuid(cls, uuid: str, *, nvml: Any = None) -> Gpu | None:
        """Opens the GPU of that UUID (``GPU-…``); ``None`` without a driver or such a GPU."""
        if nvml is None:
            import pynvml

            nvml = pynvml
        try:
            nvml.nvmlInit()
            return cls(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))
        except nvml.NVMLError:
            return None

    def read(self) -> GpuReading:
        """Takes all readings now."""
        nvml, handle = self._nvml, self._handle
        power_mw = self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        energy_mj = self._ask(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        rates = self._ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        return GpuReading(
            at=time.monotonic(),
            power_w=None if power_mw is None else power_mw / 1e3,
            energy_j=None if energy_mj is None else energy_mj / 1e3,
            sm_clock_mhz=self._ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            memory_clock_mhz=self._ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            utilization=None if rates is None else rates.gpu / 100,
            memory_used_bytes=None if memory is None else int(memory.used),
            temperature_c=self._ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            throttles=self._throttles(),
        )

    def _throttles(self) -> tuple[str, ...] | None:
        # "throttle reasons" were renamed "event reasons", and a driver may know only one of the names
        ask = getattr(self._nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        ask = ask or self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons
        mask = self._ask(lambda: ask(self._handle))
        if mask is None:
            return None
        bits = {
            reason: getattr(self._nvml, f"nvmlClocksThrottleReason{name}", 0)
            for name, reason in THROTTLES.items()
        }
        return tuple(reason for reason, bit in bits.items() if mask & bit)

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except self._nvml.NVMLError:
            return None


def gpu_of(device: torch.device, *, nvml: Any = None) -> Gpu | None:
    """Returns the GPU that torch calls ``device``; ``None`` for a CPU, or if NVML does not know it.

    It matches by UUID: torch numbers the visible GPUs, NVML numbers all GPUs, and another GPU's energy or clocks would
    be worse than none.
    """
    if device.type != "cuda":
        return None
    import torch

    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    if uuid is not None:
        return Gpu.by_uuid(f"GPU-{str(uuid).removeprefix('GPU-')}", nvml=nvml)
    return Gpu.open(nvml=nvml) if torch.cuda.device_count() == 1 else None


class GpuSampler:
    """Reads a GPU in a thread while the block runs; a context manager.

    Args:
        gpu: The GPU; ``None`` samples nothing.
        period_s: Seconds between readings.
    """

    def __init__(self, gpu: Gpu | None, *, period_s: float = 0.1) -> None:
        self._gpu = gpu
        self._period_s = period_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.readings: list[GpuReading] = []

    def __enter__(self) -> Self:
        if self._gpu is not None:
            self.readings.append(self._gpu.read())
            self._thread = threading.Thread(target=self._sample, name="gpu-sampler", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None and self._gpu is not None:
            self._thread.join()
            self.readings.append(self._gpu.read())

    def _sample(self) -> None:
        assert self._gpu is not None
        while not self._stop.wait(self._period_s):
            self.readings.append(self._gpu.read())

    def energy(self, *, idle_power_w: float | None = None) -> Energy | None:
        """Returns the joules from the first reading to the last.

        ``None`` without a counter, or if the window is too short to trust.
        """
        if not self.readings:
            return None
        first, last = self.readings[0], self.readings[-1]
        seconds = last.at - first.at
        if first.energy_j is None or last.energy_j is None or seconds < MIN_ENERGY_WINDOW_S:
            return None
        return Energy(joules=last.energy_j - first.energy_j, seconds=seconds, idle_power_w=idle_power_w)

    def summary(self) -> dict[str, float | str | None]:
        """Returns medians and peaks of the readings, JSON-able; empty without a GPU."""
        if not self.readings:
            return {}
        reasons = {reason for reading in self.readings for reason in reading.throttles or ()}
        return {
            "gpu_readings": len(self.readings),
            "gpu_power_w": self._median("power_w"),
            "gpu_sm_clock_mhz": self._median("sm_clock_mhz"),
            "gpu_memory_clock_mhz": self._median("memory_clock_mhz"),
            "gpu_utilization": self._median("utilization"),
            "gpu_temperature_c_max": self._max("temperature_c"),
            "gpu_memory_used_bytes_max": self._max("memory_used_bytes"),
            "gpu_throttles": ", ".join(sorted(reasons)) or None,
        }

    def _values(self, name: str) -> list[float]:
        return [value for reading in self.readings if (value := getattr(reading, name)) is not None]

    def _median(self, name: str) -> float | None:
        values = self._values(name)
        return float(np.median(values)) if values else None

    def _max(self, name: str) -> float | None:
        return max(self._values(name), default=None)


def _text(value: str | bytes | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value
