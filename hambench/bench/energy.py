"""Joules per token: each method decodes for a window long enough for the GPU's own energy counter to be trusted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hambench.machine.nvml import MIN_ENERGY_WINDOW_S, Gpu, GpuSampler

if TYPE_CHECKING:
    from hambench.decoding import DecodingMethod, SamplingParams

_IDLE_WINDOW_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyResult:
    """Energy of one method; ``None`` is what this machine doesn't tell, never an estimate."""

    method: str
    num_tokens: int
    seconds: float
    joules_per_token: float | None
    """Gross: all that the GPU drew."""
    net_joules_per_token: float | None
    """Less what it draws when idle."""
    idle_power_w: float | None
    gpu: dict[str, float | str | None]
    """Medians and peaks of clocks, power, temperature and memory over the window."""


def measure_energy(
    method: DecodingMethod,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    *,
    gpu: Gpu | None,
    window_s: float = MIN_ENERGY_WINDOW_S,
    clock: Callable[[], float] = time.monotonic,
) -> EnergyResult:
    """Decodes one prompt again and again for at least ``window_s`` seconds, prefills included.

    Args:
        method: The method, built and warm.
        prompt_ids: The prompt.
        params: Limit and sampling; EOS is ignored.
        gpu: The GPU that the method runs on; ``None`` gives the speed only.
        window_s: Shortest window; below ten seconds no energy is given.
        clock: Seconds from any fixed point.
    """
    from hambench.engine.loop import generate

    with GpuSampler(gpu) as idle:
        if gpu is not None:
            time.sleep(_IDLE_WINDOW_S)
    powers = sorted(reading.power_w for reading in idle.readings if reading.power_w is not None)
    idle_power = powers[len(powers) // 2] if powers else None
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
