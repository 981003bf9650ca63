"""Code completion from the installed standard library: the next line (as LCC), and across files (as RepoBench)."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# long-standing modules of ordinary code: what is missing in another Python is left out
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

# package: files read beside each other
_PACKAGES_TEXT = (
    "asyncio collections concurrent/futures ctypes email html http importlib json logging multiprocessing "
    "sqlite3 unittest urllib wsgiref xml/dom xml/etree xml/sax"
)
PACKAGES = tuple(_PACKAGES_TEXT.split())

_TRIPLE = re.compile(r"\"\"\"|\'\'\'")
_SIGN = re.compile(r"\w+|[^\w\s]")
_LIKENESS = ((0.7, 1.0), (0.7, 1.0), (0.4, 0.7), (0.0, 0.4))


def next_line(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Rows that ask for the next line of a module, given 25 to 70 lines before it.

    Lines much like an earlier one, somewhat like one, and unlike any take turns: easy, middling, hard.
    """
    rows: list[Row] = []
    for name in _shuffled(MODULES, seed, "modules"):
        lines = source_lines(name)
        if lines is None:
            continue
        rng = random.Random(f"next-line {seed} {name}")
        signs = [frozenset(_SIGN.findall(line)) for line in lines]
        # one row a module: as many hands, habits and subjects as there are rows
        for index in _targets(lines, rng):
            start = max(0, index - rng.randint(25, 70))
            before = lines[start:index]
            low, high = _LIKENESS[len(rows) % len(_LIKENESS)]
            if sum(map(len, before)) >= 800 and low <= _likeness(signs[index], signs[start:index]) < high:
                rows.append(_row("\n".join(before) + "\n", "", lines[index], f"{name}:{index + 1}"))
                break
        if len(rows) == num_rows:
            break
    return rows


def cross_file(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Rows that ask for the next line of a file that uses names defined in another file of its package."""
    rows: list[Row] = []
    pairs = [(package, user) for package in PACKAGES for user in _members(package)]
    for package, user in _shuffled(pairs, seed, "packages"):
        lines = source_lines(f"{package}/{user}")
        if lines is None:
            continue
        rng = random.Random(f"cross-file {seed} {package} {user}")
        rows += _cross_targets(package, user, lines, rng)
        if len(rows) >= num_rows:
            break
    return rows[:num_rows]


@cache
def source_lines(name: str) -> list[str] | None:
    """Lines of a standard-library module; ``None`` if this Python has no source of it."""
    path = Path(os.__file__).parent / f"{name}.py"
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return None


def _targets(lines: list[str], rng: random.Random) -> Iterator[int]:
    """Line numbers (from 0) worth asking for, in random order: code, neither too short nor too long, no comment."""
    text_lines = _text_lines(lines)
    fair = [
        index
        for index, line in enumerate(lines)
        if index >= 25
        and index not in text_lines
        and 12 <= len(line.strip()) <= 79
        # the metric skips lines with these marks
        and not any(mark in line for mark in ("#", "`", "//"))
        and line.strip()[0] not in "\"'"
        and lines[index - 1].strip()
    ]
    rng.shuffle(fair)
    return iter(fair)


def _likeness(own: frozenset[str], before: Sequence[frozenset[str]]) -> float:
    """Largest share of words and signs that a line has in common with one of the lines before it."""
    return max((len(own & each) / len(own | each) for each in before if each), default=0.0)


def _cross_targets(package: str, user: str, lines: list[str], rng: random.Random) -> list[Row]:
    """Up to two rows of one file: lines that use an imported name, each name once."""
    text = "\n".join(lines)
    if "from ." not in text and f"from {package.replace('/', '.')}." not in text:
        return []
    imported = _imported_names(package, user, text)
    rng.shuffle(imported)
    fair = sorted(_targets(lines, rng))
    rows: list[Row] = []
    for sibling, name in imported:
        word = re.compile(rf"\b{re.escape(name)}\b")
        uses = [each for each in fair if word.search(lines[each]) and _is_use(lines[each])]
        index = rng.choice(uses) if uses else None
        definition = _definition(package, sibling, name) if index is not None else None
        if index is None or definition is None:
            continue
        before = "\n".join(lines[max(0, index - rng.randint(20, 50)) : index]) + "\n"
        context = f"{package}/{sibling}.py\n{definition}\n\n{package}/{user}.py\n"
        rows.append(_row(context, before, lines[index], f"{package}/{user}:{index + 1}"))
        if len(rows) == 2:
            break
    return rows


def _is_use(line: str) -> bool:
    """Whether a line does something with a name rather than import it."""
    return any(mark in line for mark in "(=.[") and not line.strip().startswith(("from ", "import "))


def _imported_names(package: str, user: str, text: str) -> list[tuple[str, str]]:
    """(sibling module, name) of every ``from .sibling import name`` in ``text``, aliases left out."""
    dotted = re.escape(package.replace("/", "."))
    found = set()
    for sibling, bracketed, plain in re.findall(
        rf"^ *from (?:{dotted})?\.(\w+) import (?:\(([^)]*)\)|([^\n(]*))", text, re.MULTILINE
    ):
        names = re.sub(r"#[^\n]*", "", bracketed or plain).replace("\\", " ").split(",")
        if sibling != user:
            found |= {(sibling, name.strip()) for name in names if name.strip().isidentifier()}
    return sorted(found)


def _definition(package: str, sibling: str, name: str) -> str | None:
    """Source of a function or class of ``sibling``, 200 to 2400 characters of it."""
    lines = source_lines(f"{package}/{sibling}")
    if lines is None:
        return None
    head = re.compile(rf"(?:def|class) {re.escape(name)}\b")
    start = next((index for index, line in enumerate(lines) if head.match(line)), None)
    if start is None:
        return None
    rest = lines[start + 1 :]
    # it ends before the next line that begins at the margin (a closing bracket of its own head apart)
    length = next((i for i, line in enumerate(rest) if line and line[0] not in " \t)#"), len(rest))
    text = "\n".join([lines[start], *rest[:length]]).rstrip()[:2400]
    return text if len(text) >= 200 else None


def _text_lines(lines: Sequence[str]) -> set[int]:
    """Line numbers (from 0) that hold a triple quote or lie between two: documentation, nearly always."""
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
