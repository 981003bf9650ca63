"""Recipes in TOML files: each names the recipe that it starts from, and the fields that it changes.

Importable without torch, so that a wrong file is refused at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from hambench.errors import DataError, UnknownNameError
from hambench.methods.hamburger.training.recipes import RECIPES, Recipe

SUFFIX = ".toml"


def recipe_of(name_or_path: str) -> Recipe:
    """Returns the recipe of this name, or of this file, which is known by its suffix ``.toml``.

    Raises:
        DataError: If the file can't be read, or has an unknown field or a wrong value.
        UnknownNameError: If there is no recipe with this name.
    """
    if name_or_path.endswith(SUFFIX):
        return read_recipe(Path(name_or_path))
    if name_or_path not in RECIPES:
        raise UnknownNameError("recipe", name_or_path, [*RECIPES, f"FILE{SUFFIX}"])
    return RECIPES[name_or_path]


def read_recipe(path: Path) -> Recipe:
    """Reads a recipe from a file; its name is the file's, without the suffix.

    Raises:
        DataError: If the file can't be read, or has an unknown field or a wrong value.
    """
    try:
        # utf-8-sig because some editors write a byte order mark
        changes = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"there is no recipe file {path}; give a file, or one of {_names()}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{path}: can't be read as TOML: {error}") from error
    start = changes.pop("from", None)
    if not isinstance(start, str) or start not in RECIPES:
        given = "it has none" if start is None else f"got {start!r}"
        raise DataError(f"{path}: from must name the recipe to start from, one of {_names()}; {given}")
    if "name" in changes:
        raise DataError(f"{path}: name can't be set, because a recipe has its file's name; leave it out")
    base = RECIPES[start]
    values = {name: _value(path, base, name, value) for name, value in changes.items()}
    try:
        return dataclasses.replace(base, name=path.stem, **values)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _value(path: Path, owner: Any, name: str, value: Any, *, within: str = "") -> Any:
    """Returns a field's value in the field's type; ``owner`` has the field's present value, which errors show."""
    hints = typing.get_type_hints(type(owner))
    if name not in hints:
        close = difflib.get_close_matches(name, hints, n=1)
        fix = f"did you mean {within}{close[0]}?" if close else f"known: {', '.join(sorted(hints))}"
        raise DataError(f"{path}: unknown field {within}{name}; {fix}")
    own = getattr(owner, name)
    if dataclasses.is_dataclass(own) and isinstance(value, Mapping):
        parts = {part: _value(path, own, part, each, within=f"{name}.") for part, each in value.items()}
        try:
            return dataclasses.replace(own, **parts)  # type: ignore[type-var]
        except ValueError as error:
            raise DataError(f"{path}: {name}: {error}") from error
    try:
        return msgspec.convert(value, hints[name])
    except msgspec.ValidationError as error:
        words = _words(hints[name])
        choices = f" (words: {', '.join(words)})" if words else ""
        example = json.dumps(msgspec.to_builtins(own))
        raise DataError(
            f"{path}: {within}{name} = {json.dumps(value, default=str)}: {error}{choices}; it is {example} so far"
        ) from error


def _words(hint: Any) -> list[str]:
    """Returns the words that a value of this type may consist of."""
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    return [word for part in typing.get_args(hint) for word in _words(part)]


def _names() -> str:
    return ", ".join(RECIPES)
