"""A report's tables, figures and sections as plain values, which other modules render."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hambench.reports.number_text import (
    ABSENT,
    significant,
)

if TYPE_CHECKING:
    from hambench.reports.draw.canvas import Canvas


@dataclass(frozen=True, slots=True)
class TableCell:
    """One cell: text for people and a number for programs."""

    text: str
    value: float | str | None = None
    """Sort key and CSV value; ``None`` sorts last."""
    metric: str = ""
    """Name of the metric, if the cell shows one."""
    tone: str = ""
    """``good``, ``bad``, ``warn`` or nothing; never used without a word or symbol."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading, its unit or hint, and whether it contains numbers."""

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
    """Whether the table is independent of a figure."""

    def csv(self) -> str:
        """Returns the table as CSV with unrounded numbers."""
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
    """A drawn figure with its finding in one sentence and the numbers behind it."""

    name: str
    title: str
    finding: str
    """One sentence, computed from the data."""
    canvas: Canvas
    table: Table | None = None
    series: tuple[tuple[str, str], ...] = ()
    """(slug, label) of the series that a reader may hide."""
    notes: tuple[str, ...] = ()
    """Notes on how to read the figure, and on its limits."""


@dataclass(frozen=True, slots=True)
class Section:
    """A page of the report: figures and tables, or the reason why there are none."""

    name: str
    title: str
    lead: str = ""
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    missing: tuple[str, ...] = field(default=())
    """One sentence per missing item, with the reason."""


def text_cell(text: str, *, tone: str = "") -> TableCell:
    """Returns a cell with text."""
    return TableCell(text, text, tone=tone)


def number_cell(
    value: float | None, text: str | None = None, *, metric: str = "", tone: str = ""
) -> TableCell:
    """Returns a cell with a number; shows ``None`` and NaN as missing."""
    if value is None or not math.isfinite(value):
        return TableCell(ABSENT, None, metric, tone)
    return TableCell(significant(value) if text is None else text, value, metric, tone)
