"""Prints an answer step by step, like the paper's figure 1 in plain text."""

from __future__ import annotations

from hambench.records import SampleRecord

_VISIBLE = {"\n": "⏎", "\t": "⇥", "\r": "␍"}


def render_steps(record: SampleRecord) -> str:
    """Returns the answer with bars between steps, and the number of tokens of each longer step.

    It shows control characters as escapes, because model output must not control a terminal.
    """
    if record.trace is None:
        return ""
    pieces = record.step_texts or ("",) * len(record.trace.steps)
    shown = []
    for step, piece in zip(record.trace.steps, pieces, strict=True):
        count = len(step.tokens)
        shown.append(f"{_printable(piece)}{_subscript(count) if count > 1 else ''}")
    total = sum(len(step.tokens) for step in record.trace.steps)
    summary = f"  {total} tokens in {len(record.trace.steps)} steps, ended by {record.trace.finish}"
    return "|".join(shown) + f"\n{summary}"


def _printable(text: str) -> str:
    return "".join(
        _VISIBLE.get(c, c if c.isprintable() else f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}")
        for c in text
    )


def _subscript(number: int) -> str:
    return "".join(chr(0x2080 + int(digit)) for digit in str(number))
