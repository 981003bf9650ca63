"""Speed over batch: each setting against vanilla at its batch, the one to take, and where a method stops paying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hambench.analysis.bandwidth_limit import ceiling_of, shape_of
from hambench.analysis.baselines import is_baseline
from hambench.analysis.measurements import Measurement
from hambench.records import Cell, Comparison, GenerationTrace
from hambench.roofline.batches import SharedWeights
from hambench.roofline.byte_model import ByteModel, tokens_per_second
from hambench.store import Run

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPoint:
    """One setting at one batch."""

    cell: Cell
    setting: str
    """The cell's label without the batch: what the points of one curve share."""
    measured: Measurement
    compared: Comparison | None
    """With vanilla at the same batch; ``None`` for vanilla itself and where there is none."""

    @property
    def batch(self) -> int:
        """Sequences decoded together at most."""
        return self.cell.batch

    @property
    def total_tps(self) -> float | None:
        """Decode tokens per second of all sequences together."""
        return self.measured.tps

    @property
    def user_tps(self) -> float | None:
        """Decode tokens per second of one user."""
        return self.measured.tps if self.batch == 1 else self.measured.user_tps

    @property
    def kv_bytes(self) -> float | None:
        """Most bytes of all caches in use at once; of one answer's at batch 1."""
        return self.measured.kv_bytes if self.batch == 1 else self.measured.batch_kv_bytes

    @property
    def is_baseline(self) -> bool:
        """Whether it is vanilla."""
        return is_baseline(self.cell)

    @property
    def gain(self) -> float | None:
        """Total speed over vanilla's at the same batch."""
        if self.is_baseline:
            return 1.0
        effect = None if self.compared is None else self.compared.effect
        return None if effect is None else effect.value

    @property
    def pays(self) -> bool:
        """Whether it was shown to be faster than vanilla at its batch."""
        return self.compared is not None and self.compared.verdict == "better"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The setting to take at one batch."""

    batch: int
    chosen: BatchPoint
    fastest: BatchPoint
    """The setting of greatest gain; the chosen one is simpler, or the same."""


def batch_points(
    cells: Sequence[Cell], measured: Mapping[str, Measurement], compared: Mapping[str, Comparison]
) -> list[BatchPoint]:
    """Returns the settings that were decoded at several batches, in report order; empty if there are none.

    Args:
        cells: Of the run.
        measured: By cell label, over all samples.
        compared: Comparison of ``tps`` by cell label.
    """
    settings: dict[str, list[Cell]] = {}
    for cell in cells:
        settings.setdefault(setting_of(cell), []).append(cell)
    return [
        BatchPoint(
            cell=cell,
            setting=setting,
            measured=measured[cell.label],
            compared=None if is_baseline(cell) else compared.get(cell.label),
        )
        for setting, alike in settings.items()
        if len({cell.batch for cell in alike}) > 1
        for cell in sorted(alike, key=lambda cell: cell.batch)
        if cell.label in measured
    ]


def setting_of(cell: Cell) -> str:
    """Returns a cell's label without its batch."""
    head, bracket, tail = cell.label.partition("[")
    knobs = [knob for knob in tail.rstrip("]").split(",") if knob and knob != f"batch={cell.batch}"]
    return f"{head}[{','.join(knobs)}]" if bracket and knobs else head


def choices(points: Sequence[BatchPoint]) -> list[Choice]:
    """Returns the setting to take at each batch: the simplest one that is within the interval of the fastest.

    Vanilla is the simplest, then the others in the order of the run. A setting is within it if its own gain lies in the
    fastest one's interval.
    """
    chosen = []
    for batch in sorted({point.batch for point in points}):
        here = [point for point in points if point.batch == batch and point.gain is not None]
        if not here:
            continue
        fastest = max(here, key=lambda point: point.gain or 0.0)
        effect = None if fastest.compared is None else fastest.compared.effect
        low = None if effect is None else effect.low
        # without an interval nobody is shown to be faster than vanilla
        ordered = sorted(here, key=lambda point: not point.is_baseline)
        within = [
            point
            for point in ordered
            if point is fastest
            or (low is None and point.is_baseline)
            or (low is not None and (point.gain or 0.0) >= low)
        ]
        chosen.append(Choice(batch=batch, chosen=within[0], fastest=fastest))
    return chosen


def stops_paying(points: Sequence[BatchPoint]) -> dict[str, int | None]:
    """Returns for each setting the smallest batch from which on it was not shown to be faster than vanilla.

    ``None`` where it still pays at the largest batch. Settings that pay at no batch have the smallest one.
    """
    by_setting: dict[str, list[BatchPoint]] = {}
    for point in points:
        if not point.is_baseline and point.compared is not None:
            by_setting.setdefault(point.setting, []).append(point)
    ends: dict[str, int | None] = {}
    for setting, mine in by_setting.items():
        paying = [point.batch for point in mine if point.pays]
        after = [point.batch for point in mine if not paying or point.batch > max(paying)]
        ends[setting] = min(after) if after else None
    return ends


def predicted_vanilla(
    run: Run, points: Sequence[BatchPoint], traces: Mapping[str, Sequence[GenerationTrace]]
) -> dict[int, float]:
    """Returns what bandwidth allows vanilla in total at each of its batches; empty if sizes or bandwidth are unknown.

    Args:
        run: The run.
        points: Its settings over batches.
        traces: Answers by cell label.
    """
    shape = shape_of(run)
    predicted: dict[int, float] = {}
    for point in points:
        ceiling = ceiling_of(run, point.cell.run)
        width = _DTYPE_BYTES.get(point.cell.dtype)
        slots = [
            step.kv_slots
            for trace in traces.get(point.cell.label, ())
            for step in trace.steps[1:]
            if step.kv_slots is not None
        ]
        if not point.is_baseline or shape is None or ceiling is None or width is None or not slots:
            continue
        sizes = SharedWeights(ByteModel(shape=shape, dtype_bytes=width, scale_bytes=width), point.batch)
        each = sizes.step + sum(slots) / len(slots) * sizes.kv_per_slot
        predicted.setdefault(point.batch, tokens_per_second(each, ceiling.bandwidth))
    return predicted
