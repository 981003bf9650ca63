"""Errors that a user can fix; ``hambench.cli.main`` catches them, prints one line and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class HambenchError(Exception):
    """An error whose message names the argument, its value and the fix."""


class UnknownNameError(HambenchError):
    """Raised for a method, suite, task, model or run that does not exist.

    Args:
        kind: Kind of the name, e.g. ``"method"``.
        name: The name as given.
        known: The names that exist.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        choices = sorted(known)
        close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
        hint = (
            f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(choices) or 'none'}"
        )
        super().__init__(f"unknown {kind} {name!r}{hint}")
        self.kind, self.name, self.known = kind, name, tuple(choices)


class DataError(HambenchError):
    """Raised for an invalid input file; the message names the file and, if possible, the line."""


class BadRowsError(DataError):
    """Raised for all invalid rows of a file together.

    Args:
        path: The file.
        problems: One line per row, with its place and the fix.
    """

    def __init__(self, path: str, problems: Sequence[str]) -> None:
        count = "1 row" if len(problems) == 1 else f"{len(problems)} rows"
        shown = problems[: self.MOST_SHOWN]
        rest = len(problems) - len(shown)
        self.lines = (
            f"{path}: {count} can't be asked; nothing was run",
            *shown,
            *([f"… and {rest} more"] if rest else []),
        )
        super().__init__("\n".join(self.lines))

    MOST_SHOWN = 50


class StoreError(HambenchError):
    """Raised if a run folder can't be read or written."""


class FolderTakenError(StoreError):
    """Raised if the folder of a new run already contains one, or if another process writes to it."""


class ModelError(HambenchError):
    """Raised if a model or checkpoint can't be loaded."""


class ContextOverflowError(HambenchError):
    """Raised if a prompt plus the tokens to generate exceed the model's context."""


class IncompleteError(HambenchError):
    """Raised if nothing was measured or there is nothing to compare with (exit code 3, never a pass)."""


class NotFiniteError(HambenchError):
    """Raised for logits that are not finite, from which no token can be chosen.

    Args:
        whose: The part that computed them, e.g. ``"the model"``.
    """

    def __init__(self, whose: str = "the model") -> None:
        super().__init__(
            f"the logits of {whose} are not finite (NaN or infinity): its weights are damaged, or --dtype float16 "
            "overflows; try --dtype bfloat16 or float32, or fetch the weights again"
        )


def first_line(error: Exception) -> str:
    """Returns the first line of a library's message, or the error's type if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    shown = 1
    while lines[shown - 1].endswith(":") and shown < len(lines):
        shown += 1  # the message follows a colon
    return " ".join(lines[:shown])[:300]


def listed(names: Sequence[str], most: int = 3) -> str:
    """Lists the first names and the number of further ones."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def count(number: int, noun: str) -> str:
    """Formats a count with its noun: ``1 sample``, ``2 samples``, ``12,000 samples``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
