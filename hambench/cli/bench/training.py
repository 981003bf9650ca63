"""``hambench bench training``: the speed of each stage of training HAMburger weights."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

from hambench.cli._options import DEFAULT_MODEL
from hambench.cli._progress import say_step

if TYPE_CHECKING:
    from hambench.bench.training import TrainingBenchmark


@click.command()
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME", help="The base.")
@click.option(
    "--answers",
    "num_answers",
    default=384,
    show_default=True,
    type=click.IntRange(min=1),
    help="Prompts that the base answers: more than it answers at once, so that places are taken again.",
)
@click.option(
    "--tokens",
    "answer_tokens",
    default=160,
    show_default=True,
    type=click.IntRange(min=1),
    help="Most tokens per answer; the default is that of training.",
)
@click.option(
    "--windows",
    "num_windows",
    default=24,
    show_default=True,
    type=click.IntRange(min=2),
    help="Windows of installed text to read and to train on.",
)
@click.option(
    "--steps",
    default=12,
    show_default=True,
    type=click.IntRange(min=1),
    help="Optimizer steps of micro and student; reader takes a quarter.",
)
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--threads", type=click.IntRange(min=1), help="Number of CPU threads; defaults to torch's choice."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON with the raw times.")
def command(
    model: str,
    num_answers: int,
    answer_tokens: int,
    num_windows: int,
    steps: int,
    repeats: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure the speed of each stage of `hamburger train`.

    The share of the matrix peak compares the operations that a stage needs by arithmetic with the machine's fastest
    product, of a layer's shapes or of a large square, measured in turns with the stages.
    """
    from hambench.bench.training import benchmark_training

    result = benchmark_training(
        model,
        num_answers=num_answers,
        answer_tokens=answer_tokens,
        num_windows=num_windows,
        steps=steps,
        repeats=repeats,
        threads=threads,
        say=say_step,
    )
    click.echo(json.dumps(_as_json(result), indent=1) if as_json else "\n".join(_lines(result)))


def _as_json(result: TrainingBenchmark) -> dict[str, object]:
    told = dataclasses.asdict(result)
    for fields, pace in zip(told["paces"], result.paces, strict=True):
        fields["per_second"] = pace.per_second
        fields["peak_share"] = result.peak_share(pace)
    return told


def _lines(result: TrainingBenchmark) -> list[str]:
    lines = [
        f"{result.model} on {result.device}, {result.threads} threads, {result.cpu or 'unknown CPU'}",
        f"fastest matrix product: {result.peak / 1e9:.0f} GFLOP/s in {result.peak_dtype}",
        "",
        f"{'stage':10} {'per second':>10} {'':11} {'GFLOP/s':>8} {'of peak':>8}  (min-max per second)",
    ]
    for pace in result.paces:
        least, most = (pace.count / seconds for seconds in (max(pace.seconds), min(pace.seconds)))
        lines.append(
            f"{pace.stage:10} {pace.per_second:10.0f} {pace.unit:11} {pace.operations_per_second / 1e9:8.0f} "
            f"{result.peak_share(pace):8.1%}  ({least:.0f}-{most:.0f})"
        )
    count = len(result.paces[0].seconds)
    lines.append(f"\nmedians of {count} interleaved repeats")
    return lines
