"""Speed over batch: each setting against vanilla at its batch, the one to take, and where a method stops paying."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hambench.analysis.bandwidth_limit import ceiling_of, shape_of
from hambench.analysis.baselines import is_baseline
from hambench.analysis.comparisons import compare_cells
from hambench.analysis.fidelity import Identity, token_identity
from hambench.analysis.measurements import Measurement
from hambench.groups import ALL
from hambench.records import Cell, Comparison, Estimate, GenerationTrace
from hambench.roofline.byte_model import DTYPE_BYTES, ByteModel
from hambench.store import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPoint:
    """One setting at one batch."""

    cell: Cell
    setting: str
    """The cell's label without the batch: what the points of one curve share."""
    measured: Measurement
    compared: Comparison | None
    """With vanilla under the same conditions; ``None`` for vanilla itself and where there is none."""

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
        """Most bytes of all caches in use at once, also during a step; of one answer's at batch 1."""
        return self.measured.batch_kv_bytes

    @property
    def is_baseline(self) -> bool:
        """Whether it is vanilla."""
        return is_baseline(self.cell)

    @property
    def gain(self) -> float | None:
        """Total speed over vanilla's at the same batch; ``None`` where the two are not comparable."""
        if self.is_baseline:
            return 1.0
        return None if self.effect is None else self.effect.value

    @property
    def effect(self) -> Estimate | None:
        """The gain with its interval; ``None`` for vanilla and where there is no gain."""
        if self.compared is None or self.compared.verdict == "not comparable":
            return None
        return self.compared.effect

    @property
    def pays(self) -> bool:
        """Whether it was shown to be faster than vanilla at its batch."""
        return self.compared is not None and self.compared.verdict == "better"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The setting to take at one batch."""

    batch: int
    chosen: BatchPoint
    rivals: tuple[BatchPoint, ...]
    """Settings of greater gain that are not taken, the greatest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How much more a setting yields in total at its largest batch than at its smallest."""

    setting: str
    smallest: int
    largest: int
    ratio: Estimate
    """Paired by sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What memory bandwidth allows vanilla at one batch, in decode tokens per second."""

    batch: int
    total_tps: float
    user_tps: float


def batch_points(
    cells: Sequence[Cell], measured: Mapping[str, Measurement], compared: Mapping[str, Comparison]
) -> list[BatchPoint]:
    """Returns the settings that were decoded at several batches, in report order; empty if there are none.

    Cells of different runs are never points of one curve.

    Args:
        cells: Of the run.
        measured: By cell label, over all samples.
        compared: Comparison of ``tps`` by cell label. One with vanilla under other conditions is left out.
    """
    by_label = {cell.label: cell for cell in cells}
    curves: dict[str, list[Cell]] = {}
    for cell in cells:
        without_batch = dataclasses.replace(cell, label="", batch=1, own_sizes={})
        curves.setdefault(repr(without_batch), []).append(cell)
    several = [alike for alike in curves.values() if len({cell.batch for cell in alike}) > 1]
    names = [setting_of(alike[0]) for alike in several]
    points = []
    for name, alike in zip(names, several, strict=True):
        for cell in sorted(alike, key=lambda cell: cell.batch):
            comparison = compared.get(cell.label)
            base = None if comparison is None else by_label.get(comparison.baseline)
            is_own = base is not None and base.conditions == cell.conditions and not is_baseline(cell)
            if cell.label in measured:
                points.append(
                    BatchPoint(
                        cell=cell,
                        setting=name if names.count(name) == 1 else f"{name} @{cell.run}",
                        measured=measured[cell.label],
                        compared=comparison if is_own else None,
                    )
                )
    return points


def setting_of(cell: Cell) -> str:
    """Returns a cell's label without its batch, and without its run where a report joins several."""
    label = cell.label.removesuffix(f" @{cell.run}") if cell.run else cell.label
    head, bracket, tail = label.partition("[")
    inside, end, rest = tail.rpartition("]")
    if not bracket or not end:
        return label
    knobs = [knob for knob in inside.split(",") if knob and knob != f"batch={cell.batch}"]
    return f"{head}[{','.join(knobs)}]{rest}" if knobs else f"{head}{rest}"


