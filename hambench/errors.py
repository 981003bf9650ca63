"""Errors that a user can mend: caught once in ``hambench.cli.main``, printed as one line, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class HambenchError(Exception):
    """Trouble whose message names what was wrong and what would be right."""


class UnknownNameError(HambenchError):
    """A method, suite, task, model or run that does not exist.

    Args:
        kind: What the name was meant to be, e.g. ``"method"``.
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
    """An input file that can't be used; the message names the file and, where there is one, the line."""


class BadRowsError(DataError):
    """Rows of a file that can't be used, all of them at once.

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
    """A run folder that can't be read or written."""


class FolderTakenError(StoreError):
    """A folder for a new run that holds one already, or that another process writes to."""


class ModelError(HambenchError):
    """A model or checkpoint that can't be loaded."""


class ContextOverflowError(HambenchError):
    """A prompt (plus what is to be generated) that does not fit the model's context."""


class IncompleteError(HambenchError):
    """Nothing was measured, or there is nothing to compare it with: exit code 3, never a pass."""


class NotFiniteError(HambenchError):
    """Logits that are not numbers: no token can be chosen from them, and any answer would be made up.

    Args:
        whose: What computed them, e.g. ``"the model"``.
    """

    def __init__(self, whose: str = "the model") -> None:
        super().__init__(
            f"the logits of {whose} are not finite (NaN or infinity): its weights are damaged, or --dtype float16 "
            "overflows; try --dtype bfloat16 or float32, or fetch the weights again"
        )


def first_line(error: Exception) -> str:
    """The first line of a library's message, or the error's type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    shown = 1
    while lines[shown - 1].endswith(":") and shown < len(lines):
        shown += 1  # what follows a colon is the message
    return " ".join(lines[:shown])[:300]


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def count(number: int, noun: str) -> str:
    """``1 sample``, ``2 samples``, ``12,000 samples``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
