"""Reads YAML files with YAML 1.2's plain values and without duplicate keys, unlike YAML 1.1.

YAML 1.1, which PyYAML reads, makes 3721 of ``1:2:1``, 8 of ``010``, 10 of ``1_0``, false of ``off`` and a date of
``2026-01-31``. Here a plain value is a number, ``true``, ``false`` or ``null`` by YAML 1.2's core schema, and text
otherwise.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from hambench.errors import DataError
from hambench.files import printable, reason_of

_STARTS = {
    "null": ("", "n", "N", "~"),
    "bool": tuple("tTfF"),
    "int": tuple("-+0123456789"),
    "float": tuple("-+.0123456789"),
}
_CORE = {
    "null": r"^(?:null|Null|NULL|~|)$",
    "bool": r"^(?:true|True|TRUE|false|False|FALSE)$",
    "int": r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$",
    "float": r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
}


class _Core(yaml.SafeLoader):
    """Loads scalars by YAML 1.2's core schema; a duplicate key is an error."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, yaml.Node] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is one plain value", key_node.start_mark
                )
            if key in seen:
                line = seen[key].start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice, first on line {line}", key_node.start_mark
                )
            seen[key] = key_node
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        if re.search("[\ud800-\udfff]", text):
            raise yaml.constructor.ConstructorError(
                None, None, "half a surrogate pair is not text", node.start_mark
            )
        return text


class _Words(_Core):
    """Loads scalars as the text that they are written with, except ``null`` and empty values."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    base = {"0o": 8, "0x": 16}.get(text[:2])
    return int(text[2:], base) if base else int(text)


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    # YAML's .inf and .nan are Python's without the dot
    return float(re.sub(r"^([-+]?)\.(?=[a-zA-Z])", r"\1", str(loader.construct_scalar(node))))


_Core.add_constructor("tag:yaml.org,2002:int", _integer)
_Core.add_constructor("tag:yaml.org,2002:float", _number)
for _name in ("null", "bool", "int", "float"):
    _tag, _pattern = f"tag:yaml.org,2002:{_name}", re.compile(_CORE[_name])
    _Core.add_implicit_resolver(_tag, _pattern, list(_STARTS[_name]))
    if _name == "null":
        _Words.add_implicit_resolver(_tag, _pattern, list(_STARTS[_name]))


def read_yaml(path: Path, *, as_words: bool = False) -> Any:
    """Reads a YAML file.

    Args:
        path: The file, in UTF-8 (or UTF-16 with its mark).
        as_words: Whether to keep every scalar as text, for options that parse it themselves.

    Raises:
        DataError: If it can't be read, is not YAML, or has a duplicate key; the message names the file and the line.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"the file {printable(str(path))} does not exist") from error
    except OSError as error:
        raise DataError(f"can't read {printable(str(path))}: {reason_of(error)}") from error
    try:
        return yaml.load(content, Loader=_Words if as_words else _Core)
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"{printable(str(path))} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise DataError(f"{printable(str(path))} is nested too deeply") from error
