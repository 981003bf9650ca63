"""Measured speed against what memory bandwidth allows, from counted forwards and measured bandwidth."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hambench import metrics
from hambench.model_shape import SHAPES, ModelShape
from hambench.records import GenerationTrace
from hambench.reports.labels import Label, place_labels
from hambench.reports.plate import INK, LINE, MUTED, PAGE, Plate, padded, titles
from hambench.reports.values import (
    Column,
    Figure,
    Section,
    Table,
    bytes_text,
    clip,
    listing,
    number_cell,
    significant,
    text_cell,
)
from hambench.reports.view import CellView, View
from hambench.roofline import ByteModel

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Bound:
    """A cell's speed and its ceiling."""

    cell: CellView
    tps: float
    bytes_per_token: float
    ceiling_tps: float

    @property
    def utilisation(self) -> float:
        """MBU: share of the measured bandwidth that the counted bytes take at the measured speed."""
        return self.tps / self.ceiling_tps


def roofline_section(view: View) -> Section:
    """Speed under its ceiling per cell, and predicted against measured speed-up; or the reason for neither."""
    bandwidth, source = measured_bandwidth(view)
    shape = model_shape(view)
    missing = []
    if bandwidth is None:
        missing.append(
            "The run holds no reading of this machine's memory bandwidth, and a ceiling from a data sheet would "
            "flatter or blame the wrong machine."
        )
    if shape is None:
        missing.append(
            "The sizes of this model's layers are not in the run, so its bytes per token are not known."
        )
    figures: list[Figure] = []
    lead = ""
    if bandwidth is not None and shape is not None:
        bounds = [
            bound for cell in view.cells if (bound := bound_of(view, cell, shape, bandwidth)) is not None
        ]
        if bounds:
            figures = [ceiling_figure(view, bounds, bandwidth)]
            if (worth := prediction_figure(view, bounds)) is not None:
                figures.append(worth)
        else:
            missing.append("No cell has a decode speed to hold against the bandwidth.")
        lead = (
            f"Decoding one sequence reads every weight once per forward, so a step takes at least its bytes over the "
            f"bandwidth. Read bandwidth here: {bytes_text(bandwidth)}/s ({source}). Bytes come from counted forwards; "
            "activations, compute and launch gaps are left out: a ceiling, not a forecast."
        )
        high = [bound.cell.label for bound in bounds if bound.utilisation > 1]
        if high:
            missing.append(
                f"{listing(high[:4])} seem{'s' if len(high) == 1 else ''} to pass the ceiling: then weights came from "
                "a cache, or the bandwidth was read while the machine was busy. It is no win."
            )
    return Section(
        name="roofline", title="Roofline", lead=lead, figures=tuple(figures), missing=tuple(missing)
    )


def measured_bandwidth(view: View) -> tuple[float | None, str]:
    """Median of the run's readings in bytes per second, and how they were made."""
    readings = [
        r
        for r in view.run.telemetry
        if r.get("kind") == "bandwidth" and isinstance(r.get("read"), int | float)
    ]
    values = [float(r["read"]) for r in readings if r["read"] > 0]
    if not values:
        return None, ""
    spread = "" if len(values) == 1 else f", from {bytes_text(min(values))}/s to {bytes_text(max(values))}/s"
    return statistics.median(
        values
    ), f"median of {len(values)} reading{'s' * (len(values) > 1)} in this run{spread}"


def model_shape(view: View) -> ModelShape | None:
    """Layer sizes from the run's header, or of a known model by its name."""
    model = view.run.header.model
    return ModelShape.from_scalars(model) or SHAPES.get(str(model.get("name", "")).lower())


def bound_of(view: View, cell: CellView, shape: ModelShape, bandwidth: float) -> Bound | None:
    """A cell's bytes per token and ceiling; ``None`` without a speed."""
    traces = view.traces(cell)
    tps = view.measured(cell).tps
    if tps is None or not traces:
        return None
    if not _counted(traces):
        return None
    spent = bytes_per_token(
        traces, ByteModel(shape=shape, dtype_bytes=DTYPE_BYTES.get(cell.cell.dtype, 2)), cell
    )
    return Bound(cell, tps, spent, bandwidth / spent)


def _counted(traces: Sequence[GenerationTrace]) -> bool:
    """Whether forwards and cache are known: a peer that isn't ours doesn't tell them."""
    return all(
        None not in (step.target_forwards, step.draft_forwards, step.micro_forwards, step.kv_slots)
        for trace in traces
        for step in trace.steps
    )


def bytes_per_token(traces: Sequence[GenerationTrace], sizes: ByteModel, cell: CellView) -> float:
    """Weights and cache read per decode token, from the forwards counted in the traces (all of them known)."""
    total = 0.0
    for trace in traces:
        for before, step in zip(trace.steps, trace.steps[1:], strict=False):
            cache = (before.kv_slots or 0) * sizes.kv_per_slot
            target, draft, micro = (
                step.target_forwards or 0,
                step.draft_forwards or 0,
                step.micro_forwards or 0,
            )
            if cell.method == "hamburger":
                total += target * (sizes.body + sizes.merge + cache)
                total += (target + micro) * (sizes.head + sizes.stop) + micro * sizes.micro
            else:
                total += target * (sizes.step + cache) + draft * (sizes.int8_draft + cache)
    return total / max(1, metrics.num_decode_tokens(traces))


