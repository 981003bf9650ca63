"""Compares measured speed with the limit of memory bandwidth: each cell's bytes, ceiling, and a flag on a mismatch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hambench.analysis.metrics import (
    Traces,
    decode_seconds,
    decode_steps,
    num_decode_tokens,
)
from hambench.errors import HambenchError
from hambench.models.sizes import SHAPES, ModelShape
from hambench.records import BUSY_LOAD, Cell
from hambench.registry import method_config
from hambench.roofline.byte_model import DTYPE_BYTES, ByteModel
from hambench.store import Run

PLAUSIBLE = (0.5, 1.02)
"""Measured over predicted speed that needs no explanation."""

_DRIFT = 1.2
_LOW = "below half of the ceiling"
_MOST_OF_IT = 0.7
"""Share of the idle seconds that one cause must have to be named alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One cell against the machine's memory bandwidth, over all its decode steps."""

    cell: str
    bandwidth: float
    """The run's :attr:`Ceiling.bandwidth`, bytes per second."""
    bytes_per_token: float
    """Weights and cache that the counted forwards had to read, per token kept."""
    predicted_tps: float
    """Tokens per second if those bytes were all that takes time."""
    measured_tps: float
    flag: str = ""
    """Likely reason when measured / predicted is outside :data:`PLAUSIBLE`."""

    @property
    def mbu(self) -> float:
        """Model bandwidth utilisation: bytes that had to be read / seconds / bandwidth = measured / predicted speed."""
        return self.measured_tps / self.predicted_tps


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The read bandwidth to compare a run's speeds with."""

    readings: tuple[float, ...]
    """What the run's probes measured, bytes per second, in order; at least one."""

    @property
    def bandwidth(self) -> float:
        """The best reading, not the mean, because a disturbance can only slow a probe."""
        return max(self.readings)

    @property
    def drift(self) -> float:
        """Ratio of best to worst reading, which shows disturbance or throttling between the probes."""
        return max(self.readings) / min(self.readings)


def ceiling_of(run: Run, part: str = "", threads: int | None = None) -> Ceiling | None:
    """Reads a run's bandwidth probes; ``None`` without one, since a data sheet would describe another machine.

    Args:
        run: The run.
        part: Id of one of several joined runs.
        threads: Those of the judged cell, since one thread can't read what all read; ``None`` takes every probe.
    """
    probes = [
        float(r["read"])
        for r in run.telemetry
        if r.get("kind") == "bandwidth"
        and r.get("read")
        and r.get("run", "") == part
        and (threads is None or r.get("threads") in (None, threads))
    ]
    return Ceiling(tuple(probes)) if probes else None


def shape_of(run: Run) -> ModelShape | None:
    """Returns the sizes of a run's model, from its header or by the name of a known model."""
    model = run.header.model
    return ModelShape.from_scalars(model) or SHAPES.get(str(model.get("name", "")).lower())


def limits_of(run: Run) -> dict[str, Limit]:
    """Returns the limit of each cell that the byte model covers; empty without bandwidth or model sizes."""
    shape = shape_of(run)
    if shape is None:
        return {}
    limits: dict[str, Limit] = {}
    idle: dict[str, float] = {}
    for cell in run.header.cells:
        ceiling = ceiling_of(run, cell.run, cell.threads)
        # a batch reads weights once for several sequences, which the rules of one don't know
        if ceiling is None or cell.batch > 1:
            continue
        records = run.answered(cell.label)
        traces = [record.trace for record in records if record.trace is not None]
        needed = decode_bytes(traces, shape, cell)
        seconds, tokens = decode_seconds(traces), num_decode_tokens(traces)
        if needed is None or not seconds or not tokens:
            continue
        loads = [record.other_load for record in records if record.other_load is not None]
        mbu = needed / seconds / ceiling.bandwidth
        idle[cell.label] = _idle_share(mbu, seconds, traces)
        limits[cell.label] = Limit(
            cell=cell.label,
            bandwidth=ceiling.bandwidth,
            bytes_per_token=needed / tokens,
            predicted_tps=tokens * ceiling.bandwidth / needed,
            measured_tps=tokens / seconds,
            flag=_reason(mbu, ceiling, float(np.mean(loads)) if loads else 0.0),
        )
    for label, limit in limits.items():
        if limit.flag == _LOW:
            told = _told_apart(label, idle, run.header.cells)
            flag = f"{_LOW}: {told}, {idle[label] * 1e3:.2g} ms of each step are no memory traffic"
            limits[label] = dataclasses.replace(limit, flag=flag)
    return limits


def _told_apart(label: str, idle: Mapping[str, float], cells: Sequence[Cell]) -> str:
    """Says what takes the seconds of a step that are not memory traffic, if the cell ran with other threads too.

    Threads share the arithmetic but not the overhead, so fitting A / threads + O to the fewest and the most threads
    separates the two.
    """
    by_label = {cell.label: cell for cell in cells}
    own = by_label[label]
    alike = {
        cell.threads: idle[cell.label]
        for cell in cells
        if cell.label in idle
        and cell.threads is not None
        and dataclasses.replace(cell, label="", threads=None)
        == dataclasses.replace(own, label="", threads=None)
    }
    if own.threads is None or len(alike) < 2:
        return "compute or overhead, not told apart"
    fewest, most = min(alike), max(alike)
    arithmetic = (alike[fewest] - alike[most]) / (1 / fewest - 1 / most) / own.threads
    share = min(max(arithmetic / idle[label], 0.0), 1.0)
    if share >= _MOST_OF_IT:
        return f"compute-bound, since more threads shorten it ({fewest} and {most} were run)"
    if share <= 1 - _MOST_OF_IT:
        return f"overhead-bound, since more threads hardly shorten it ({fewest} and {most} were run)"
    return f"compute and overhead alike, by what {fewest} and {most} threads took"


def decode_bytes(traces: Traces, shape: ModelShape, cell: Cell) -> float | None:
    """Returns the bytes that a cell's decode steps had to read, by its method's own rule.

    Returns ``None`` if the method can't tell: a draft that is another model, counts that a peer does not report, a
    method that is not installed here, weights of another dtype.
    """
    width = DTYPE_BYTES.get(cell.dtype)
    if width is None:
        return None
    sizes = ByteModel(shape=shape, dtype_bytes=width, scale_bytes=width)
    try:
        config = method_config(cell.method).from_knobs(cell.knobs)
    except HambenchError:
        return None
    # runs made before cells kept these sizes: what the method says of the model today
    own_sizes = cell.own_sizes or config.own_sizes(cell.model)
    total = 0.0
    for trace in traces:
        for before, step in itertools.pairwise(trace.steps):
            read = config.bytes_read(step, before, sizes, own_sizes)
            if read is None:
                return None
            total += read
    return total


def _idle_share(mbu: float, seconds: float, traces: Traces) -> float:
    """Returns the seconds per decode step that memory traffic does not explain."""
    return (1 - mbu) * seconds / max(1, sum(1 for _ in decode_steps(traces)))


def _reason(mbu: float, ceiling: Ceiling, load: float) -> str:
    low, high = PLAUSIBLE
    if low <= mbu <= high:
        return ""
    if mbu > high:
        if ceiling.drift > _DRIFT or load > BUSY_LOAD:
            return "faster than the ceiling: the bandwidth probe was disturbed, so the ceiling is too low"
        return "faster than the ceiling: part of the weights stays in a cache, or the ceiling is wrong"
    if load > BUSY_LOAD:
        return f"below half of the ceiling: others took {load:.0%} of the machine"
    return _LOW
