"""``hambench bench energy``: joules per token from the GPU's energy counter."""

from __future__ import annotations

import click

from hambench.cli._options import FiniteRange, kernels_option, measured_methods_option, model_options


@click.command()
@model_options
@kernels_option
@measured_methods_option
@click.option(
    "--max-new-tokens",
    default=256,
    show_default=True,
    type=click.IntRange(min=2),
    help="Maximum tokens per answer.",
)
@click.option(
    "--window",
    "window_s",
    type=FiniteRange(),
    default=12.0,
    show_default=True,
    help="Seconds per method; at least 10.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: str,
    dtype: str,
    device: str | None,
    kernels: str,
    methods: str,
    max_new_tokens: int,
    window_s: float,
    as_json: bool,
) -> None:
    """Measure joules per token of each method on a GPU.

    Prints "not available" on a machine without an energy counter.
    """
    import dataclasses
    import json

    from hambench.bench.energy import measure_energy
    from hambench.decoding import SamplingParams
    from hambench.errors import HambenchError
    from hambench.machine.nvml import MIN_ENERGY_WINDOW_S, gpu_of
    from hambench.models.target import load
    from hambench.runner.axis_text import split_methods
    from hambench.runner.backend import run_by
    from hambench.runner.sweep import Sweep, config_of

    if window_s < MIN_ENERGY_WINDOW_S:
        raise HambenchError(f"--window must be >= {MIN_ENERGY_WINDOW_S:g} seconds, got {window_s:g}")
    target = run_by(load(model, dtype=dtype, device=device), kernels=kernels)
    gpu = gpu_of(target.device)
    sweep = Sweep(model=model, methods=split_methods(methods), knobs={}, dtype=dtype)
    params = SamplingParams(max_new_tokens=max_new_tokens)
    if not as_json:
        click.echo(target.title)
    for cell in sweep.expand().cells:
        method = config_of(cell).build(target)
        method.warmup()
        result = measure_energy(method, [1 + i % 7 for i in range(64)], params, gpu=gpu, window_s=window_s)
        if as_json:
            click.echo(json.dumps(dataclasses.asdict(result)))
            continue
        energy = "energy not available on this machine"
        if result.joules_per_token is not None:
            energy = f"{result.joules_per_token:.4f} J/token gross"
            if result.net_joules_per_token is not None:
                energy += f", {result.net_joules_per_token:.4f} net of {result.idle_power_w:.0f} W idle"
        click.echo(f"{result.method}: {energy}; {result.num_tokens} tokens in {result.seconds:.1f} s")
