"""``hambench data``: lists, fetches and verifies the rows of the suites."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from hambench.cli._options import UserPath
from hambench.cli._repeats import ListOption, OnceOption
from hambench.cli._streams import echo_json

_DATA = click.option(
    "--data",
    type=UserPath(path_type=Path, file_okay=False, exists=True),
    help="Folder of rows as plain files.",
)
_SUITE = click.option("--suite", cls=OnceOption, metavar="NAME", help="Only this suite.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")


@click.group()
def command() -> None:
    """List, fetch and verify the rows of the suites."""


@command.command("list")
@_SUITE
@_DATA
@_JSON
def list_(suite: str | None, data: Path | None, as_json: bool) -> None:
    """List every task, the source of its rows and missing rows."""
    from hambench.suites.listing import describe, list_suites

    rows = list_suites(data) if suite is None else [asdict(each) for each in describe(suite, data)]
    _print(rows, as_json)
    if not as_json:
        gone = [row["task"] for row in rows if row["missing"]]
        click.echo(
            f"{len(rows) - len(gone)} of {len(rows)} tasks can run; missing: {', '.join(gone) or 'nothing'}"
        )


@command.command()
@_SUITE
@click.option("--tasks", cls=ListOption, metavar="NAME,NAME", help="Only these tasks.")
def fetch(suite: str | None, tasks: str | None) -> None:
    """Fetch official rows from the hub into the local cache.

    Also fetches the sentence data that some IFEval checks need.
    """
    from hambench.errors import DataError, HambenchError
    from hambench.suites.catalogue import ENTRIES
    from hambench.suites.harness.sentences import fetch_punkt
    from hambench.suites.listing import fetch as fetch_task

    failed = []
    chosen = _chosen(suite, tasks, tuple(ENTRIES))
    for task in chosen:
        try:
            click.echo(f"{task}: {fetch_task(task)} rows")
        except DataError as error:
            failed.append(task)
            click.echo(f"{task}: {error}", err=True)
    if "ifeval" in chosen:
        try:
            click.echo(f"sentence data for IFEval: {fetch_punkt()}")
        except HambenchError as error:
            click.echo(str(error), err=True)
    if failed:
        raise DataError(f"{len(failed)} of {len(chosen)} tasks could not be fetched: {', '.join(failed)}")


@command.command()
@_SUITE
@click.option("--tasks", cls=ListOption, metavar="NAME,NAME", help="Only these tasks.")
@_DATA
@_JSON
def verify(suite: str | None, tasks: str | None, data: Path | None, as_json: bool) -> None:
    """Read and count every row, and report what is missing.

    Exits with 2 if anything is missing.
    """
    from hambench.errors import DataError
    from hambench.suites.catalogue import ENTRIES
    from hambench.suites.listing import verify as verify_task
    from hambench.suites.offline import OFFLINE
    from hambench.suites.sources import hub_reachable

    source = "folder" if data is not None else "hub" if hub_reachable() else "offline edition"
    known = tuple(OFFLINE) if source == "offline edition" else tuple(ENTRIES)
    found = [verify_task(task, source=source, data=data) for task in _chosen(suite, tasks, known)]
    _print([asdict(each) for each in found], as_json)
    wrong = [each.task for each in found if each.problem]
    if wrong:
        raise DataError(f"{len(wrong)} of {len(found)} tasks are incomplete: {', '.join(wrong)}")


def _chosen(suite: str | None, tasks: str | None, known: tuple[str, ...]) -> list[str]:
    from hambench.errors import UnknownNameError
    from hambench.suites.catalogue import ENTRIES, SUITES
    from hambench.suites.offline import OFFLINE, OFFLINE_SUITE, OFFLINE_SUITES

    entries = {**{name: each.entry for name, each in OFFLINE.items()}, **ENTRIES}
    suite_of = {
        name: OFFLINE[name].entry.suite if name in OFFLINE and name in known else entries[name].suite
        for name in known
    }
    if suite is not None:
        suites = {*SUITES, *OFFLINE_SUITES}
        if suite not in suites:
            raise UnknownNameError("suite", suite, suites)
        here = (
            {suite, OFFLINE_SUITE.get(suite, suite)}
            if not any(suite_of[n] == suite for n in known)
            else {suite}
        )
        known = tuple(name for name in known if suite_of[name] in here)
    if tasks is None:
        return list(known)
    named = [name.strip() for name in tasks.split(",") if name.strip()]
    for name in named:
        if name not in known:
            raise UnknownNameError("task", name, known)
    return named


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        for row in rows:
            echo_json(row)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0] if rows else ():
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text("–" if value is None else str(value)) for value in row.values()))
    Console(highlight=False).print(table)
