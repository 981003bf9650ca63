"""``hambench bench endpoint``: measures a server under load from its users' side."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hambench.cli._options import FiniteRange, UserPath, price_option, price_per_hour, whole_numbers
from hambench.cli._repeats import ListOption
from hambench.errors import HambenchError
from hambench.serving.address import LONGEST_TIMEOUT_S

if TYPE_CHECKING:
    from hambench.bench.endpoint import Level


@click.command()
@click.option(
    "--url", default="http://127.0.0.1:8000/v1", show_default=True, help="URL of an OpenAI-compatible server."
)
@click.option(
    "--served-model", metavar="NAME", help="The model's name on the server; defaults to the only one."
)
@click.option(
    "--concurrency",
    cls=ListOption,
    default="1,2,4",
    show_default=True,
    metavar="AXIS",
    help="Numbers of concurrent users.",
)
@click.option(
    "--arrivals",
    type=click.Choice(["closed", "poisson", "constant", "trace"]),
    default="closed",
    show_default=True,
    help="closed: each user asks again after its answer; else an open loop, whose requests don't wait for answers.",
)
@click.option("--rate", cls=ListOption, metavar="AXIS", help="Requests per second of an open loop: 1,2,4.")
@click.option(
    "--trace",
    type=UserPath(exists=True, dir_okay=False, path_type=Path),
    help='Arrival times, one per line: seconds, or {"timestamp": MILLISECONDS}.',
)
@click.option("--seed", default=0, show_default=True, help="Seed of Poisson arrivals.")
@click.option(
    "--slo",
    cls=ListOption,
    metavar="LIST",
    help="Bounds of a good answer, for goodput: ttft=1s,tpot=50ms,e2e=10s.",
)
@price_option
@click.option(
    "--cached/--cold",
    default=False,
    show_default=True,
    help="Let the server use prompts that it has cached: the questions come again and again.",
)
@click.option(
    "--requests", "num_requests", default=16, show_default=True, type=click.IntRange(1), help="A level."
)
@click.option(
    "--max-tokens", default=128, show_default=True, type=click.IntRange(2), help="Maximum tokens per answer."
)
@click.option(
    "--api",
    type=click.Choice(["chat", "completions"]),
    default="chat",
    show_default=True,
    help="API to call.",
)
@click.option(
    "--prompts",
    type=UserPath(exists=True, dir_okay=False, path_type=Path),
    help="A file of questions, one per line; defaults to six of different kinds.",
)
@click.option(
    "--key-env",
    default="OPENAI_API_KEY",
    show_default=True,
    metavar="NAME",
    help="Environment variable that holds the API key.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=FiniteRange(min=0, min_open=True, max=LONGEST_TIMEOUT_S),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Time limit of a connection and of each read.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    url: str,
    served_model: str | None,
    concurrency: str,
    arrivals: str,
    rate: str | None,
    trace: Path | None,
    seed: int,
    slo: str | None,
    price: str | None,
    cached: bool,
    num_requests: int,
    max_tokens: int,
    api: str,
    prompts: Path | None,
    key_env: str,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Measure TTFT, TPOT, bursts, throughput and goodput of a server.

    Each number of concurrent users (--concurrency) is one level; with --arrivals, each rate (--rate) is.
    """
    from hambench.analysis.cost import dollars_per_million

    try:
        from hambench.bench.arrivals import parse_slo, text_lines
        from hambench.bench.endpoint import QUESTIONS, Asked, measure_level, measure_open_loop
        from hambench.serving.client import EndpointClient
        from hambench.serving.dialect import Dialect
    except ImportError as error:
        raise HambenchError(f"{error.name} is not installed: pip install 'hambench[endpoint]'") from error
    levels = _levels(arrivals, concurrency, rate, trace, num_requests, seed)
    bounds = None if slo is None else parse_slo(slo)
    hourly = price_per_hour(price)
    questions = QUESTIONS if prompts is None else tuple(line for _, line in text_lines(prompts))
    if not questions:
        raise HambenchError(f"{prompts} holds no questions: write one per line")

    def make_client() -> EndpointClient:
        try:
            return EndpointClient(url, key=os.environ.get(key_env) or None, timeout_s=timeout_s)
        except ValueError as error:
            raise HambenchError(str(error)) from error

    with contextlib.closing(make_client()) as first:
        model = first.choose_model(served_model)
    if not as_json:
        click.echo(
            _header(open_loop=arrivals != "closed", with_slo=slo is not None, with_price=price is not None)
        )
    asked = Asked(
        model=model,
        max_tokens=max_tokens,
        chat=api == "chat",
        questions=questions,
        dialect=Dialect(lambda line: click.echo(f"  {line}", err=True)),
        slo=bounds,
        cold=not cached,
    )
    for level in levels:
        if isinstance(level, int):
            measured = measure_level(make_client, asked, concurrency=level, num_requests=num_requests)
        else:
            measured = measure_open_loop(make_client, asked, level, arrivals=arrivals)
        cost = dollars_per_million(measured.total_tps, hourly)
        if as_json:
            click.echo(json.dumps({**dataclasses.asdict(measured), "dollars_per_million_tokens": cost}))
        else:
            shown = [measured.goodput_rps, measured.good_share] if slo is not None else []
            click.echo(_row(measured, shown, cost if price is not None else _ABSENT))
        if measured.num_errors:
            click.echo(
                f"  {measured.num_errors} of {measured.num_requests} failed: {measured.first_error}", err=True
            )
        if measured.num_retried:
            click.echo(
                f"  {measured.num_retried} retries, whose waits count in the times to first token", err=True
            )
        if (measured.late_max_s or 0.0) > LATE_S:
            click.echo(
                f"  requests left this machine up to {1e3 * (measured.late_max_s or 0.0):.0f} ms late: it offered less "
                "than the rate says; lower --rate or use a faster client",
                err=True,
            )
        if measured.approximate:
            click.echo("  the server does not report token counts, so pieces were counted instead", err=True)


