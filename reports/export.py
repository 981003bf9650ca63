"""Writes the page, and figures, tables and numbers for papers and other programs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hambench.files import write_bytes, write_text
from hambench.reports.html_text import without_paths
from hambench.reports.options import ReportOptions
from hambench.reports.page import pages
from hambench.reports.page.html import render_html
from hambench.reports.values import Table
from hambench.reports.view import View, merge
from hambench.store import Run

FIGURE_KINDS = ("svg", "png", "pdf")


def write_html(runs: Sequence[Run], path: Path, *, options: ReportOptions | None = None) -> None:
    """Writes the report page atomically.

    Raises:
        HambenchError: If the file can't be written.
    """
    write_text(path, render_html(runs, options=options))


def export(runs: Sequence[Run], folder: Path, *, options: ReportOptions | None = None) -> list[Path]:
    """Writes ``figures/*.svg|png|pdf``, ``tables/*.csv`` and ``report.json``; returns their paths.

    Raises:
        HambenchError: If a file can't be written.
        ValueError: If there are no runs.
    """
    if not runs:
        raise ValueError("runs must contain at least one run, got none")
    merged = merge(runs)
    views = [View(run, prefix=f"r{index}-" if len(merged) > 1 else "") for index, run in enumerate(merged)]
    options = dataclasses.replace(options or ReportOptions(), samples="none")
    written: list[Path] = []
    objects = []
    for view in views:
        page = pages.build(view, options)
        objects.append(report_object(view, page, include_host=options.include_host))
        for figure in page.figures():
            for kind in FIGURE_KINDS:
                content = figure.canvas.file_svg().encode() if kind == "svg" else figure.canvas.raster(kind)
                written.append(_write(folder / "figures" / f"{figure.name}.{kind}", content))
        for table in _tables(page):
            written.append(_write(folder / "tables" / f"{table.name}.csv", table.csv().encode()))
    numbers = msgspec.json.format(msgspec.json.encode(objects), indent=2)
    written.append(_write(folder / "report.json", numbers + b"\n"))
    return written


def report_object(view: View, page: pages.Page, *, include_host: bool = False) -> dict[str, Any]:
    """Returns the report's content as plain values for JSON: cautions, answer, measurements, comparisons."""
    plain: dict[str, Any] = _plain(
        {
            "run_id": view.run.header.run_id,
            "created_at": view.run.header.created_at,
            "edition": view.run.header.edition,
            "model": _told(view.run.header.model, include_host),
            "environment": _told(view.run.header.environment, include_host),
            "complete": view.run.complete,
            "cautions": page.cautions,
            "answer": page.answer,
            "verdicts": [{"cell": v.cell.label, "sentence": v.sentence} for v in page.verdicts],
            "findings": {figure.name: figure.finding for figure in page.figures()},
            "cells": [
                {
                    **_told(dataclasses.asdict(cell), include_host),
                    "knobs": _told(cell.knobs, include_host),
                }
                for cell in view.run.header.cells
            ],
            "measurements": list(view.measurements.values()),
            "comparisons": list(view.comparisons.values()),
        }
    )
    return plain


def _told(values: Mapping[str, Any], include_host: bool) -> dict[str, Any]:
    """Returns facts of the header, with absolute paths cut to their last part unless ``include_host``."""
    return {
        name: without_paths(value) if isinstance(value, str) and not include_host else value
        for name, value in values.items()
    }


def _tables(page: pages.Page) -> Iterable[Table]:
    for section in page.sections:
        yield from section.tables
        yield from (figure.table for figure in section.figures if figure.table is not None)


def _plain(value: Any) -> Any:
    """Returns the value with dataclasses as dicts and without NaN and infinities, which JSON lacks."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write(path: Path, content: bytes) -> Path:
    write_bytes(path, content)
    return path
