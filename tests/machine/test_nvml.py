from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hambench.machine.nvml import Energy, Gpu, GpuSampler, gpu_of


class Refused(Exception):
    pass


class FakeNvml:
    """NVML of a GPU that burns 100 W; ``refuses`` names the functions that its driver doesn't support."""

    NVMLError = Refused
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    nvmlClocksThrottleReasonSwPowerCap = 0x4
    nvmlClocksThrottleReasonGpuIdle = 0x1

    def __init__(self, refuses: tuple[str, ...] = (), throttle_mask: int = 0) -> None:
        self.refuses = refuses
        self.throttle_mask = throttle_mask
        self.millijoules = 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in object.__getattribute__(self, "refuses"):
            return self.refuse
        return object.__getattribute__(self, name)

    def refuse(self, *_: object) -> Any:
        raise Refused("Not Supported")

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index > 0:
            raise Refused("Invalid Argument")
        return "handle"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-1234":
            raise Refused("Not Found")
        return "handle"

    def nvmlDeviceGetName(self, _: str) -> str:
        return "Fake GPU"

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"1.2"

    def nvmlDeviceGetMemoryInfo(self, _: str) -> SimpleNamespace:
        return SimpleNamespace(total=1000, used=400)

    def nvmlDeviceGetPowerUsage(self, _: str) -> int:
        return 100_000

    def nvmlDeviceGetTotalEnergyConsumption(self, _: str) -> int:
        self.millijoules += 1_000
        return self.millijoules

    def nvmlDeviceGetUtilizationRates(self, _: str) -> SimpleNamespace:
        return SimpleNamespace(gpu=50)

    def nvmlDeviceGetClockInfo(self, _: str, kind: int) -> int:
        return 1000 * kind

    def nvmlDeviceGetTemperature(self, _: str, __: int) -> int:
        return 60

    def nvmlDeviceGetCurrentClocksEventReasons(self, _: str) -> int:
        return self.throttle_mask


def opened(fake: FakeNvml) -> Gpu:
    gpu = Gpu.open(nvml=fake)
    assert gpu is not None
    return gpu


def test_readings_are_converted_to_watts_joules_and_shares() -> None:
    reading = opened(FakeNvml()).read()
    assert (reading.power_w, reading.energy_j, reading.utilization) == (100.0, 1.0, 0.5)
    assert (reading.sm_clock_mhz, reading.memory_clock_mhz, reading.throttles) == (1000, 2000, ())


def test_idle_is_no_throttling_and_a_power_cap_is() -> None:
    assert opened(FakeNvml(throttle_mask=0x1)).read().throttles == ()
    assert opened(FakeNvml(throttle_mask=0x5)).read().throttles == ("power cap",)


def test_what_the_driver_refuses_is_none_and_the_rest_is_read() -> None:
    refused = (
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetName",
    )
    gpu = opened(FakeNvml(refuses=refused))
    reading = gpu.read()
    assert (gpu.name, reading.power_w, reading.energy_j, reading.throttles, reading.utilization) == (
        None,
    ) * 5
    assert reading.temperature_c == 60


def test_no_driver_and_no_such_gpu_are_no_gpu() -> None:
    assert Gpu.open(nvml=FakeNvml(refuses=("nvmlInit",))) is None
    assert Gpu.open(3, nvml=FakeNvml()) is None


def test_the_sampler_reads_while_the_block_runs_and_stops_with_it() -> None:
    with GpuSampler(opened(FakeNvml(throttle_mask=0x4)), period_s=0.005) as sampler:
        time.sleep(0.1)
    taken = len(sampler.readings)
    time.sleep(0.03)
    assert len(sampler.readings) == taken >= 4
    summary = sampler.summary()
    assert summary["gpu_power_w"] == 100
    assert summary["gpu_throttles"] == "power cap"


def test_the_sampler_stops_when_the_block_fails() -> None:
    sampler = GpuSampler(opened(FakeNvml()), period_s=0.005)
    with pytest.raises(RuntimeError, match="inside"), sampler:
        raise RuntimeError("inside")
    taken = len(sampler.readings)
    time.sleep(0.03)
    assert len(sampler.readings) == taken


def test_without_a_gpu_nothing_is_sampled_and_nothing_is_made_up() -> None:
    with GpuSampler(None) as sampler:
        pass
    assert sampler.summary() == {}
    assert sampler.energy() is None


def test_energy_needs_a_window_long_enough_and_a_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    def energy(seconds: float, fake: FakeNvml) -> Energy | None:
        clock = iter([0.0, seconds])
        # the module's own name, not the clock itself: every thread of this process reads that one
        monkeypatch.setattr("hambench.machine.nvml.time", SimpleNamespace(monotonic=lambda: next(clock)))
        with GpuSampler(opened(fake), period_s=3600) as sampler:
            pass
        return sampler.energy(idle_power_w=0.05)

    assert energy(9.0, FakeNvml()) is None
    assert energy(20.0, FakeNvml(refuses=("nvmlDeviceGetTotalEnergyConsumption",))) is None
    measured = energy(20.0, FakeNvml())
    assert measured is not None
    gross, net = measured.per_token(10)
    assert gross == pytest.approx(0.1)
    assert net == pytest.approx(0.0)


@pytest.mark.parametrize(("uuid", "found"), [("1234", True), ("GPU-1234", True), ("5678", False)])
def test_torchs_gpu_is_found_by_its_uuid_and_never_another_in_its_place(
    monkeypatch: pytest.MonkeyPatch, uuid: str, found: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=uuid))
    gpu = gpu_of(torch.device("cuda", 3), nvml=FakeNvml())
    assert (gpu is not None) is found


def test_a_cpu_has_no_gpu_and_without_uuids_only_a_single_gpu_is_sure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert gpu_of(torch.device("cpu"), nvml=FakeNvml()) is None
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace())
    for count, found in ((1, True), (2, False)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert (gpu_of(torch.device("cuda"), nvml=FakeNvml()) is not None) is found
