"""Short functions to complete, each after others like it, in HumanEval's schema."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]

_PARAMETERS_TEXT = "price weight length speed score width count total depth angle"
_PARAMETERS = tuple(_PARAMETERS_TEXT.split())
_NUMBERS = range(3, 60)

_OPERATIONS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "plus": ("+", lambda value, number: value + number),
    "minus": ("-", lambda value, number: value - number),
    "times": ("*", lambda value, number: value * number),
    "modulo": ("%", lambda value, number: value % number),
}
_TRIED = (0, 1, 7, 100, 1234)


def next_function(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Builds rows that ask for the body of a function of one line, after one function of each of four operations.

    No two rows have the same body, so that a program which passes one of them passes no other.
    """
    rows = []
    every = [(word, name, number) for word in _OPERATIONS for name in _PARAMETERS for number in _NUMBERS]
    asked = random.Random(f"functions {seed}").sample(every, len(every))
    for number in range(num_rows):
        rng = random.Random(f"function {seed} {number}")
        word, name, value = asked[number]
        others = [
            (each, rng.choice([p for p in _PARAMETERS if p != name]), rng.choice(_NUMBERS))
            for each in rng.sample(list(_OPERATIONS), len(_OPERATIONS))
        ]
        shown = "\n\n".join(f"{_head(*other)}\n    {_body(*other)}" for other in others)
        function = _OPERATIONS[word][1]
        checks = "".join(f"    assert candidate({given}) == {function(given, value)}\n" for given in _TRIED)
        rows.append(
            {
                "task_id": f"next-function/{number}",
                # one blank less than the indentation, because tokenizers join the last one with the following word
                "prompt": f"{shown}\n\n{_head(word, name, value)}\n   ",
                "canonical_solution": f" {_body(word, name, value)}\n",
                "test": f"def check(candidate):\n{checks}",
                "entry_point": f"{name}_{word}_{value}",
            }
        )
    return rows


def _head(word: str, name: str, number: int) -> str:
    return f'def {name}_{word}_{number}({name}):\n    """Return {name} {word} {number}."""'


def _body(word: str, name: str, number: int) -> str:
    return f"return {name} {_OPERATIONS[word][0]} {number}"
