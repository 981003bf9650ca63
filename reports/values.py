"""What a report is made of: tables, figures and sections as plain values, rendered elsewhere."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hambench.reports.page.html_text import printable

if TYPE_CHECKING:
    from hambench.reports.draw.canvas import Plate

ABSENT = "–"
"""Printed where there is nothing to print; never 0."""


@dataclass(frozen=True, slots=True)
class TableCell:
    """One cell: the text a person reads and the number a program does."""

    text: str
    value: float | str | None = None
    """Sort key and CSV value; ``None`` sorts last."""
    metric: str = ""
    """Name of the metric, where the cell shows one."""
    tone: str = ""
    """``good``, ``bad``, ``warn`` or nothing; always beside a word or symbol."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading, its unit or hint, and whether numbers stand in it."""

    title: str
    hint: str = ""
    numeric: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a caption; the first cell of a row is its heading."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    wide: bool = True
    """Whether it stands on its own rather than behind a figure."""

    def csv(self) -> str:
        """The table as CSV, numbers unrounded."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([column.title for column in self.columns])
        for row in self.rows:
            writer.writerow([_csv_value(cell) for cell in row])
        return out.getvalue()


def _csv_value(cell: TableCell) -> float | str:
    if cell.value is not None:
        return cell.value
    return "" if cell.text == ABSENT else cell.text


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawn figure with the sentence that says what it shows and the numbers behind it."""

    name: str
    title: str
    finding: str
    """One sentence, computed from the data."""
    plate: Plate
    table: Table | None = None
    series: tuple[tuple[str, str], ...] = ()
    """(slug, label) of what a reader may switch off."""
    notes: tuple[str, ...] = ()
    """How to read it, and its limits."""


@dataclass(frozen=True, slots=True)
class Section:
    """A page of the report: figures and tables, or the reason why there are none."""

    name: str
    title: str
    lead: str = ""
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    missing: tuple[str, ...] = field(default=())
    """Why something is not here, a sentence each."""


def text_cell(text: str, *, tone: str = "") -> TableCell:
    """A cell of words."""
    return TableCell(text, text, tone=tone)


def number_cell(
    value: float | None, text: str | None = None, *, metric: str = "", tone: str = ""
) -> TableCell:
    """A cell of a number; ``None`` and NaN show as absent."""
    if value is None or not math.isfinite(value):
        return TableCell(ABSENT, None, metric, tone)
    return TableCell(significant(value) if text is None else text, value, metric, tone)


def significant(value: float, digits: int = 3) -> str:
    """A number to so many significant digits, without an exponent and with thin thousands."""
    if not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 6)}f}".replace(",", "\u202f")


def bytes_text(value: float | None) -> str:
    """A size in binary units."""
    if value is None or not math.isfinite(value):
        return ABSENT
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{significant(value)} {unit}"
        value /= 1024
    return f"{significant(value)} TiB"


def seconds_text(value: float | None) -> str:
    """A duration in the unit that suits it."""
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
    """A number with its sign, a true minus, and never "−0.0"."""
    rounded = round(value, digits)
    if rounded == 0:
        return f"{0:.{digits}f}"
    return f"{'+' if rounded > 0 else '−'}{abs(rounded):.{digits}f}"


def ratio_text(ratio: float) -> str:
    """A ratio with two decimals; what two samples leave of an interval is named by its order alone."""
    return "<0.01" if 0 < ratio < 0.005 else ">100" if ratio > 100 else f"{ratio:.2f}"


def slug(text: str) -> str:
    """A name safe in ids, file names and selectors."""
    kept = [char if char.isascii() and char.isalnum() else "-" for char in text.lower()]
    return "-".join(part for part in "".join(kept).split("-") if part) or "x"


def listing(words: Sequence[str], conjunction: str = "and") -> str:
    """Words as in a sentence: ``a, b and c``."""
    if len(words) <= 1:
        return "".join(words)
    return f"{', '.join(words[:-1])} {conjunction} {words[-1]}"


def clip(text: str, length: int) -> str:
    """Text of at most so many characters on one line, nothing in it invisible: for figures and narrow places."""
    text = printable(text).replace("\n", " ")
    return text if len(text) <= length else text[: length - 1] + "…"
