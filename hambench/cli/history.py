"""``hambench history``: keeps runs and tracks each method's metrics over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hambench.cli._options import FiniteRange, RunFolder, UserPath
from hambench.cli._repeats import OnceOption
from hambench.cli._streams import echo_shown
from hambench.errors import HambenchError

if TYPE_CHECKING:
    from hambench.history.archive import Entry, History

root_option = click.option(
    "--root",
    type=UserPath(path_type=Path),
    default=Path("history"),
    show_default=True,
    help="Folder of the history, e.g. in a branch, an artifact or a mounted disk.",
)


@click.group(
    epilog="""
\b
Examples:
  hambench history add runs/nightly
  hambench history show --cell 'speculative*'
  hambench history pin release-1.2 RUN_ID
  hambench history annotate "new cooling" --at 2026-01-31 --break
"""
)
def command() -> None:
    """Keep runs as write-once files, and track ratios to vanilla."""


@command.command()
@root_option
@click.argument("runs", nargs=-1, required=True, type=RunFolder())
def add(root: Path, runs: tuple[Path, ...]) -> None:
    """Add finished RUNS; adding a run twice has no effect."""
    from hambench.errors import IncompleteError
    from hambench.history.archive import add as add_entry
    from hambench.history.archive import entry_of
    from hambench.store import load_run

    for folder in runs:
        try:
            path, new = add_entry(root, entry_of(load_run(folder)))
        except IncompleteError as error:
            echo_shown(f"hambench: {error}", err=True)
            raise SystemExit(3) from error
        echo_shown(f"{path}{'' if new else ': already in the history'}")


@command.command(name="list")
@root_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(root: Path, as_json: bool) -> None:
    """List the runs, oldest first, with pins and annotations."""
    import json

    history = _load(root)
    pins: dict[str, list[str]] = {}
    for name, pin in history.pins.items():
        pins.setdefault(pin.run_id, []).append(name)
    for entry in history.entries:
        names = pins.get(entry.run_id, [])
        if as_json:
            fields = {
                "run_id": entry.run_id,
                "created_at": entry.created_at,
                "commit": entry.commit,
                "machine": entry.machine,
                "suite": entry.suite,
                "model": entry.model,
                "pins": names,
            }
            click.echo(json.dumps(fields))
            continue
        pinned = f"  [{', '.join(names)}]" if names else ""
        commit = (entry.commit or "no commit")[:8]
        echo_shown(
            f"{entry.created_at[:16]}  {commit}  {entry.machine}  {entry.suite}  {entry.run_id}{pinned}"
        )
    if as_json:
        return
    for made in history.annotations:
        echo_shown(f"{made.at[:16]}  {'break: ' if made.breaks else ''}{made.text}")
    if not history.entries:
        echo_shown("no runs")


@command.command()
@root_option
@click.option("--machine", help="Defaults to every machine, each on its own.")
@click.option("--suite", cls=OnceOption, help="Defaults to every suite, each on its own.")
@click.option("--metric", default="tps_ratio", show_default=True, help="A tracked metric, or *.")
@click.option("--cell", default="*", show_default=True, help="Cells to show; * matches any text.")
@click.option(
    "--threshold", type=FiniteRange(), default=0.02, show_default=True, help="Smallest change to report."
)
@click.option(
    "--gate-history", is_flag=True, help="Exit with 1 if the newest run of a series confirms a regression."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(root: Path, machine: str | None, suite: str | None, as_json: bool, **options: Any) -> None:
    """Show series, their shifts and their changes since each pin."""
    history = _load(root)
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in history.entries:
        if machine in (None, entry.machine) and suite in (None, entry.suite):
            groups.setdefault((entry.machine, entry.suite), []).append(entry)
    if not groups:
        echo_shown("no runs of that machine and suite")
        raise SystemExit(3)
    lost = [_show(history, key, entries, as_json=as_json, **options) for key, entries in groups.items()]
    if options["gate_history"]:
        if history.problems:
            raise SystemExit(3)
        if any(lost):
            raise SystemExit(1)


@command.command()
@root_option
@click.argument("name")
@click.argument("run_id")
@click.option("--note", default="", help="A note on the pin.")
def pin(root: Path, name: str, run_id: str, note: str) -> None:
    """Pin run RUN_ID as NAME, to compare later runs with it."""
    from hambench.history.archive import pin as make_pin

    made = make_pin(_load(root), name, run_id, note=note)
    echo_shown(f"{made.name}: {made.run_id}")


@command.command()
@root_option
@click.argument("text")
@click.option("--at", help="UTC time of the note; defaults to now.")
@click.option("--break", "breaks", is_flag=True, help="Start every series anew at this time.")
@click.option("--machine", help="Only for this machine.")
def annotate(root: Path, text: str, at: str | None, breaks: bool, machine: str | None) -> None:
    """Annotate a point in time with TEXT."""
    from hambench.history.archive import annotate as make_annotation

    made = make_annotation(root, text, at=at, breaks=breaks, machine=machine)
    echo_shown(f"{made.at[:16]}  {made.text}")


@command.command()
@root_option
@click.option("--keep", type=int, required=True, help="Number of newest runs to keep per machine and suite.")
@click.option("--yes", is_flag=True, help="Delete the files instead of listing them.")
def prune(root: Path, keep: int, yes: bool) -> None:
    """Delete old runs; keep pinned ones."""
    from hambench.history.archive import prune as old_files

    files = old_files(_load(root), keep=keep)
    for path in files:
        echo_shown(str(path))
        if yes:
            path.unlink()
    echo_shown(
        f"{len(files)} {'deleted' if yes else 'would be deleted; repeat with --yes'}"
        if files
        else "nothing to delete"
    )


@command.command()
@root_option
def verify(root: Path) -> None:
    """Verify every file's digest.

    Exits with 3 if a file can't be used.
    """
    from hambench.history.archive import load_history

    history = load_history(root)
    for problem in history.problems:
        echo_shown(problem)
    echo_shown(f"{len(history.entries)} runs, {len(history.problems)} problems")
    if history.problems:
        raise SystemExit(3)


def _load(root: Path) -> History:
    from hambench.history.archive import load_history

    history = load_history(root)
    for problem in history.problems:
        echo_shown(f"hambench: left out: {problem}", err=True)
    return history


def _show(
    history: History,
    key: tuple[str, str],
    entries: Sequence[Entry],
    *,
    metric: str,
    cell: str,
    threshold: float,
    gate_history: bool,
    as_json: bool,
) -> bool:
    """Prints the series of one machine and suite; returns whether the newest run of one confirms a loss."""
    import json

    from hambench.gating.config import like
    from hambench.history.archive import series_names
    from hambench.history.shifts import describe_series

    if not 0 < threshold < 1:
        raise HambenchError(f"threshold must be between 0 and 1, got {threshold:g}")
    if not as_json:
        echo_shown(f"{key[0]}  {key[1]}")
    lost = False
    for name, label in series_names(entries):
        if not (like(metric, name) and like(cell, label)):
            continue
        series = describe_series(history, entries, name, label, threshold=threshold)
        lost = lost or series.lost is True
        if as_json:
            click.echo(json.dumps({"machine": key[0], "suite": key[1], **series.as_dict()}))
        else:
            echo_shown("\n".join(f"  {line}" for line in series.lines()))
    return lost
