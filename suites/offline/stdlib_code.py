"""Code completion from the standard library: the next line (like LCC) and across files (like RepoBench)."""

from __future__ import annotations

import keyword
import os
import random
import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any

from hambench.suites.offline.lengths import characters, depth

Row = dict[str, Any]

# long-standing modules of ordinary code; those that a Python lacks are left out
_MODULES_TEXT = (
    "argparse ast base64 bdb bisect calendar cmd code codecs colorsys configparser contextlib copy csv "
    "dataclasses difflib dis doctest enum filecmp fileinput fnmatch fractions ftplib functools getopt "
    "gettext glob graphlib gzip heapq hmac imaplib inspect io ipaddress keyword linecache locale lzma "
    "mailbox mimetypes netrc ntpath numbers optparse os pathlib pdb pickle pickletools pkgutil platform "
    "plistlib poplib posixpath pprint profile pstats pyclbr pydoc queue quopri random reprlib sched "
    "selectors shelve shlex shutil smtplib socketserver ssl stat statistics string stringprep subprocess "
    "symtable tabnanny tarfile tempfile textwrap threading timeit token tokenize trace traceback types "
    "typing uuid warnings wave weakref webbrowser xmlrpc/client xmlrpc/server zipapp zipfile"
)
MODULES = tuple(_MODULES_TEXT.split())

# packages whose files are used together
_PACKAGES_TEXT = (
    "asyncio collections concurrent/futures ctypes email html http importlib json logging multiprocessing "
    "sqlite3 unittest urllib wsgiref xml/dom xml/etree xml/sax"
)
PACKAGES = tuple(_PACKAGES_TEXT.split())

_TRIPLE = re.compile(r"\"\"\"|\'\'\'")
_NAME = re.compile(r"[A-Za-z_]\w{3,}")
_MOST_LIKE = 0.6
"""Maximum similarity of an answer to the line before it, because repeating that line would answer the row."""


