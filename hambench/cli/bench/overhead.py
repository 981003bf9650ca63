"""``hambench bench overhead``: the harness's own cost next to the decoding that it measures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from hambench.cli._options import kernels_option, measured_methods_option, model_options
from hambench.cli._repeats import OnceOption
from hambench.errors import count

if TYPE_CHECKING:
    from hambench.bench.asking.measure import AskingCost


@click.command()
@model_options
@kernels_option
@measured_methods_option
@click.option(
    "--records",
    "num_records",
    default=3,
    show_default=True,
    type=click.IntRange(min=1),
    help="Records per method; the loops decode as many tokens.",
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
    cls=OnceOption,
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
    profiler's ranges while nothing is profiled. It then compares the engine's loop, in which a session asks for each
    forward, with a bare loop over the same calls of the model, for vanilla and speculative[k=4] (not with Ray): that
    decodes the tokens of --records answers four times over, some 1,500 by default, and reads the prompt once per 32 of
    them. With --suite it also prints a run's fixed costs: the rest of a --budget is for samples.
    """
    from hambench.bench.asking.measure import measure_asking
    from hambench.bench.overhead import measure_overhead, measure_parts
    from hambench.models.target import load
    from hambench.runner.axis_text import split_methods

    target = load(model, dtype=dtype, device=device)
    results = measure_overhead(
        target,
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
                f"({count(result.num_tokens, 'token')}, {result.microseconds_per_token:.0f} µs each)"
                + (f"; {result.start_s:.1f} s to start" if result.start_s is not None else "")
            )
            cost, part = result.profiling, result.profiling_share
            if cost is not None and part is not None:
                each = f"{count(cost.num_ranges, 'range')} per record, {cost.seconds_each * 1e9:.0f} ns each"
                click.echo(f"  profiling, off: {part:.3%} of the steps ({each})")
    failure: Exception | None = None
    if executor == "local":
        try:
            costs = measure_asking(
                target, kernels=kernels, num_records=num_records, max_new_tokens=max_new_tokens
            )
        except Exception as error:
            # the fixed costs of a suite, which was asked for, don't depend on it
            failure = error
        else:
            _print(costs, as_json=as_json)
    # a run loads its own
    del target
    if suite is not None:
        parts = measure_parts(
            model=model,
            dtype=dtype,
            device=device,
            kernels=kernels,
            methods=split_methods(methods),
            suite=suite,
        )
        if as_json:
            click.echo(json.dumps({"parts": parts}))
        else:
            listed = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in parts.items())
            click.echo(f"before the first sample of {suite}: {sum(parts.values()):.1f} s ({listed})")
    if failure is not None:
        raise failure


def _print(costs: Sequence[AskingCost], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"asking": [cost.facts() for cost in costs]}))
        return
    click.echo("the engine's loop over a bare loop with the same calls:")
    click.echo("\n".join(line for cost in costs for line in _lines(cost)))


def _lines(cost: AskingCost) -> list[str]:
    ratio, added = cost.ratio, cost.added_us
    wide = f"{count(ratio.n, 'pair')} of answers"
    if ratio.low is not None and ratio.high is not None and added.low is not None and added.high is not None:
        interval = f"95 % interval {ratio.low:.4f} to {ratio.high:.4f}, {wide}"
        added_interval = f" ({added.low:+.1f} to {added.high:+.1f})"
    else:
        interval, added_interval = f"no interval from {wide}", ""
    return [
        f"  {cost.method}: {ratio.value:.4f} times the bare loop's time per token ({interval})",
        f"    {added.value:+.1f} µs{added_interval} per step of {cost.bare_us:,.0f} µs; both loops make the same "
        f"{count(cost.num_calls, 'call')}, {count(cost.num_forwards, 'forward')}",
        f"    where models answer at once: {cost.at_once_us:+.1f} µs per step, {cost.at_once_share:.3%} of it",
        f"    asking alone: {cost.request_us:+.2f} µs per request, {cost.requests_per_step:.2f} requests per step, "
        f"{cost.asking_share:.3%} of it",
    ]