LATE_S = 0.05
"""Delay of a request from which the client, and not the server, shapes the load."""
_ABSENT = object()


def _levels(
    arrivals: str, concurrency: str, rate: str | None, trace: Path | None, num_requests: int, seed: int
) -> list[int] | list[list[float]]:
    """The levels to measure: numbers of users, or arrival times."""
    from hambench.bench.arrivals import arrival_times, read_trace
    from hambench.runner.axis_text import expand_values

    if (arrivals == "trace") != (trace is not None):
        raise HambenchError("--arrivals trace and --trace FILE belong together: give both or neither")
    if (arrivals in ("poisson", "constant")) != (rate is not None):
        raise HambenchError("--rate belongs to --arrivals poisson or constant: give both or neither")
    if trace is not None:
        return [read_trace(trace)]
    if rate is not None:
        try:
            rates = [float(text) for text in expand_values(rate)]
        except ValueError as error:
            raise HambenchError(f"--rate must be numbers > 0, got {rate!r}") from error
        return [arrival_times(arrivals, each, num_requests, seed=seed) for each in rates]
    return list(whole_numbers(concurrency, "--concurrency"))


def _header(*, open_loop: bool, with_slo: bool, with_price: bool) -> str:
    first = f"{'req/s':>6} {'peak':>5}" if open_loop else f"{'users':>5}"
    good = f" {'good/s':>7} {'good':>5}" if with_slo else ""
    return f"{first} {_HEADER}{good}{'  $/M tok' if with_price else ''}   (times in ms)"


_HEADER = (
    f"{'TTFT p50':>9} {'p90':>8} {'TPOT p50':>9} {'p90':>8} {'burst p50':>9} {'p99':>8} "
    f"{'tok/s user':>10} {'total':>8} {'accepted':>8}"
)


def _row(level: Level, goodput: list[float | None], cost: object) -> str:
    """A line; ``goodput`` is empty without bounds, ``cost`` is :data:`_ABSENT` without a price."""

    def ms(seconds: float | None, width: int) -> str:
        return f"{'–' if seconds is None else f'{1e3 * seconds:.1f}':>{width}}"

    def number(value: float | None, width: int, digits: int) -> str:
        return f"{'–' if value is None else f'{value:.{digits}f}':>{width}}"

    def share(value: float | None) -> str:
        return f"{'–' if value is None else f'{value:.0%}':>5}"

    return " ".join(
        (
            *([number(level.offered_rps, 6, 2)] if level.arrivals != "closed" else []),
            f"{level.concurrency:>5}",
            ms(level.ttft_p50_s, 9),
            ms(level.ttft_p90_s, 8),
            ms(level.tpot_p50_s, 9),
            ms(level.tpot_p90_s, 8),
            ms(level.burst_p50_s, 9),
            ms(level.burst_p99_s, 8),
            number(level.user_tps_p50, 10, 1),
            number(level.total_tps, 8, 1),
            number(level.acceptance_rate, 8, 2),
            *([number(goodput[0], 7, 2), share(goodput[1])] if goodput else []),
            *([] if cost is _ABSENT else [number(cost if isinstance(cost, float) else None, 8, 2)]),
        )
    )
