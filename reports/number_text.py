"""Formats numbers and lists for text: significant digits, bytes, seconds, ratios, enumerations."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hambench.reports.html_text import printable


def significant(value: float, digits: int = 3) -> str:
    """Formats a number to ``digits`` significant digits, without exponent and with thin spaces at thousands."""
    if not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 6)}f}".replace(",", "\u202f")


def bytes_text(value: float | None) -> str:
    """Formats a size in binary units."""
    if value is None or not math.isfinite(value):
        return ABSENT
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{significant(value)} {unit}"
        value /= 1024
    return f"{significant(value)} TiB"


def seconds_text(value: float | None) -> str:
    """Formats a duration in a suitable unit."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if abs(value) < 1e-3:
        return f"{significant(value * 1e6)} µs"
    if abs(value) < 1:
        return f"{significant(value * 1e3)} ms"
    if abs(value) < 120:
        return f"{significant(value)} s"
    return f"{int(value // 60)} min {int(value % 60)} s"


def signed(value: float, digits: int = 1) -> str:
    """Formats a number with its sign, a true minus, and never "−0.0"."""
    rounded = round(value, digits)
    if rounded == 0:
        return f"{0:.{digits}f}"
    return f"{'+' if rounded > 0 else '−'}{abs(rounded):.{digits}f}"


def ratio_text(ratio: float) -> str:
    """Formats a ratio with two decimals; extreme ends of an interval become "<0.01" or ">100"."""
    return "<0.01" if 0 < ratio < 0.005 else ">100" if ratio > 100 else f"{ratio:.2f}"


def slug(text: str) -> str:
    """Returns a name that is safe in ids, file names and selectors."""
    kept = [char if char.isascii() and char.isalnum() else "-" for char in text.lower()]
    return "-".join(part for part in "".join(kept).split("-") if part) or "x"


def listing(words: Sequence[str], conjunction: str = "and") -> str:
    """Joins words as in a sentence: ``a, b and c``."""
    if len(words) <= 1:
        return "".join(words)
    return f"{', '.join(words[:-1])} {conjunction} {words[-1]}"


def clip(text: str, length: int) -> str:
    """Returns one line of at most ``length`` visible characters, for figures and narrow places."""
    text = printable(text).replace("\n", " ")
    return text if len(text) <= length else text[: length - 1] + "…"


ABSENT = "–"
"""Shown instead of a missing value, which is never shown as 0."""
