"""Kernels and phases: tables of ``hambench bench kernels`` and ``hambench profile``, if their JSON is given."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hambench.errors import DataError
from hambench.reports.number_text import bytes_text, seconds_text, significant
from hambench.reports.values import Column, Section, Table, number_cell, text_cell

IMPLEMENTATIONS = ("fused", "torch", "compiled")


def kernels_section(kernels: Path | None, profile: Path | None, *, prefix: str = "") -> Section:
    """Shows tables of both files, and a sentence for each missing file.

    Raises:
        DataError: If a file can't be read or is not its command's output.
    """
    tables, missing = [], []
    if kernels is not None:
        tables.append(
            _read(kernels, "hambench bench kernels --out", lambda content: kernels_table(content, prefix))
        )
    else:
        missing.append(
            "Kernel timings belong to a machine rather than a run. `hambench bench kernels --out FOLDER` times each "
            "fused kernel after its numbers agree with its reference; give its JSON with `hambench report --kernels`."
        )
    if profile is not None:
        tables.append(
            _read(profile, "hambench profile --json", lambda content: profile_table(content, prefix))
        )
    else:
        missing.append(
            "Where a token's time goes is measured by `hambench profile --json`; give its output with "
            "`hambench report --profile`."
        )
    return Section(
        name="kernels",
        title="Kernels",
        lead="Each kernel agreed with its reference before it was timed." if kernels is not None else "",
        tables=tuple(tables),
        missing=tuple(missing),
    )


def kernels_table(report: Mapping[str, Any], prefix: str = "") -> Table:
    """Returns one row per operation and number of rows, from the JSON of ``hambench bench kernels``."""
    copy = float(report["ceiling"]["copy"])
    rows = []
    for result in report["results"]:
        seconds = {
            name: statistics.median(result["seconds"][name]) if result["seconds"].get(name) else None
            for name in IMPLEMENTATIONS
        }
        best = seconds["fused"] if seconds["fused"] is not None else seconds["torch"]
        rate = result["num_bytes"] / best if best else None
        fused, plain = seconds["fused"], seconds["torch"]
        rows.append(
            (
                text_cell(result["op"]),
                number_cell(result["rows"], str(result["rows"])),
                text_cell(result["weights"]),
                number_cell(result["error"], None if result["error"] is None else f"{result['error']:.1e}"),
                *(number_cell(seconds[name], seconds_text(seconds[name])) for name in IMPLEMENTATIONS),
                number_cell(None if not fused or plain is None else plain / fused),
                number_cell(rate, None if rate is None else f"{bytes_text(rate)}/s"),
                number_cell(
                    None if rate is None else rate / copy, None if rate is None else f"{rate / copy:.0%}"
                ),
            )
        )
    timed = "" if report["fused_timed"] else " No CUDA device: the fused kernels were not timed."
    return Table(
        name=f"{prefix}kernels",
        caption=f"Shape of {report['shape']} on {report['device']}, {report['dtype']}; measured copy bandwidth "
        f"{bytes_text(copy)}/s.{timed}",
        columns=(
            Column("Operation", numeric=False),
            Column("Rows"),
            Column("Weights", numeric=False),
            Column("Error", "relative, fused"),
            Column("Fused", "median"),
            Column("torch", "median"),
            Column("Compiled", "median"),
            Column("torch / fused", "×"),
            Column("Rate", "bytes/s"),
            Column("MBU", "of copy"),
        ),
        rows=tuple(rows),
    )


def profile_table(profiles: list[Mapping[str, Any]], prefix: str = "") -> Table:
    """Returns one row per method and phase, from the JSON of ``hambench profile``."""
    if not isinstance(profiles, list) or not profiles:
        raise ValueError("a list of profiles, at least one")
    rows = []
    for profile in profiles:
        tokens, wall = profile["num_tokens"], profile["wall_s"]
        for row in profile["rows"]:
            rows.append(
                (
                    text_cell(profile["method"]),
                    text_cell(" › ".join(row["path"])),
                    number_cell(row["seconds"] / tokens, seconds_text(row["seconds"] / tokens)),
                    number_cell(row["seconds"] / wall, f"{row['seconds'] / wall:.1%}"),
                    number_cell(row["calls"] / tokens, significant(row["calls"] / tokens)),
                )
            )
    return Table(
        name=f"{prefix}profile",
        caption="Time in a phase itself, without phases inside it, per decode token. Recording itself costs a little.",
        columns=(
            Column("Method", numeric=False),
            Column("Phase", numeric=False),
            Column("Time", "per token"),
            Column("Share", "of wall time"),
            Column("Calls", "per token"),
        ),
        rows=tuple(rows),
    )


def _read(path: Path, command: str, make: Any) -> Table:
    try:
        table: Table = make(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DataError(f"{path} is not what `{command}` writes: {error!r}") from error
    return table
