"""Joules per token: decodes with each method long enough for the GPU's own energy counter to be reliable."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hambench.machine.nvml import MIN_ENERGY_WINDOW_S, Gpu, GpuSampler

if TYPE_CHECKING:
    from hambench.decoding import DecodingMethod, SamplingParams

_IDLE_INTERVAL_S = 1.0
_IDLE_FLAT_WITHIN = 0.03
"""Spread of three readings in a row, relative to the largest, that counts as flat."""
_MOST_IDLE_READINGS = 45
"""A GPU keeps its clocks up, and its power reading is a moving average: some take half a minute to come down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyResult:
    """Energy of one method; a field is ``None``, never an estimate, if this machine does not report it."""

    method: str
    num_tokens: int
    seconds: float
    joules_per_token: float | None
    """Gross: all energy that the GPU drew."""
    net_joules_per_token: float | None
    """Gross minus the energy that the idle GPU would draw."""
    idle_power_w: float | None
    """Once it had become flat; ``None`` if it did not."""
    gpu: dict[str, float | str | None]
    """Medians and peaks of clocks, power, temperature and memory over the window."""


def measure_idle_power(gpu: Gpu, *, sleep: Callable[[float], None] = time.sleep) -> float | None:
    """Watts that a GPU draws when idle, read until three readings in a row agree; ``None`` if they never do."""
    powers: list[float] = []
    for _ in range(_MOST_IDLE_READINGS):
        power = gpu.read().power_w
        if power is None:
            return None
        powers.append(power)
        last = powers[-3:]
        if len(last) == 3 and max(last) - min(last) <= _IDLE_FLAT_WITHIN * max(last):
            return sum(last) / 3
        sleep(_IDLE_INTERVAL_S)
    return None


def measure_energy(
    method: DecodingMethod,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    *,
    gpu: Gpu | None,
    window_s: float = MIN_ENERGY_WINDOW_S,
    clock: Callable[[], float] = time.monotonic,
) -> EnergyResult:
    """Decodes one prompt repeatedly for at least ``window_s`` seconds, prefills included.

    Args:
        method: The built and warm method.
        prompt_ids: The prompt.
        params: Limit and sampling; EOS is ignored.
        gpu: The GPU that the method runs on; with ``None``, only the speed is measured.
        window_s: Shortest window; windows below ten seconds give no energy.
        clock: Returns seconds from any fixed point.
    """
    from hambench.engine.loop import generate

    idle_power = None if gpu is None else measure_idle_power(gpu)
    num_tokens = 0
    began = clock()
    with GpuSampler(gpu) as sampler:
        while clock() - began < window_s:
            num_tokens += len(generate(method, prompt_ids, params).token_ids)
    seconds = clock() - began
    energy = sampler.energy(idle_power_w=idle_power)
    gross, net = energy.per_token(num_tokens) if energy is not None else (None, None)
    return EnergyResult(
        method=method.name,
        num_tokens=num_tokens,
        seconds=seconds,
        joules_per_token=gross,
        net_joules_per_token=net,
        idle_power_w=idle_power,
        gpu=sampler.summary(),
    )
