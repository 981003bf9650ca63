"""A cell's costs before its first sample: cold start, warm-up and added weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hambench.analysis.baselines import baseline_of
from hambench.analysis.metrics import Traces, num_decode_tokens
from hambench.records import GenerationTrace
from hambench.store import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class StartUp:
    """One cell before its first sample; none of it is in any statistic."""

    cell: str
    cold_start_s: float | None
    """The method's own warm-up (compiling, capturing) and its first pass; ``None`` where another cell had warmed up the
    same method with all that this one uses."""
    num_passes: int
    settled: bool
    """Whether three passes in a row agreed within 2 % before the bound was reached."""
    extra_weight_bytes: int | None
    """Weights added to the target's; ``None`` in runs that did not store it."""
    shares: str | None
    """The cell that had warmed up the same method with all weights and kinds of cache that this one uses."""
    pays_from_tokens: int | None
    """Length of an answer from which the smaller cache has saved those weights; ``None`` if it never does."""


def start_ups(run: Run) -> dict[str, StartUp]:
    """Reads each cell's start from a run's telemetry; takes the first reading, because later ones are resumes."""
    readings: dict[str, dict[str, Any]] = {}
    for reading in run.telemetry:
        if reading.get("kind") == "warmup":
            readings.setdefault(str(reading["cell"]), reading)
    cells = run.header.cells
    found = {}
    for cell in cells:
        if cell.label not in readings:
            continue
        reading, baseline = readings[cell.label], baseline_of(cell, cells)
        shares = reading.get("shares")
        extra = reading.get("extra_weight_bytes")
        found[cell.label] = StartUp(
            cell=cell.label,
            cold_start_s=None if shares else float(reading["cold_s"]),
            num_passes=len(reading["passes_s"]),
            settled=bool(readings.get(str(shares), reading)["settled"]),
            shares=None if shares is None else str(shares),
            extra_weight_bytes=extra,
            pays_from_tokens=None
            if not extra or baseline is None
            else pays_from(extra, _traces(run, cell.label), _traces(run, baseline.label)),
        )
    return found


def unsettled(run: Run) -> str:
    """Which cells' warm-up did not settle, in a sentence; empty where all did."""
    starts = start_ups(run)
    labels = [start.cell for start in starts.values() if not start.settled]
    if not labels:
        return ""
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return (
        f"warm-up did not settle in {len(labels)} of {len(starts)} cells ({', '.join(labels[:3])}{more}): no three "
        "passes in a row agreed within 2 %, so the machine's own pace varied by more"
    )


def pays_from(extra_bytes: int, candidate: Traces, baseline: Traces) -> int | None:
    """Returns the answer length at which a slower-growing cache has saved ``extra_bytes``.

    Args:
        extra_bytes: Bytes of added weights to repay.
        candidate: Answers of the method that adds them.
        baseline: Answers of the method that it replaces.
    """
    ours, theirs = _growth(candidate), _growth(baseline)
    if ours is None or theirs is None or ours >= theirs:
        return None
    return math.ceil(extra_bytes / (theirs - ours))


def _growth(traces: Traces) -> float | None:
    """Returns the bytes of cache that a decoded token adds."""
    grown = 0
    for trace in traces:
        first, last = trace.steps[0].kv_bytes, trace.steps[-1].kv_bytes
        if first is None or last is None:
            return None
        grown += last - first
    tokens = num_decode_tokens(traces)
    return grown / tokens if tokens else None


def _traces(run: Run, cell: str) -> Sequence[GenerationTrace]:
    return [record.trace for record in run.answered(cell) if record.trace is not None]
