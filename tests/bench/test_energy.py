from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from native_fixtures import need_compiler

from hambench.bench.energy import measure_energy, measure_idle_power
from hambench.cli.bench.energy import command
from hambench.decoding import SamplingParams
from hambench.errors import HambenchError
from hambench.machine.nvml import GpuReading
from hambench.registry import method_config

PARAMS = SamplingParams(max_new_tokens=5)


class MeteredGpu:
    """A GPU that burns 200 W and whose readings are five seconds apart."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def read(self) -> GpuReading:
        self.seconds += 5
        return GpuReading(
            at=self.seconds, power_w=50.0, energy_j=200 * self.seconds, sm_clock_mhz=1, memory_clock_mhz=1,
            utilization=1.0, memory_used_bytes=1, temperature_c=1, throttles=(),
        )  # fmt: skip


def ticking(step: float) -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += step


def measured(target: Any, gpu: Any) -> Any:
    clock = ticking(4.0)
    return measure_energy(
        method_config("vanilla")().build(target),
        [1, 2, 3],
        PARAMS,
        gpu=gpu,
        window_s=10,
        clock=lambda: next(clock),
    )


def test_energy_is_the_counters_difference_over_all_tokens_of_the_window(
    target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hambench.bench.energy._IDLE_INTERVAL_S", 0.0)
    # the sampler's thread must not read in between: its readings would advance the fake's time
    monkeypatch.setattr("hambench.machine.nvml.GpuSampler._sample", lambda self: None)
    monkeypatch.setattr("hambench.machine.nvml.MIN_ENERGY_WINDOW_S", 5.0)
    result = measured(target, MeteredGpu())
    assert result.num_tokens == 2 * PARAMS.max_new_tokens
    assert result.joules_per_token == pytest.approx(200 * 5 / result.num_tokens)
    assert result.net_joules_per_token == pytest.approx((200 - 50) * 5 / result.num_tokens)


def test_without_a_gpu_the_energy_is_absent_and_the_speed_is_there(target: Any) -> None:
    result = measured(target, None)
    assert (result.joules_per_token, result.net_joules_per_token, result.idle_power_w) == (None, None, None)
    assert result.num_tokens > 0
    assert result.gpu == {}


@pytest.mark.parametrize("asked", [[], ["--kernels", "reference"]])
def test_the_kernels_are_those_of_a_run(
    asked: list[str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_compiler()
    seen = []

    def measure(method: Any, *args: Any, **options: Any) -> Any:
        seen.append(type(method.target.llama).__name__)
        return measured(method.target, None)

    monkeypatch.setattr("hambench.bench.energy.measure_energy", measure)
    done = CliRunner().invoke(command, ["--model", str(tiny_model), "--device", "cpu", *asked])
    assert done.exit_code == 0, done.output
    assert seen == ["Llama" if asked else "NativeLlama"]


def test_a_window_too_short_for_the_counter_is_refused() -> None:
    error = CliRunner().invoke(command, ["--window", "3"]).exception
    assert isinstance(error, HambenchError)
    assert "10 seconds" in str(error)


class CoolingGpu:
    """A GPU that was at work: its power comes down to 60 W by a third of the rest per reading."""

    def __init__(self, *, flat: bool = True) -> None:
        self.power, self.flat, self.num_read = 300.0, flat, 0

    def read(self) -> Any:
        self.num_read += 1
        self.power = 60 + 0.7 * (self.power - 60) if self.flat else 60 + 100 * (self.num_read % 2)
        return SimpleNamespace(power_w=self.power)


def test_idle_power_is_read_once_it_is_flat_and_not_right_after_work() -> None:
    gpu = CoolingGpu()
    idle = measure_idle_power(gpu, sleep=lambda seconds: None)  # type: ignore[arg-type]
    assert idle == pytest.approx(60, rel=0.05)
    assert measure_idle_power(CoolingGpu(flat=False), sleep=lambda seconds: None) is None  # type: ignore[arg-type]
