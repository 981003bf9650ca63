"""``hambench show``: prints a run as a table, or one sample's tokens step by step."""

from __future__ import annotations

from pathlib import Path

import click

from hambench.cli._options import RunFolder, price_option, price_per_hour
from hambench.cli._streams import echo_json_text, echo_shown
from hambench.errors import UnknownNameError
from hambench.terminal_text import terminal_safe


@click.command()
@click.argument("run", type=RunFolder())
@click.option(
    "--by",
    type=click.Choice(["all", "suite", "category", "task", "turn"]),
    default="all",
    show_default=True,
    help="Rows to group answers by.",
)
@click.option("--tokens", metavar="SAMPLE", help="Print this sample's answers with a bar between steps.")
@price_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per cell.")
def command(run: Path, by: str, tokens: str | None, price: str | None, as_json: bool) -> None:
    """Show RUN as a table, even while it is still running."""
    from hambench.analysis.summary import cell_objects, render_table, to_json_line
    from hambench.groups import ALL, group_kind, group_names, group_title
    from hambench.reports.terminal.averages import render_averages, render_bounds
    from hambench.store import load_run

    loaded = load_run(run).priced(price_per_hour(price))
    if tokens is not None:
        _show_tokens(loaded, tokens)
        return
    if as_json:
        for item in cell_objects(loaded):
            echo_json_text(to_json_line(item))
        return
    if by == ALL:
        echo_shown(render_table(loaded))
        averages = render_averages(loaded)
        if averages:
            echo_shown(f"\n{averages}")
        return
    for group in group_names(loaded.samples.values()):
        if group_kind(group) == by:
            echo_shown(f"\n{group_title(group)}")
            echo_shown(render_table(loaded, group=group))
            bounds = render_bounds(loaded, group)
            if bounds:
                echo_shown(bounds)


def _show_tokens(run: object, sample_id: str) -> None:
    from hambench.reports.terminal.steps import render_steps
    from hambench.store import Run

    assert isinstance(run, Run)
    if sample_id not in run.samples:
        raise UnknownNameError("sample", sample_id, run.samples)
    for record in run.measured:
        if record.sample_id != sample_id:
            continue
        click.echo(click.style(terminal_safe(record.cell), bold=True))
        echo_shown(render_steps(record) if record.error is None else f"  error: {record.error}")
        click.echo()
