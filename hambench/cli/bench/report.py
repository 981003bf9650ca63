"""``hambench bench report``: the time to make and to open a report of many samples."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from hambench.cli._options import RunFolder

OPEN_BUDGET_S = 2.0


@click.command()
@click.argument("run", type=RunFolder())
@click.option(
    "--num-samples",
    default=10_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Repeat RUN's samples up to this number.",
)
@click.option("--samples", default="all", show_default=True, metavar="N|all|none", help="As for `report`.")
@click.option(
    "--repeats",
    default=3,
    show_default=True,
    type=click.IntRange(min=1),
    help="Number of times to open the page.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(run: Path, num_samples: int, samples: str, repeats: int, as_json: bool) -> None:
    """Time making a large report and opening it in a browser.

    Headless Chromium opens it; the budget is 2 s.
    """
    from hambench.bench.report import measure
    from hambench.cli.report import sample_limit
    from hambench.reports import ReportOptions
    from hambench.reports.number_text import bytes_text
    from hambench.store import load_run

    options = ReportOptions(samples=sample_limit(samples))
    cost = measure(load_run(run), num_samples=num_samples, options=options, repeats=repeats)
    opening = cost.opening
    within = opening.loaded_s <= OPEN_BUDGET_S
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(cost), "within_budget": within}))
        return
    click.echo(
        f"{cost.num_samples} samples, {cost.num_answers} answers: read in {cost.read_s:.1f} s, made in "
        f"{cost.make_s:.1f} s, {bytes_text(cost.num_bytes)}\n"
        f"opened: first paint {opening.painted_s:.2f} s, loaded {opening.loaded_s:.2f} s "
        f"({'within' if within else 'OVER'} {OPEN_BUDGET_S:g} s), all samples indexed {opening.indexed_s:.2f} s, "
        f"a filter {opening.filtered_s:.2f} s"
    )
