"""``hambench bench engine``: our forward pass against transformers' generate."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING

import click

from hambench.cli._options import model_options

if TYPE_CHECKING:
    from hambench.bench.engine import EngineBenchmark, Numerics


@click.command()
@model_options
@click.option("--tokens", "num_new_tokens", default=64, show_default=True, type=click.IntRange(min=2))
@click.option(
    "--prompt-tokens", "num_prompt_tokens", default=2048, show_default=True, type=click.IntRange(min=128)
)
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch; by default its own choice.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, raw times included.")
def command(
    model: str,
    dtype: str,
    device: str | None,
    num_new_tokens: int,
    num_prompt_tokens: int,
    repeats: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare tokens, then speed, with transformers' generate on the same weights.

    Decode starts from a prompt of 128 tokens; prefill takes --prompt-tokens.
    """
    from hambench.bench.engine import benchmark_engine

    result = benchmark_engine(
        model,
        dtype=dtype,
        device=device,
        num_new_tokens=num_new_tokens,
        num_prompt_tokens=num_prompt_tokens,
        repeats=repeats,
        threads=threads,
        say=_to_terminal,
    )
    click.echo(json.dumps(_as_json(result), indent=1) if as_json else "\n".join(_lines(result)))


def _to_terminal(line: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"{line} ...", err=True)


def _as_json(result: EngineBenchmark) -> dict[str, object]:
    ratios = {
        phase: dict(zip(("median", "min", "max"), result.ratio("hambench", phase), strict=True))
        for phase in ("decode", "prefill")
    }
    return {**dataclasses.asdict(result), "times_transformers": ratios}


def _lines(result: EngineBenchmark) -> list[str]:
    lines = [
        f"{result.model} in {result.dtype} on {result.device}, {result.threads} threads"
        + (f" ({result.note})" if result.note else ""),
        *(_numerics_line(numerics) for numerics in result.numerics),
        f"memory reads {result.read_gigabytes_per_second:.1f} GB/s",
        "",
        f"{'phase':8} {'engine':14} {'tokens/s':>9} {'ms/token':>9} {'GB/s':>6}   x transformers (min-max)",
    ]
    for pace in result.paces:
        read = "" if pace.gigabytes_per_second is None else f"{pace.gigabytes_per_second:.1f}"
        median, least, most = result.ratio(pace.engine, pace.phase)
        lines.append(
            f"{pace.phase:8} {pace.engine:14} {pace.tokens_per_second:9.1f} {1e3 / pace.tokens_per_second:9.3f}"
            f" {read:>6}   {median:.2f} ({least:.2f}-{most:.2f})"
        )
    count = len(result.paces[0].seconds_per_token)
    lines.append(
        f"\nmedians of {count} interleaved repeats; decode: {result.num_new_tokens} tokens after 128, "
        f"prefill: {result.num_prompt_tokens} tokens"
    )
    return lines


def _numerics_line(numerics: Numerics) -> str:
    if numerics.num_different == 0:
        return f"{numerics.dtype}: all {numerics.num_tokens} greedy tokens are transformers' own"
    return (
        f"{numerics.dtype}: {numerics.num_different} of {numerics.num_tokens} greedy choices differ from transformers' "
        f"after the same tokens, first at {numerics.first_different} (rounding)"
    )
