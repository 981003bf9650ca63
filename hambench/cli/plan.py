"""``hambench plan``: shows a run's work and estimates its time, without running it."""

from __future__ import annotations

from typing import Any

import click

from hambench.cli.run import command as run_command
from hambench.cli.run import request_from


@click.command(
    params=[p for p in run_command.params if p.name not in ("out", "resume", "report", "losslessness")]
)
def command(as_json: bool, **options: Any) -> None:
    """Show the work of a run; estimate its time and memory."""
    import json

    from hambench.runner.forecast.plan import plan_run, render_plan

    plan = plan_run(request_from(**options))
    click.echo(json.dumps(plan.as_dict()) if as_json else render_plan(plan))
