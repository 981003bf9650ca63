"""How long the prompts of the long offline tasks are, and where in them the answer stands."""

from __future__ import annotations

TOKENS = (600, 1200, 300, 2400, 600, 1200, 300, 6000)
"""Lengths of prompts in tokens of a small model's tokenizer, about, in turn by row: 1600 on average."""

CHARACTERS_PER_TOKEN = {"prose": 4.2, "code": 4.2, "list": 2.6}
"""Measured with SmolLM2's tokenizer, whose digits are tokens of their own."""

_TURN = 0.618034
"""The golden ratio's fraction: its multiples spread evenly over 0..1 however many are taken."""


def characters(number: int, kind: str) -> int:
    """Characters of the text in row ``number``, of one of the kinds of :data:`CHARACTERS_PER_TOKEN`."""
    return int(TOKENS[number % len(TOKENS)] * CHARACTERS_PER_TOKEN[kind])


def depth(number: int) -> float:
    """Where in the text what is asked for stands, 0 at its beginning to 1 at its end: even over each length's rows."""
    # the rows of one length are len(TOKENS) apart: counting rounds keeps their depths apart as well
    rounds, place = divmod(number, len(TOKENS))
    return (rounds * _TURN + place * _TURN / 2) % 1


def place(number: int, num_items: int) -> int:
    """The index of the item that is asked for among ``num_items``, at :func:`depth`."""
    return min(int(depth(number) * num_items), num_items - 1)
