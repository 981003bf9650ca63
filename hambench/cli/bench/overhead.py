"""``hambench bench overhead``: the harness's own cost next to the decoding that it measures."""

from __future__ import annotations

import dataclasses
import json

import click

from hambench.cli._options import kernels_option, model_options


@click.command()
@model_options
@kernels_option
@click.option("--methods", default="vanilla", show_default=True, metavar="LIST", help="Methods to measure.")
@click.option(
    "--records",
    "num_records",
    default=3,
    show_default=True,
    type=click.IntRange(min=1),
    help="Records per method.",
)
@click.option(
    "--max-new-tokens",
    default=128,
    show_default=True,
    type=click.IntRange(min=2),
    help="Maximum tokens per answer.",
)
@click.option(
    "--suite",
    metavar="NAME",
    help="Also time what precedes the first sample of a run of this suite with a --budget, by part.",
)
@click.option("--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option(
    "--ray-address",
    metavar="ADDR",
    help="host:port of a Ray cluster with one worker; by default one is started here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: str,
    dtype: str,
    device: str | None,
    kernels: str,
    methods: str,
    num_records: int,
    max_new_tokens: int,
    suite: str | None,
    executor: str,
    ray_address: str | None,
    as_json: bool,
) -> None:
    """Measure the share of a run's wall time that the harness takes.

    It compares the wall time of making records with the time inside the methods' steps, and measures the cost of the
    profiler's ranges while nothing is profiled. With --suite it also prints a run's fixed costs: the rest of a --budget
    is for samples.
    """
    from hambench.bench.overhead import measure_overhead, measure_parts
    from hambench.runner.axis_text import split_methods

    results = measure_overhead(
        model=model,
        dtype=dtype,
        device=device,
        kernels=kernels,
        methods=split_methods(methods),
        num_records=num_records,
        max_new_tokens=max_new_tokens,
        executor=executor,
        ray_address=ray_address,
    )
    for result in results:
        if as_json:
            shares = {"share": result.share, "profiling_share": result.profiling_share}
            click.echo(json.dumps({**dataclasses.asdict(result), **shares}))
        else:
            click.echo(
                f"{result.cell}: {result.share:.2%} of {result.wall_s:.2f} s is the harness "
                f"({result.num_tokens} tokens, {result.microseconds_per_token:.0f} µs each)"
                + (f"; {result.start_s:.1f} s to start" if result.start_s is not None else "")
            )
            cost, part = result.profiling, result.profiling_share
            if cost is not None and part is not None:
                each = f"{cost.num_ranges} ranges per record, {cost.seconds_each * 1e9:.0f} ns each"
                click.echo(f"  profiling, off: {part:.3%} of the steps ({each})")
    if suite is None:
        return
    parts = measure_parts(
        model=model, dtype=dtype, device=device, kernels=kernels, methods=split_methods(methods), suite=suite
    )
    if as_json:
        click.echo(json.dumps({"parts": parts}))
        return
    listed = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in parts.items())
    click.echo(f"before the first sample of {suite}: {sum(parts.values()):.1f} s ({listed})")
