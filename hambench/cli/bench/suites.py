"""``hambench bench suites``: the time that capturing and scoring add to a run."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import click

from hambench.cli._options import UserPath


@click.command()
@click.option(
    "--suite",
    "suites",
    multiple=True,
    metavar="NAME",
    help="A suite; may be repeated; defaults to standard and longbench.",
)
@click.option(
    "--data",
    type=UserPath(path_type=Path, exists=True, file_okay=False),
    help="Folder of rows as plain files.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Samples per task.")
@click.option(
    "--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Fresh processes per suite."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def command(
    suites: tuple[str, ...], data: Path | None, limit: int | None, repeats: int, as_json: bool
) -> None:
    """Time capturing and scoring suites, without a model.

    Each suite runs in a fresh process; the budget is 3 s + 5 ms per sample. Programs that a model wrote are not run,
    because their time is not the harness's.
    """
    from hambench.bench.suites import measure

    for suite in suites or ("standard", "longbench"):
        costs = measure(suite, data=data, limit=limit, repeats=repeats)
        capture_s = statistics.median(each.capture_s for each in costs)
        score_s = statistics.median(each.score_s for each in costs)
        total_s = statistics.median(each.total_s for each in costs)
        first = costs[0]
        if as_json:
            values = {
                "suite": first.suite,
                "num_samples": first.num_samples,
                "capture_s": capture_s,
                "score_s": score_s,
                "total_s": total_s,
                "budget_s": first.budget_s,
                "within_budget": total_s <= first.budget_s,
                "peak_memory_bytes": max(each.peak_memory_bytes for each in costs),
                "not_scored": first.failed,
                "raw_total_s": [each.total_s for each in costs],
            }
            click.echo(json.dumps(values))
            continue
        verdict = "within" if total_s <= first.budget_s else "OVER"
        peak_mib = max(each.peak_memory_bytes for each in costs) / 2**20
        unscored = f"; {first.failed} not scored (code execution off)" if first.failed else ""
        click.echo(
            f"{first.suite}: {first.num_samples} samples, capture {capture_s:.2f} s + score {score_s:.2f} s = "
            f"{total_s:.2f} s (median of {len(costs)}), {verdict} the budget of {first.budget_s:.2f} s; "
            f"peak memory {peak_mib:.0f} MiB{unscored}"
        )
