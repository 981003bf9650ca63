"""Look-up in a long listing and classification of code lines, over the standard library's sources."""

from __future__ import annotations

import random
import re
from functools import cache
from typing import Any

from hambench.suites.offline.lengths import characters, place
from hambench.suites.offline.stdlib_code import MODULES, source_lines

Row = dict[str, Any]

_KINDS = {
    "import": r"(?:import|from) \w",
    "class": r"class \w",
    "function": r"def \w",
    "decorator": r"@\w",
    "exit": r"return \S",
    "error": r"raise \w",
    "condition": r"(?:if|elif) \S",
    "loop": r"(?:for|while) \S",
}
KINDS = tuple(_KINDS)
"""The classes of the few-shot task, by how a line of code begins."""

_HEAD = re.compile(r"(?:class|def) ([A-Za-z]\w*)")


def line_number(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Builds rows that ask for a number in an index: the line at which a class or function begins."""
    rows = []
    for number in range(num_rows):
        rng = random.Random(f"line number {seed} {number}")
        size = characters(number, "list")
        entries: list[tuple[str, int]] = []
        for entry in rng.sample(definitions(), len(definitions())):
            entries.append(entry)
            size -= len(_entry(*entry)) + 1
            if size <= 0:
                break
        name, line = entries[place(number, len(entries))]
        context = "\n".join(_entry(*each) for each in entries)
        rows.append(_row(context, name, [str(line)], f"line-number-{number}", None))
    return rows


def line_kind(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Builds rows that ask for the kind of a line of code, after labelled examples; kinds are equally frequent."""
    rows: list[Row] = []
    order: list[str] = []
    for number in range(num_rows):
        if number % len(KINDS) == 0:
            order = random.Random(f"kinds {seed} {number}").sample(KINDS, len(KINDS))
        rng = random.Random(f"line kind {seed} {number}")
        kind = order[number % len(KINDS)]
        asked = rng.choice(kinds_of_lines()[kind])
        size = characters(number, "code")
        shots: list[str] = []
        while size > 0 or len(shots) < len(KINDS):
            # use each kind once before repeating any
            for label in rng.sample(KINDS, len(KINDS)):
                line = rng.choice([each for each in kinds_of_lines()[label] if each != asked])
                shots.append(f"Line: {line}\nKind: {label}")
                size -= len(shots[-1]) + 1
        row = _row("\n".join(shots), f"Line: {asked}\nKind:", [kind], f"line-kind-{number}", list(KINDS))
        rows.append(row)
    return rows


@cache
def definitions() -> tuple[tuple[str, int], ...]:
    """Returns (module.name, line from 1) of every top-level class and function, each name once."""
    found: dict[str, int] = {}
    for module in MODULES:
        for index, line in enumerate(source_lines(module) or [], start=1):
            match = _HEAD.match(line)
            # a name defined twice has no unique line
            if match and index > 9:
                name = f"{module.replace('/', '.')}.{match[1]}"
                found[name] = 0 if name in found else index
    return tuple((name, line) for name, line in found.items() if line)


@cache
def kinds_of_lines() -> dict[str, tuple[str, ...]]:
    """Returns lines of the standard library by kind, each once, in a fixed order."""
    found: dict[str, dict[str, None]] = {kind: {} for kind in KINDS}
    for module in MODULES:
        for line in source_lines(module) or []:
            text = line.strip()
            for kind, pattern in _KINDS.items():
                if 12 <= len(text) <= 72 and "#" not in text and re.match(pattern, text):
                    found[kind][text] = None
    return {kind: tuple(lines) for kind, lines in found.items()}


def _entry(name: str, line: int) -> str:
    return f"{name} begins at line {line}"


def _row(context: str, question: str, answers: list[str], origin: str, classes: list[str] | None) -> Row:
    return {
        "input": question,
        "context": context,
        "answers": answers,
        "length": len(context.split()),
        "dataset": origin.rsplit("-", 1)[0],
        "language": "en",
        "all_classes": classes,
        "_id": origin,
    }
