"""Answers that need no understanding, among which the floors of the offline tasks are searched.

A guess may use a position in the prompt (its last line, any of its values) and may count how often something occurs.
It may not compare the prompt with its question, because that would be reading.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]

Guess = Callable[[Row], Sequence[str]]
"""Returns a row's guesses; of several, the mean score counts, as for a random pick."""

MOST = 8
"""Guesses of a kind to score per row; evenly spread ones represent all of them."""


def lines_of_code() -> Mapping[str, Guess]:
    """Returns guesses at the next line of a file."""
    return {
        "the line before again": lambda row: [_lines(row)[-1]],
        "the commonest line": lambda row: [Counter(_lines(row)).most_common(1)[0][0]],
        "any line": lambda row: spread(_lines(row)),
    }


def values_of(pattern: str) -> Mapping[str, Guess]:
    """Returns guesses among the matches of a pattern's first group in the text."""

    def found(row: Row) -> list[str]:
        return re.findall(pattern, row["context"])

    return {
        "any value of the text": lambda row: spread(found(row)),
        "the first value of the text": lambda row: found(row)[:1],
        "the last value of the text": lambda row: found(row)[-1:],
        "the commonest value of the text": lambda row: [Counter(found(row)).most_common(1)[0][0]],
    }


def spread(values: Sequence[str]) -> Sequence[str]:
    """Returns at most eight of ``values``, evenly spread."""
    count = min(len(values), MOST)
    return [values[index * len(values) // count] for index in range(count)]


def _lines(row: Row) -> list[str]:
    return [line for line in f"{row['context']}\n{row['input']}".split("\n") if line.strip()]