def choices(points: Sequence[BatchPoint], safe: Collection[str]) -> list[Choice]:
    """Returns the setting to take at each batch (and under each other condition, if several were run).

    It is the simplest within the interval of the fastest one, out of vanilla and the settings that were shown to be
    faster and whose answers may replace vanilla's. Vanilla is the simplest, then the others in the order of the run. A
    setting is within the interval if its own gain lies in it. There is no choice where vanilla was not run.

    Args:
        points: Settings over batches.
        safe: Labels of the cells whose answers may replace vanilla's.
    """
    together: dict[tuple[object, ...], list[BatchPoint]] = {}
    for point in sorted(points, key=lambda point: point.batch):
        together.setdefault(point.cell.conditions, []).append(point)
    chosen = []
    for here in together.values():
        vanilla = next((point for point in here if point.is_baseline), None)
        if vanilla is None:
            continue
        candidates = [vanilla, *(point for point in here if point.pays and point.cell.label in safe)]
        fastest = max(candidates, key=lambda point: point.gain or 0.0)
        low = None if fastest.effect is None else fastest.effect.low
        best = next(
            point
            for point in candidates
            if point is fastest or (low is not None and (point.gain or 0.0) >= low)
        )
        rivals = [point for point in here if (point.gain or 0.0) > (best.gain or 0.0)]
        ordered = sorted(rivals, key=lambda point: -(point.gain or 0.0))
        chosen.append(Choice(batch=best.batch, chosen=best, rivals=tuple(ordered)))
    return chosen


def growths(run: Run, points: Sequence[BatchPoint]) -> list[Growth]:
    """Returns how the total of each vanilla setting grows from its smallest to its largest batch, paired by sample.

    Args:
        run: The run.
        points: Its settings over batches.
    """
    grown = []
    for setting in dict.fromkeys(point.setting for point in points if point.is_baseline):
        mine = [point for point in points if point.setting == setting]
        first, last = mine[0], mine[-1]
        if first.batch == last.batch:
            continue
        (row,) = compare_cells(run, last.cell.label, first.cell.label, metrics=("tps",), groups=(ALL,))
        if row.effect is not None and row.verdict != "not comparable":
            grown.append(Growth(setting=setting, smallest=first.batch, largest=last.batch, ratio=row.effect))
    return grown


def identities(run: Run, points: Sequence[BatchPoint]) -> dict[str, Identity]:
    """Returns by cell label how many answers are those of the same setting at batch 1, token by token.

    Args:
        run: The run.
        points: Its settings over batches.
    """
    alone = {point.setting: point.cell.label for point in points if point.batch == 1}
    return {
        point.cell.label: identity
        for point in points
        if point.batch > 1
        and point.setting in alone
        and (identity := token_identity(run, point.cell.label, alone[point.setting])) is not None
    }


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
) -> dict[str, list[Allowance]]:
    """Returns what bandwidth allows each vanilla setting at each batch; empty if sizes or bandwidth are unknown.

    A step reads its part of the weights, which the sequences of its round share, and its own cache. A user waits for
    what the whole round reads. Bandwidth is that of the probes with the cell's number of threads.

    Args:
        run: The run.
        points: Its settings over batches.
        traces: Answers by cell label.
    """
    shape = shape_of(run)
    allowed: dict[str, list[Allowance]] = {}
    for point in points:
        ceiling = ceiling_of(run, point.cell.run, point.cell.threads)
        width = DTYPE_BYTES.get(point.cell.dtype)
        if not point.is_baseline or shape is None or ceiling is None or width is None:
            continue
        weights = ByteModel(shape=shape, dtype_bytes=width, scale_bytes=width).step
        steps = [step for trace in traces.get(point.cell.label, ()) for step in trace.steps[1:]]
        known = [(step, step.in_round or 1, step.kv_bytes) for step in steps if step.kv_bytes is not None]
        if not known or len(known) < len(steps):
            continue
        num_tokens = sum(len(step.tokens) for step in steps)
        read = sum(weights / together + kv_bytes for _, together, kv_bytes in known)
        waited = sum(weights + together * kv_bytes for _, together, kv_bytes in known)
        allowed.setdefault(point.setting, []).append(
            Allowance(
                batch=point.batch,
                total_tps=num_tokens * ceiling.bandwidth / read,
                user_tps=num_tokens * ceiling.bandwidth / waited,
            )
        )
    return allowed
