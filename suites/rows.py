"""Reads a task's rows from plain files (JSON lines, JSON arrays, TSV, optionally gzipped), checked line by line."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hambench.errors import DataError, listed
from hambench.suites.catalogue import TaskEntry
from hambench.suites.columns import check_row

Row = dict[str, Any]

_HALF = re.compile("[\ud800-\udfff]")
_HALF_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")
"""How JSON writes one; bytes that are UTF-8 hold none."""

MBPP_TEST = range(11, 511)
"""``task_id`` of MBPP's test split; the file also contains the training rows."""


@dataclass(frozen=True, slots=True)
class RowFile:
    """The rows of one task, as read from a file."""

    path: Path
    rows: tuple[Row, ...]
    sha256: str
    """sha256 of the file's bytes."""
    lines: tuple[int, ...] = ()
    """Line number of each row, from 1; in a JSON array, the element number."""
    repaired: tuple[int, ...] = ()
    """Lines that held half a surrogate pair, which is not text; U+FFFD stands in its place."""

    @property
    def note(self) -> str:
        """What was changed in the rows, for every reader of the run; empty if nothing was."""
        if not self.repaired:
            return ""
        lines = listed([str(line) for line in self.repaired])
        where = f"line{'' if len(self.repaired) == 1 else 's'} {lines}"
        return f"{self.path.name}, {where}: half a surrogate pair is not text and was replaced by U+FFFD."


def find_file(folder: Path, names: Sequence[str]) -> Path | None:
    """Returns the first of ``names`` that exists in ``folder`` or a direct subfolder."""
    candidates = [name for given in names for name in _spellings(given)]
    for name in candidates:
        if (folder / name).is_file():
            return folder / name
    below = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    for name in candidates:
        for sub in below:
            if (sub / name).is_file():
                return sub / name
    return None


def read_rows(path: Path, columns: Sequence[str] = ()) -> RowFile:
    """Reads a data file.

    Args:
        path: ``.jsonl``, ``.json``, ``.tsv``, each also with ``.gz``.
        columns: Columns that every row must have.

    Raises:
        DataError: If the file can't be read, a line is broken, or a row lacks a column; the message names the line.
    """
    try:
        raw = path.read_bytes()
        text = unpacked(path, raw).decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"can't read {path}: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    parse = {".tsv": _tsv, ".json": _json}.get(kind_of(path), _jsonl)
    rows, lines, repaired = [], [], []
    may_hold_halves = _HALF_ESCAPED.search(text) is not None
    for number, row in parse(path, text):
        whole = without_halves(row) if may_hold_halves else row
        if whole != row:
            repaired.append(number)
            row = whole
        missing = [column for column in columns if column not in row]
        if missing:
            found = ", ".join(row)[:200] or "none"
            raise DataError(
                f"{path}, line {number}: missing column {missing[0]!r} (columns present: {found})"
            )
        rows.append(row)
        lines.append(number)
    if not rows:
        raise DataError(f"{path} contains no rows")
    return RowFile(
        path=path,
        rows=tuple(rows),
        sha256=hashlib.sha256(raw).hexdigest(),
        lines=tuple(lines),
        repaired=tuple(repaired),
    )


def kind_of(path: Path) -> str:
    """Returns the ending that says what a data file holds, in small letters: ``.jsonl`` of ``x.JSONL.gz``."""
    return (Path(path.stem) if _is_packed(path) else path).suffix.lower()


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def unpacked(path: Path, raw: bytes) -> bytes:
    """Returns the bytes of a data file, decompressed if its name ends with ``.gz``.

    Raises:
        DataError: If the archive is damaged.
    """
    if not _is_packed(path):
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"can't read {path}: the archive is damaged ({error}); fetch it again") from error


def read_task(folder: Path, entry: TaskEntry) -> RowFile | None:
    """Reads the rows of ``entry`` from ``folder`` in the schema of its task file; ``None`` if there are none.

    Raises:
        DataError: If the file is broken, or a column's value does not have the type that the task reads.
    """
    path = find_file(folder, entry.file_names)
    if path is None:
        return None
    # a TSV has no header; adapt() makes its columns
    file = read_rows(path, () if kind_of(path) == ".tsv" else entry.columns)
    for row, line in zip(file.rows, file.lines, strict=True):
        check_row(entry, row, f"{path}, line {line}")
    return replace(file, rows=tuple(adapt(entry, file.rows)))


def adapt(entry: TaskEntry, rows: Sequence[Row]) -> list[Row]:
    """Converts rows of the public schema to the task file's schema: renames or fills columns, selects the split."""
    if entry.suite in ("longbench", "longbench-e"):
        # re-hosted copies name the column ``question``; the original and hambench name it ``input``
        return [{**row, "input": row.get("input", row.get("question", ""))} for row in rows]
    if entry.name == "mgsm_en_cot_en":
        return [{"equation_solution": None, "answer": None, **row} for row in rows]
    if entry.name == "mbpp_instruct":
        return [row for row in rows if row["task_id"] in MBPP_TEST]
    return list(rows)


def _spellings(name: str) -> list[str]:
    stem = name.removesuffix(".gz")
    base, _, suffix = stem.rpartition(".")
    others = [f"{base}.json"] if suffix == "jsonl" else []
    return [name, *(n for n in (stem, f"{stem}.gz", *others) if n != name)]


def _jsonl(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    # splitlines() would also split at U+2028 and other characters within JSON strings
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = _parsed(line, f"{path}, line {number}")
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
        yield number, row


def json_document(path: Path, text: str) -> list[Any] | None:
    """Returns the rows of one JSON document, a lone object as one row; ``None`` for several documents, one per line.

    Raises:
        DataError: Naming file, line and column.
    """
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return None
        raise DataError(
            f"{path}, line {error.lineno}: broken JSON: {error.msg} (column {error.colno})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: broken JSON: {error}") from error
    return rows if isinstance(rows, list) else [rows]


def _json(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    rows = json_document(path, text)
    if rows is None:
        yield from _jsonl(path, text)
        return
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, element {number}: expected a JSON object, got {type(row).__name__}")
        yield number, row


def without_halves(value: Any) -> Any:
    """Returns a JSON value with U+FFFD for each half of a surrogate pair: no encoder takes one."""
    match value:
        case str():
            return _HALF.sub("\ufffd", value)
        case list():
            return [without_halves(each) for each in value]
        case dict():
            return {without_halves(key): without_halves(each) for key, each in value.items()}
        case _:
            return value


def _parsed(text: str, where: str) -> Any:
    """Parses one JSON value; also rejects numbers of thousands of digits and nesting thousands deep."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: broken JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: broken JSON: {error}") from error


def _tsv(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    # this format has no quoting; a cell is everything between two tabs
    for number, line in enumerate(text.split("\n"), start=1):
        cells = line.rstrip("\r").split("\t")
        if not any(cells):
            continue
        if len(cells) < 2:
            raise DataError(f"{path}, line {number}: expected question TAB answer, got {len(cells)} column")
        question, answer = cells[0], cells[1].strip().replace(",", "")
        try:
            value = int(answer)
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: the answer must be an integer, got {cells[1][:40]!r}"
            ) from error
        yield number, {"question": question, "answer_number": value}
