"""``hambench bench endpoint``: measures a server under load from its users' side."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hambench.cli._options import UserPath
from hambench.errors import HambenchError

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
    "--concurrency", default="1,2,4", show_default=True, metavar="AXIS", help="Numbers of concurrent users."
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
    num_requests: int,
    max_tokens: int,
    api: str,
    prompts: Path | None,
    key_env: str,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Measure TTFT, TPOT, bursts and throughput of a server.

    Each number of concurrent users (--concurrency) is one level.
    """
    from hambench.runner.axis_text import expand_values

    try:
        levels = [int(text) for text in expand_values(concurrency)]
    except ValueError as error:
        raise HambenchError(f"--concurrency must be whole numbers >= 1, got {concurrency!r}") from error
    try:
        from hambench.bench.endpoint import QUESTIONS, measure_level
        from hambench.serving.client import EndpointClient
        from hambench.serving.dialect import Dialect
    except ImportError as error:
        raise HambenchError(f"{error.name} is not installed: pip install 'hambench[endpoint]'") from error
    lines = prompts.read_text(encoding="utf-8").splitlines() if prompts else []
    questions = tuple(line for line in lines if line.strip()) or QUESTIONS

    def make_client() -> EndpointClient:
        try:
            return EndpointClient(url, key=os.environ.get(key_env) or None, timeout_s=timeout_s)
        except ValueError as error:
            raise HambenchError(str(error)) from error

    asked = make_client()
    names = asked.models() if served_model is None else []
    model = asked.choose_model(served_model, names[0] if len(names) == 1 else "")
    asked.close()
    if not as_json:
        click.echo(_HEADER)
    dialect = Dialect(lambda line: click.echo(f"  {line}", err=True))
    for level in levels:
        measured = measure_level(
            make_client,
            model=model,
            concurrency=level,
            num_requests=num_requests,
            max_tokens=max_tokens,
            chat=api == "chat",
            questions=questions,
            dialect=dialect,
        )
        click.echo(json.dumps(dataclasses.asdict(measured)) if as_json else _row(measured))
        if measured.num_errors:
            click.echo(
                f"  {measured.num_errors} of {measured.num_requests} failed: {measured.first_error}", err=True
            )
        if measured.num_retried:
            click.echo(
                f"  {measured.num_retried} retries, whose waits count in the times to first token", err=True
            )
        if measured.approximate:
            click.echo("  the server does not report token counts, so pieces were counted instead", err=True)


_HEADER = (
    f"{'users':>5} {'TTFT p50':>9} {'p90':>8} {'TPOT p50':>9} {'p90':>8} {'burst p50':>9} {'p99':>8} "
    f"{'tok/s user':>10} {'total':>8} {'accepted':>8}   (times in ms)"
)


def _row(level: Level) -> str:
    def ms(seconds: float | None, width: int) -> str:
        return f"{'–' if seconds is None else f'{1e3 * seconds:.1f}':>{width}}"

    def number(value: float | None, width: int, digits: int) -> str:
        return f"{'–' if value is None else f'{value:.{digits}f}':>{width}}"

    return " ".join(
        (
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
        )
    )
