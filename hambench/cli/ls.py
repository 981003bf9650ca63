"""``hambench ls``: lists methods, suites, models, runs and metrics."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from hambench.cli._options import UserPath
from hambench.cli._streams import echo_json
from hambench.paths import runs_root
from hambench.terminal_text import terminal_safe


@click.command()
@click.argument("kind", type=click.Choice(["methods", "suites", "models", "runs", "metrics"]))
@click.option("--root", type=UserPath(path_type=Path), help="Folder of runs.")
@click.option("--data", type=UserPath(path_type=Path), help="Folder of the suites' rows as plain files.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(kind: str, root: Path | None, data: Path | None, as_json: bool) -> None:
    """List methods, suites, models, runs or metrics."""
    rows = {
        "methods": _methods,
        "suites": lambda: _suites(data),
        "models": _models,
        "runs": lambda: _runs(root),
        "metrics": _metrics,
    }[kind]()
    if as_json:
        for row in rows:
            echo_json(row)
        return
    if not rows:
        click.echo(f"no {kind}")
    _print_rows(rows)


def _methods() -> list[dict[str, Any]]:
    from hambench.registry import method_config, method_names

    rows = []
    for name in method_names():
        config = method_config(name)
        axis = f"{config.axis}: {', '.join(map(str, config.axis_values))}" if config.axis else "–"
        field_names = [field.name for field in dataclasses.fields(config)]
        aliases = {field: f"{field} ({alias})" for alias, field in config.aliases.items()}
        knobs = ", ".join(aliases.get(field, field) for field in field_names)
        rows.append({"method": name, "what": config.summary() or "–", "axis": axis, "knobs": knobs or "–"})
    return rows


def _suites(data: Path | None) -> list[dict[str, Any]]:
    from hambench.suites import list_suites

    return [dict(row) for row in list_suites(data)]


def _models() -> list[dict[str, Any]]:
    from hambench.models.embedded import EMBEDDED, find_damage, folder_of

    rows = []
    for model in EMBEDDED.values():
        damage = find_damage(folder_of(model))
        state = "cached" if damage is None else f"fetched when first used ({damage})"
        rows.append({"model": model.name, "what": model.description, "state": state})
    rows.append({"model": "FOLDER or OWNER/NAME", "what": "any causal LM in safetensors", "state": "–"})
    return rows


def _runs(root: Path | None) -> list[dict[str, Any]]:
    """Lists runs by the names that other commands take, or by folder if the root is not the default one."""
    from hambench.errors import StoreError
    from hambench.store import list_runs, load_run

    rows = []
    for path in list_runs(runs_root() if root is None else root):
        name = path.name if root is None else str(path)
        try:
            run = load_run(path)
        except StoreError as error:
            rows.append({"run": name, "state": f"unreadable: {error}", "cells": "", "suites": ""})
            continue
        state = "complete" if run.complete else f"{len(run.measured)} of {run.num_expected} records"
        rows.append(
            {
                "run": name,
                "state": state,
                "cells": str(len(run.header.cells)),
                "suites": ", ".join(run.header.suites),
                "model": str(run.header.model.get("name")),
                "folder": str(path),
            }
        )
    return rows


def _metrics() -> list[dict[str, Any]]:
    from hambench.analysis.glossary import definitions

    return [
        {
            "metric": entry.name,
            "unit": entry.unit,
            "better": entry.better,
            "class": entry.kind,
            "definition": entry.text,
        }
        for entry in definitions()
    ]


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(
            *(
                Text(terminal_safe(str(row.get(name, "") if row.get(name) is not None else "–")))
                for name in columns
            )
        )
    # a pipe has no width, so keep each row on one line
    Console(highlight=False, width=None if sys.stdout is not None and sys.stdout.isatty() else 200).print(
        table
    )
