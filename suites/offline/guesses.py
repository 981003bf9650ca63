"""Answers that need no understanding: what the floors of the offline tasks are searched among.

A guess may take a place in the prompt (its last line, any one of the values it lists), and may count how often
something occurs. It may not compare the prompt with its question: that would be reading.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]

Guess = Callable[[Row], Sequence[str]]
"""A row's guesses; where there are several, their mean score counts, as that of a random one."""

MOST = 8
"""Guesses of a kind that are scored per row: evenly spread ones stand for all of them."""


def lines_of_code() -> Mapping[str, Guess]:
    """Guesses at the next line of a file."""
    return {
        "the line before again": lambda row: [_lines(row)[-1]],
        "the commonest line": lambda row: [Counter(_lines(row)).most_common(1)[0][0]],
        "any line": lambda row: spread(_lines(row)),
    }


def values_of(pattern: str) -> Mapping[str, Guess]:
    """Guesses among what a pattern's first group finds in the text."""

    def found(row: Row) -> list[str]:
        return re.findall(pattern, row["context"])

    return {
        "any value of the text": lambda row: spread(found(row)),
        "the first value of the text": lambda row: found(row)[:1],
        "the last value of the text": lambda row: found(row)[-1:],
        "the commonest value of the text": lambda row: [Counter(found(row)).most_common(1)[0][0]],
    }


def spread(values: Sequence[str]) -> Sequence[str]:
    """At most eight of ``values``, evenly spread."""
    count = min(len(values), MOST)
    return [values[index * len(values) // count] for index in range(count)]


def _lines(row: Row) -> list[str]:
    return [line for line in f"{row['context']}\n{row['input']}".split("\n") if line.strip()]
