"""Rows of a user's file, each with its place: JSON lines, JSON, CSV, Parquet, or a folder of text files.

A row that can't be read is an error of that row alone, so that one look tells everything that must be fixed.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hambench.errors import DataError
from hambench.files import expanded, printable, reason_of
from hambench.suites.rows import json_document, kind_of, unpacked, without_halves

TABLES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".csv", ".parquet")
"""Endings of files with one row per question."""
_JSON_COLUMNS = ("messages", "turns", "conversations", "body")
"""Columns of a CSV file whose cells are JSON."""
_LIST_COLUMNS = ("reference", "stop")
"""Columns of a CSV file whose cells are texts, or lists of texts in JSON."""
TEXTS = (".txt", ".md")
"""Endings of the files of a folder; each is one prompt."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in the file."""

    where: str
    """File and line, element or row, for messages."""
    row: dict[str, Any]
    problem: str = ""
    """Why there is no row here; empty where there is."""


@dataclass(frozen=True, slots=True)
class RawFile:
    """All rows of a file or folder."""

    rows: tuple[RawRow, ...]
    sha256: str
    """Of the file's bytes, or of the names and bytes of a folder's files."""


def path_of(suite: str) -> Path | None:
    """The file or folder that ``--suite`` names; ``None`` for any other text. Names of suites are for the caller.

    Raises:
        DataError: If it names a file of another kind.
    """
    path = expanded(suite)
    if path.name.lower().endswith(TABLES) or path.is_dir():
        return path
    if path.is_file():
        raise DataError(
            f"{path} must end in one of {', '.join(TABLES)} to be a suite; put a single text into a folder"
        )
    return None


def read_rows(path: Path) -> RawFile:
    """Reads a file, or the text files of a folder.

    Raises:
        DataError: If it can't be read, or holds no rows.
    """
    if path.is_dir():
        return _folder(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"can't read {path}: {reason_of(error)}") from error
    if path.suffix.lower() == ".parquet":
        rows = list(_parquet(path, raw))
    else:
        try:
            text = unpacked(path, raw).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8"
            ) from error
        parse = {".csv": _csv, ".json": _json}.get(kind_of(path), _jsonl)
        rows = list(parse(path, text))
    if not rows:
        raise DataError(f'{path} holds no rows: give one question per line, like {{"prompt": "…"}}')
    return RawFile(tuple(map(_as_text, rows)), hashlib.sha256(raw).hexdigest())


def _as_text(raw: RawRow) -> RawRow:
    if without_halves(raw.row) == raw.row:
        return raw
    return RawRow(
        raw.where, {}, "holds half a surrogate pair, which is not text: write both halves, or \\ufffd for it"
    )


def _jsonl(path: Path, text: str) -> Iterator[RawRow]:
    # not splitlines(): JSON strings may hold U+2028 and other marks that it would cut at
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            yield RawRow(
                where, {}, f"broken JSON ({error.msg}, column {error.colno}): write one object per line"
            )
        except (ValueError, RecursionError) as error:
            yield RawRow(where, {}, f"broken JSON ({error}): write one object per line")
        else:
            yield _object(where, row)


def _json(path: Path, text: str) -> Iterator[RawRow]:
    rows = json_document(path, text)
    if rows is None:
        yield from _jsonl(path, text)
        return
    for number, row in enumerate(rows, start=1):
        yield _object(f"{path}, element {number}", row)


def _object(where: str, row: Any) -> RawRow:
    if isinstance(row, dict):
        return RawRow(where, row)
    return RawRow(where, {}, f'must be an object like {{"prompt": "…"}}, got {type(row).__name__}')


def _csv(path: Path, text: str) -> Iterator[RawRow]:
    csv.field_size_limit(2**31 - 1)  # by default a cell may hold 128 KiB, and prompts are longer
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names = next(reader, [])
    columns = [name.strip() for name in names]
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise DataError(f"{path}, line 1: two columns are named {twice!r}; rename one")
    line = reader.line_num + 1
    try:
        for cells in reader:
            where, line = f"{path}, line {line}", reader.line_num + 1
            if not cells:
                continue
            if len(cells) != len(columns):
                counts = f"has {len(cells)} cells where the header has {len(columns)}"
                yield RawRow(where, {}, f"{counts}: put quotes around text with commas")
                continue
            # an empty cell is a column that this row does not have
            texts = {name: cell for name, cell in zip(columns, cells, strict=True) if cell.strip()}
            try:
                row = {name: _from_cell(name, cell) for name, cell in texts.items()}
            except (ValueError, RecursionError) as error:
                yield RawRow(where, {}, f"{error}: write a list or object of JSON, its quotes doubled")
            else:
                yield RawRow(where, row)
    except csv.Error as error:
        yield RawRow(
            f"{path}, line {reader.line_num}", {}, f"is not CSV ({error}): double the quotes inside a cell"
        )


def _from_cell(name: str, cell: str) -> Any:
    """A cell's text, or the list or object that it spells, where the column holds such: CSV has no other way.

    Raises:
        ValueError: If a column that holds nothing but JSON holds broken JSON.
    """
    if name in _JSON_COLUMNS and cell.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} is broken JSON ({error.msg}, character {error.pos + 1})") from error
    if name in _LIST_COLUMNS and cell.lstrip()[:1] == "[":
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(cell)
            # a pattern such as [0] is JSON too, but no list of texts
            if value and all(_is_texts(each) for each in value):
                return value
    return cell


def _is_texts(value: Any) -> bool:
    return value is None or isinstance(value, str) or (isinstance(value, list) and all(map(_is_texts, value)))


def _parquet(path: Path, raw: bytes) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(io.BytesIO(raw)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is not a Parquet file: {reason}") from error
    for number, row in enumerate(rows, start=1):
        present = {name: value for name, value in row.items() if value is not None and value == value}
        yield RawRow(f"{path}, row {number}", present)


def _folder(folder: Path) -> RawFile:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in TEXTS and path.is_file())
    if not paths:
        raise DataError(f"{folder} holds no prompts: put one prompt into each file, named *.txt or *.md")
    digest = hashlib.sha256()
    rows = []
    for path in paths:
        inside = path.relative_to(folder)
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise DataError(f"can't read {path}: {reason_of(error)}") from error
        digest.update(str(inside).encode("utf-8", "surrogateescape") + b"\0" + raw + b"\0")
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            rows.append(
                RawRow(
                    str(path), {}, f"is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8"
                )
            )
            continue
        row = {"prompt": text, "id": printable(inside.with_suffix("").as_posix())}
        if len(inside.parts) > 1:
            row["category"] = printable(inside.parts[0])
        rows.append(RawRow(str(path), row))
    return RawFile(tuple(rows), digest.hexdigest())