def ceiling_figure(view: View, bounds: Sequence[Bound], bandwidth: float) -> Figure:
    """A bar per cell with its ceiling as a mark."""
    name = f"{view.prefix}roofline-ceiling"
    left = min(3.2, 0.35 + 0.074 * max(len(b.cell.label) for b in bounds))
    plate = Plate(name, width=left + 6.4, height=0.95 + 0.3 * len(bounds), margins=(left, 1.1, 0.55, 0.3))
    ax = plate.axes[0]
    ax.set_xlim(0, max(max(b.ceiling_tps, b.tps) for b in bounds) * 1.04)
    ax.set_ylim(len(bounds) - 0.5, -0.5)
    ax.grid(False, axis="y")
    ax.set_yticks(range(len(bounds)), [clip(b.cell.label, 42) for b in bounds], fontsize=8.5, color=INK)
    for row, b in enumerate(bounds):
        (bar,) = ax.barh(row, b.tps, height=0.6, color=b.cell.style.colour, alpha=0.75, edgecolor=PAGE)
        plate.tag(
            bar,
            tip=f"{b.cell.label}: {b.tps:.1f} tokens/s at {bytes_text(b.bytes_per_token)} a token, "
            f"{b.utilisation:.0%} of the ceiling",
            series=b.cell.series,
        )
        ax.plot([b.ceiling_tps] * 2, [row - 0.42, row + 0.42], color=INK, linewidth=2, solid_capstyle="butt")
        ax.annotate(
            f"{b.utilisation:.0%}",
            (1, row),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            fontsize=8,
            va="center",
            color=INK,
            annotation_clip=False,
        )
    titles(ax, x="decode tokens/s; upright mark: the ceiling; right: share of it reached (MBU)")
    best = max(bounds, key=lambda b: b.utilisation)
    base = next((b for b in bounds if b.cell is view.baseline), None)
    finding = f"{best.cell.label} comes closest to its ceiling: {best.utilisation:.0%}"
    if base is not None and base is not best:
        finding += f"; the baseline reaches {base.utilisation:.0%}"
    return Figure(
        name=name,
        title="Speed under the bandwidth ceiling",
        finding=f"{finding}.",
        plate=plate,
        table=Table(
            name=name,
            caption=f"At {bytes_text(bandwidth)}/s.",
            columns=(
                Column("Cell", numeric=False),
                Column("TPS"),
                Column("Bytes", "per token"),
                Column("Ceiling", "tokens/s"),
                Column("MBU"),
            ),
            rows=tuple(
                (
                    text_cell(b.cell.label),
                    number_cell(b.tps, metric="tps"),
                    number_cell(b.bytes_per_token, bytes_text(b.bytes_per_token)),
                    number_cell(b.ceiling_tps),
                    number_cell(b.utilisation, f"{b.utilisation:.0%}"),
                )
                for b in bounds
            ),
        ),
    )


def prediction_figure(view: View, bounds: Sequence[Bound]) -> Figure | None:
    """Speed-up that bytes alone predict against the measured one; ``None`` without a baseline."""
    base = next((b for b in bounds if b.cell is view.baseline), None)
    points = []
    for b in bounds:
        compared = view.compared(b.cell, "tps")
        if base is not None and compared is not None and compared.effect is not None:
            points.append((b.cell, base.bytes_per_token / b.bytes_per_token, compared.effect.value))
    if not points:
        return None
    name = f"{view.prefix}roofline-predicted"
    plate = Plate(name, width=6.2, height=4.2, margins=(0.55, 0.3, 0.55, 0.4))
    ax = plate.axes[0]
    ax.set_xlim(*padded([1.0, *(x for _, x, _ in points)], share=0.15, floor=0))
    ax.set_ylim(*padded([1.0, *(y for _, _, y in points)], share=0.15, floor=0))
    top = max(ax.get_xlim()[1], ax.get_ylim()[1])
    ax.plot([0, top], [0, top], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    ax.axhline(1, color=LINE, linewidth=1)
    ax.axvline(1, color=LINE, linewidth=1)
    for cell, x, y in points:
        (mark,) = ax.plot(
            [x], [y], marker=cell.style.marker, markersize=7, color=cell.style.colour, linestyle="none"
        )
        plate.tag(
            mark,
            tip=f"{cell.label}: {x:.2f}× from bytes alone, {y:.2f}× measured",
            series=cell.series,
            point=cell.label,
            x=repr(x),
            y=repr(y),
        )
    place_labels(
        plate, ax, [Label(x, y, c.short or c.method, c.series, c.style.colour) for c, x, y in points]
    )
    titles(ax, x="speed-up that bytes alone allow", y="measured speed-up")
    cell, x, y = min(points, key=lambda point: point[2] / point[1])
    return Figure(
        name=name,
        title="Predicted and measured speed-up",
        finding=f"{cell.label} falls furthest short of its bytes: {significant(x)}× allowed, "
        f"{significant(y)}× measured.",
        plate=plate,
        series=tuple(dict.fromkeys((c.series, c.method) for c, _, _ in points)),
        notes=("On the dotted line a method gains what it saves in bytes, relative to the baseline.",),
    )
