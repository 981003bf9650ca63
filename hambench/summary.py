"""A run in short: one object per cell for programs, one table for a terminal."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hambench.groups import ALL
from hambench.metrics import measure_run
from hambench.records import Cell, Measurement, SampleRecord
from hambench.store import Run

BASELINE = "vanilla"


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """How far a cell's answers are the baseline's, token by token."""

    num_samples: int
    """Answers both have."""
    num_identical: int
    first_difference: int | None
    """Smallest token index at which an answer differs; ``None`` when none does."""
    share_before: float | None
    """Tokens before the first difference, as a share of all the baseline's tokens."""


def baseline_cell(cells: Sequence[Cell]) -> Cell | None:
    """What the others are compared with: the first vanilla cell."""
    return next((cell for cell in cells if cell.method == BASELINE), None)


def token_identity(run: Run, cell: str, baseline: str) -> Identity | None:
    """Compares a cell's tokens with the baseline's; ``None`` when they share no answered sample."""
    theirs = {(r.sample_id, r.repeat): r for r in run.measured if r.cell == baseline and r.trace}
    pairs: list[tuple[SampleRecord, SampleRecord]] = [
        (record, theirs[record.sample_id, record.repeat])
        for record in run.measured
        if record.cell == cell and record.trace and (record.sample_id, record.repeat) in theirs
    ]
    if not pairs:
        return None
    firsts = []
    num_before = num_tokens = 0
    for mine, other in pairs:
        assert mine.trace is not None
        assert other.trace is not None
        a, b = mine.trace.token_ids, other.trace.token_ids
        first = first_difference(a, b)
        num_before += len(b) if first is None else first
        num_tokens += len(b)
        if first is not None:
            firsts.append(first)
    return Identity(
        num_samples=len(pairs),
        num_identical=len(pairs) - len(firsts),
        first_difference=min(firsts, default=None),
        share_before=num_before / num_tokens if num_tokens else None,
    )


def first_difference(tokens: Sequence[int], others: Sequence[int]) -> int | None:
    """Index of the first token that differs (the shorter length when one is the other's beginning), or ``None``."""
    for index, (mine, other) in enumerate(zip(tokens, others, strict=False)):
        if mine != other:
            return index
    return None if len(tokens) == len(others) else min(len(tokens), len(others))


def cell_objects(run: Run) -> list[dict[str, Any]]:
    """One JSON-able object per cell: everything measured over all samples. What is not known is ``None``."""
    overall = {m.cell: m for m in measure_run(run) if m.group == ALL}
    baseline = baseline_cell(run.header.cells)
    base_tps = overall[baseline.label].tps if baseline else None
    objects = []
    for cell in run.header.cells:
        measured = overall[cell.label]
        numbers = dataclasses.asdict(measured)
        numbers["m"] = numbers.pop("tokens_per_target_forward")
        identity = token_identity(run, cell.label, baseline.label) if baseline else None
        objects.append(
            {
                "cell": cell.label,
                "method": cell.method,
                "knobs": cell.knobs,
                "model": cell.model,
                "dtype": cell.dtype,
                "regime": cell.regime,
                **{name: value for name, value in numbers.items() if name not in ("cell", "group")},
                "tps_ratio": measured.tps / base_tps if measured.tps and base_tps else None,
                "identity": dataclasses.asdict(identity) if identity else None,
                "edition": run.header.edition,
                "complete": run.complete,
                "run": str(run.path),
            }
        )
    return objects


def to_json_line(item: dict[str, Any]) -> str:
    """Compact JSON; NaN and infinities become null."""
    return msgspec.json.encode(item).decode()


def render_table(run: Run, *, group: str = ALL, width: int = 132) -> str:
    """The run as a table for a terminal, warnings first.

    ``same`` counts the answers that equal vanilla's token by token, over the whole run.
    """
    measured = [m for m in measure_run(run) if m.group == group]
    baseline = baseline_cell(run.header.cells)
    base = next((m for m in measured if baseline and m.cell == baseline.label), None)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    for title in ("tok/s", "× vanilla", "TTFT ms", "TPOT ms", "m", "accept", "KV MiB", "KV out×", "KV all×"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("accuracy [95 %]", justify="right", no_wrap=True)
    table.add_column("same", justify="right", no_wrap=True)
    table.add_column("n", justify="right")
    for measurement in measured:
        identity = token_identity(run, measurement.cell, baseline.label) if baseline else None
        table.add_row(*_row(measurement, base, identity))
    out = io.StringIO()
    console = Console(file=out, width=width, no_color=True, highlight=False)
    for note in run.header.notes:
        console.print(Text(f"! {note}"), soft_wrap=True)
    if not run.complete:
        console.print(Text(f"! Unfinished: {len(run.measured)} of {run.num_expected} records."))
    console.print(table)
    return out.getvalue().rstrip("\n")


def _row(m: Measurement, base: Measurement | None, identity: Identity | None) -> list[Text]:
    ratio = m.tps / base.tps if base and base.tps and m.tps else None
    accuracy = "–"
    if m.accuracy is not None:
        accuracy = f"{m.accuracy.value:.1f}"
        if m.accuracy.low is not None and m.accuracy.high is not None:
            accuracy += f" [{m.accuracy.low:.1f}, {m.accuracy.high:.1f}]"
    count = str(m.num_samples) + (f" (+{m.num_errors} failed)" if m.num_errors else "")
    cells = [
        m.cell,
        _number(m.tps, 1),
        _number(ratio, 2),
        _number(m.ttft_s, 0, 1e3),
        _number(m.tpot_p50_s, 1, 1e3),
        _number(m.tokens_per_target_forward, 2),
        _number(m.acceptance_rate, 2),
        _number(m.kv_bytes, 1, 1 / 2**20),
        _number(m.kv_compression_output, 2),
        _number(m.kv_compression_total, 2),
        accuracy,
        f"{identity.num_identical}/{identity.num_samples}" if identity else "–",
        count,
    ]
    # Text, not str: names may hold brackets, which rich would read as markup
    return [Text(cell) for cell in cells]


def _number(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "–" if value is None or math.isnan(value) else f"{value * scale:.{digits}f}"