def next_line(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Builds rows that ask for a module's next line, which occurs earlier in the text after the same two lines.

    The answer differs from the line just before it, so that the code must be read to find the line to repeat.
    """
    places = _shuffled([(name, index) for name in MODULES for index in _repeated(name)], seed, "places")
    rows: list[Row] = []
    used: dict[str, int] = {}
    while len(rows) < num_rows:
        wanted = characters(len(rows), "code")
        fitting = [each for each in places if _window(*each, wanted) is not None]
        if not fitting:
            break
        # use many modules, for variety of authors and subjects
        name, index = min(fitting, key=lambda each: used.get(each[0], 0))
        used[name] = used.get(name, 0) + 1
        places.remove((name, index))
        start = _window(name, index, wanted)
        lines = source_lines(name) or []
        rows.append(_row("\n".join(lines[start:index]), "", lines[index], f"{name}:{index + 1}"))
    return rows


def cross_file(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Builds rows that ask for the next line of a copy of another file with one name changed throughout."""
    files = _shuffled(
        [f"{package}/{user}" for package in PACKAGES for user in _members(package)], seed, "files"
    )
    rows: list[Row] = []
    used: set[str] = set()
    while len(rows) < num_rows:
        number = len(rows)
        row = None
        for name in files:
            row = None if name in used else _ported(name, number, seed)
            if row is not None:
                used.add(name)
                rows.append(row)
                break
        if row is None:
            if not used:
                break
            # every file of this length has been used
            used.clear()
    return rows


def _ported(name: str, number: int, seed: int) -> Row | None:
    """Returns a row over one file: a part of it, then a copy of some of its lines with a new name."""
    lines = source_lines(name)
    if lines is None:
        return None
    rng = random.Random(f"ported {seed} {number} {name}")
    wanted = characters(number, "code")
    fair = [each for each in _targets(lines, rng) if not _like_the_line_before(lines, each)]
    for index in fair[:40]:
        num_copied = rng.randint(6, 12)
        copied = lines[index - num_copied : index]
        names = [each for each in _NAME.findall(lines[index]) if not keyword.iskeyword(each)]
        shared = [each for each in names if sum(each in _NAME.findall(line) for line in copied) >= 2]
        if not shared:
            continue
        old = shared[0]
        new = f"{old}_2" if old.islower() else f"{old}Two"
        size = sum(len(line) + 1 for line in copied)
        before = int((wanted - 2 * size) * depth(number))
        start = _reaching_back(lines, index - num_copied, before)
        end = _reaching_forward(lines, index + 1, wanted - 2 * size - before)
        shown = "\n".join(lines[start:end])
        if abs(len(shown) + size - wanted) > wanted / 4:
            continue
        word = re.compile(rf"\b{re.escape(old)}\b")
        asked = word.sub(new, "\n".join(copied))
        context = f"# {name}.py\n{shown}\n\n# {name}_2.py: {old} is now {new}\n"
        return _row(context, asked, word.sub(new, lines[index]), f"{name}:{index + 1}")
    return None


def _reaching_back(lines: Sequence[str], index: int, size: int) -> int:
    """Returns the first of the lines before ``index`` that have about ``size`` characters in total."""
    while index > 0 and size > 0:
        index -= 1
        size -= len(lines[index]) + 1
    return index


def _reaching_forward(lines: Sequence[str], index: int, size: int) -> int:
    """Returns the end of the lines from ``index`` that have about ``size`` characters in total."""
    while index < len(lines) and size > 0:
        size -= len(lines[index]) + 1
        index += 1
    return index


@cache
def _repeated(name: str) -> tuple[int, ...]:
    """Returns lines (from 0) that occurred earlier after the same two lines, which no other line followed."""
    lines = source_lines(name)
    if lines is None:
        return ()
    fair = set(_targets(lines, random.Random(0)))
    followers: dict[tuple[str, str], set[str]] = {}
    found = []
    for index in range(2, len(lines)):
        key = (lines[index - 2], lines[index - 1])
        before = followers.setdefault(key, set())
        if (
            index in fair
            and key[0].strip()
            and before == {lines[index]}
            and not _like_the_line_before(lines, index)
        ):
            found.append(index)
        before.add(lines[index])
    return tuple(found)


def _like_the_line_before(lines: Sequence[str], index: int) -> bool:
    return SequenceMatcher(None, lines[index], lines[index - 1]).ratio() > _MOST_LIKE


@cache
def _window(name: str, index: int, size: int) -> int | None:
    """Returns the start of about ``size`` characters before line ``index`` if they contain its earlier occurrence."""
    lines = source_lines(name) or []
    start = _reaching_back(lines, index, size)
    if sum(len(line) + 1 for line in lines[start:index]) < 0.8 * size:
        return None
    last = lines[index - 2 : index + 1]
    if any(lines[i - 2 : i + 1] == last for i in range(start + 2, index)):
        return start
    return None


@cache
def source_lines(name: str) -> list[str] | None:
    """Returns the lines of a standard-library module; ``None`` if this Python lacks its source."""
    path = Path(os.__file__).parent / f"{name}.py"
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return None


def _targets(lines: list[str], rng: random.Random) -> Iterator[int]:
    """Yields line numbers (from 0) to ask for in random order: code of moderate length, no comments."""
    text_lines = _text_lines(lines)
    fair = [
        index
        for index, line in enumerate(lines)
        if index >= 25
        and index not in text_lines
        and 12 <= len(line.strip()) <= 79
        # the metric skips lines with these characters
        and not any(mark in line for mark in ("#", "`", "//"))
        and line.strip()[0] not in "\"'"
        and lines[index - 1].strip()
    ]
    rng.shuffle(fair)
    return iter(fair)


def _text_lines(lines: Sequence[str]) -> set[int]:
    """Returns line numbers (from 0) with or between triple quotes, which almost always are documentation."""
    inside: set[int] = set()
    quote: str | None = None
    for index, line in enumerate(lines):
        if quote is not None or _TRIPLE.search(line):
            inside.add(index)
        for found in _TRIPLE.findall(line):
            if quote is None:
                quote = found
            elif quote == found:
                quote = None
    return inside


def _members(package: str) -> list[str]:
    folder = Path(os.__file__).parent / package
    return sorted(path.stem for path in folder.glob("*.py")) if folder.is_dir() else []


def _row(context: str, question: str, answer: str, origin: str) -> Row:
    return {
        "input": question,
        "context": context,
        "answers": [answer],
        "length": len((context + question).split()),
        "dataset": origin.split(":")[0],
        "language": "python",
        "all_classes": None,
        "_id": origin,
    }


def _shuffled(items: Any, seed: int, what: str) -> list[Any]:
    shuffled = list(items)
    random.Random(f"{what} {seed}").shuffle(shuffled)
    return shuffled
