"""``hambench proxies``: judges a run's answers by the target model, without labels."""

from __future__ import annotations

from pathlib import Path

import click

from hambench.cli._options import RunFolder
from hambench.cli._streams import echo_shown


@click.command()
@click.argument("run", type=RunFolder())
@click.option("--device", metavar="NAME")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(run: Path, device: str | None, as_json: bool) -> None:
    """Score RUN's answers by the target model's own probabilities.

    Also shows where the answers of lossless methods differ from vanilla's.
    """
    import json

    from hambench.analysis.fidelity import failures
    from hambench.analysis.proxy_rows import proxy_rows, render_proxies
    from hambench.runner.judge import judge

    judged = judge(run, device=device)
    for line in failures(judged):
        echo_shown(f"hambench: {line}", err=True)
    rows = proxy_rows(judged)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
    else:
        echo_shown(render_proxies(rows))
