"""``hambench bench engine``: compares the engines with transformers' generate and llama.cpp."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import TYPE_CHECKING

import click

from hambench.cli._options import UserPath, model_options, whole_numbers
from hambench.cli._progress import say_step
from hambench.cli._repeats import ListOption

if TYPE_CHECKING:
    from hambench.bench.engine import EngineBenchmark
    from hambench.bench.engine_numerics import Numerics


@click.command()
@model_options
@click.option(
    "--tokens",
    "num_new_tokens",
    default=32,
    show_default=True,
    type=click.IntRange(min=2),
    help="Tokens to decode per repeat.",
)
@click.option(
    "--contexts",
    cls=ListOption,
    default="64,512,2048",
    show_default=True,
    metavar="LIST",
    help="Prompt lengths in tokens.",
)
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--threads", type=click.IntRange(min=1), help="Number of CPU threads; defaults to torch's choice."
)
@click.option(
    "--gguf",
    type=UserPath(exists=True, dir_okay=False, path_type=pathlib.Path),
    help="GGUF file of the model for llama.cpp; defaults to the embedded model's own.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON with the raw times.")
def command(
    model: str,
    dtype: str,
    device: str | None,
    num_new_tokens: int,
    contexts: str,
    repeats: int,
    threads: int | None,
    gguf: pathlib.Path | None,
    as_json: bool,
) -> None:
    """Compare tokens and speed of the engines, transformers and llama.cpp.

    All run the same weights, timed in turns. The reference engine uses torch operations; native is the compiled CPU
    engine. For the native engine it also times forwards of 1 to 16 rows, which is the cost of verifying proposals.

    On a CPU, if llama-server is installed, it runs the model's GGUF file and copies of it in BF16 and Q8_0, made for
    this command; its times are its own, without HTTP.
    """
    from hambench.bench.engine import benchmark_engine

    result = benchmark_engine(
        model,
        dtype=dtype,
        device=device,
        num_new_tokens=num_new_tokens,
        contexts=whole_numbers(contexts, "--contexts"),
        repeats=repeats,
        threads=threads,
        gguf=gguf,
        say=say_step,
    )
    click.echo(json.dumps(_as_json(result), indent=1) if as_json else "\n".join(_lines(result)))


def _as_json(result: EngineBenchmark) -> dict[str, object]:
    from hambench.bench.engine import REFERENCE, TRANSFORMERS
    from hambench.bench.llama_cpp import NAME

    llama_cpp = [engine for engine in result.engines if engine.startswith(NAME)]
    ratios = [
        {
            "engine": pace.engine,
            "phase": pace.phase,
            "context": pace.context,
            **{
                f"times_{base}": result.ratio(pace.engine, base, pace.phase, pace.context)._asdict()
                for base in (TRANSFORMERS, REFERENCE, *llama_cpp)
            },
            "bandwidth_share": result.bandwidth_share(pace),
        }
        for pace in result.paces
    ]
    rows = [{"rows": cost.rows, **result.rows_ratio(cost.rows)._asdict()} for cost in result.rows]
    return {**dataclasses.asdict(result), "ratios": ratios, "rows_ratios": rows}


def _lines(result: EngineBenchmark) -> list[str]:
    from hambench.bench.engine import INT8, NATIVE, REFERENCE, TRANSFORMERS

    native = result.native or f"not available: {result.native_missing}"
    lines = [
        f"{result.model} in {result.dtype} on {result.device}, {result.threads} threads"
        + (f" ({result.note})" if result.note else ""),
        f"{result.cpu or 'unknown CPU'}; native engine: {native}",
        *_llama_cpp_lines(result),
        *(_numerics_line(numerics) for numerics in result.numerics),
        f"memory reads {result.read_gigabytes_per_second:.1f} GB/s",
        "",
        f"{'phase':8} {'context':>7} {'engine':14} {'tokens/s':>9} {'ms/token':>9} {'of read':>7}   "
        "x reference (min-max)   x transformers (min-max)",
    ]
    for pace in result.paces:
        share = result.bandwidth_share(pace)
        columns = (
            result.ratio(pace.engine, base, pace.phase, pace.context) for base in (REFERENCE, TRANSFORMERS)
        )
        shown = "   ".join(f"{f'{r.median:.2f} ({r.least:.2f}-{r.most:.2f})':22}" for r in columns)
        lines.append(
            f"{pace.phase:8} {pace.context:7} {pace.engine:14} {pace.tokens_per_second:9.1f} "
            f"{1e3 / pace.tokens_per_second:9.3f} {'' if share is None else f'{share:.0%}':>7}   {shown}".rstrip()
        )
    lines.append("")
    if {NATIVE, INT8} <= set(result.engines):
        shares = ", ".join(_int8_share(result, context) for context in result.contexts)
        lines.append(f"an INT8 step in native steps: {shares}")
    lines += _native_times_llama_cpp(result)
    if result.rows:
        costs = ", ".join(f"{cost.rows}: {result.rows_ratio(cost.rows).median:.2f}" for cost in result.rows)
        lines.append(f"a forward of r rows in forwards of one (512 slots): {costs}")
    count = len(result.paces[0].seconds_per_token)
    lines += ["", f"medians of {count} interleaved repeats of {result.num_new_tokens} tokens"]
    return lines


def _llama_cpp_lines(result: EngineBenchmark) -> list[str]:
    lines = [] if result.llama_cpp is None else [f"llama.cpp: {result.llama_cpp}"]
    if result.llama_cpp_missing is not None:
        lines.append(f"llama.cpp: not compared: {result.llama_cpp_missing}")
    return lines


def _native_times_llama_cpp(result: EngineBenchmark) -> list[str]:
    from hambench.bench.engine import NATIVE
    from hambench.bench.llama_cpp import NAME

    if NATIVE not in result.engines:
        return []
    lines = []
    for other in (engine for engine in result.engines if engine.startswith(NAME)):
        ratios = {c: result.ratio(NATIVE, other, "decode", c) for c in result.contexts}
        shown = (f"{r.median:.2f} ({r.least:.2f}-{r.most:.2f}) behind {c}" for c, r in ratios.items())
        lines.append(f"native decodes at so many times {other}: " + ", ".join(shown))
    return lines


def _int8_share(result: EngineBenchmark, context: int) -> str:
    from hambench.bench.engine import INT8, NATIVE

    ratio = result.ratio(NATIVE, INT8, "decode", context)
    return f"{ratio.median:.2f} ({ratio.least:.2f}-{ratio.most:.2f}) behind {context}"


def _numerics_line(numerics: Numerics) -> str:
    what = numerics.engine
    if not what.endswith(numerics.dtype):
        what += f" in {numerics.dtype}"
    if numerics.num_different == 0:
        return f"{what}: all {numerics.num_tokens} greedy tokens are transformers' own"
    return (
        f"{what}: {numerics.num_different} of {numerics.num_tokens} greedy choices differ from transformers' after "
        f"the same tokens, first at {numerics.first_different} (rounding)"
    )
