"""Prompt lengths of the long offline tasks, and the depth of the answer in each prompt."""

from __future__ import annotations

TOKENS = (600, 1200, 300, 2400, 600, 1200, 300, 6000)
"""Approximate prompt lengths in tokens of a small model's tokenizer, used in turn by row; 1600 on average."""

CHARACTERS_PER_TOKEN = {"prose": 4.2, "code": 4.2, "list": 2.6}
"""Characters per token by kind of text, measured with SmolLM2's tokenizer (one token per digit)."""

_TURN = 0.618034
"""Fractional part of the golden ratio; any number of its multiples are evenly spread over 0..1."""


def characters(number: int, kind: str) -> int:
    """Returns the text length of row ``number`` in characters, for a kind of :data:`CHARACTERS_PER_TOKEN`."""
    return int(TOKENS[number % len(TOKENS)] * CHARACTERS_PER_TOKEN[kind])


def depth(number: int) -> float:
    """Returns the answer's depth in the text, from 0 (start) to 1 (end), evenly spread over each length's rows."""
    # rows of one length are len(TOKENS) apart, so count rounds to spread their depths as well
    rounds, place = divmod(number, len(TOKENS))
    return (rounds * _TURN + place * _TURN / 2) % 1


def place(number: int, num_items: int) -> int:
    """Returns the index of the item to ask for among ``num_items``, at :func:`depth`."""
    return min(int(depth(number) * num_items), num_items - 1)
