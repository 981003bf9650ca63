"""A run as the pages need it: cells with a look and a short name, measurements and comparisons by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hambench.analysis.arms import Arm
from hambench.analysis.baselines import baseline_cell, baseline_of, has_several
from hambench.analysis.cautions.shared_prompts import Key, compared_prefills
from hambench.analysis.fidelity import Divergence, divergences
from hambench.analysis.measurements import Measurement, measure_run, metric_value
from hambench.analysis.pareto import Relation, relation_along
from hambench.analysis.verdicts import Margins
from hambench.errors import HambenchError
from hambench.groups import ALL, group_kind, group_names, group_title, in_group
from hambench.machine.fingerprint import SPEED_KEYS, differences
from hambench.records import Cell, Comparison, Estimate, GenerationTrace, SampleRecord, Score
from hambench.registry import method_config
from hambench.reports.compared import around, compare_with_baseline
from hambench.reports.draw.theme import MethodStyle, method_styles
from hambench.reports.html_text import without_paths
from hambench.store import Run


@dataclass(frozen=True, slots=True)
class CellView:
    """A cell of the sweep with its look in figures."""

    cell: Cell
    style: MethodStyle
    series: str
    """Slug of its method; the cells of a method form one series."""
    short: str
    """Name that distinguishes it within its method, e.g. ``k=4`` or ``0.8``; empty for the only cell."""
    order: float | None
    """Its value on the method's axis, if that is a number."""
    strength: float = 1.0
    """Strength of its line, paler along the method's axis, to distinguish lines of one hue."""
    control: bool = False
    """Whether it is its method's control: the same weights, decoded without the method."""

    @property
    def label(self) -> str:
        """Display name, unique within the run."""
        return self.cell.label

    @property
    def method(self) -> str:
        """Name of its method, with a word for a variant of its own curve: ``hamburger verified``."""
        return family_of(self.cell)


@dataclass(frozen=True)
class View:
    """A run and the values derived from it that several pages show."""

    run: Run
    prefix: str = ""
    """Prefix of ids, if one page shows several runs."""

    @property
    def model_name(self) -> str:
        """Name of the model for sentences; only the last part of a folder."""
        return without_paths(str(self.run.header.model.get("name") or "this model"))

    @cached_property
    def cells(self) -> tuple[CellView, ...]:
        """Cells in report order."""
        return view_cells(self.run.header.cells)

    @cached_property
    def by_label(self) -> dict[str, CellView]:
        """Cells by label."""
        return {view.label: view for view in self.cells}

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Method names in report order, variants apart."""
        return tuple(dict.fromkeys(view.method for view in self.cells))

    @cached_property
    def groups(self) -> list[str]:
        """Groups of samples, widest first."""
        return group_names(self.run.samples.values())

    @cached_property
    def tasks(self) -> list[str]:
        """Groups that consist of one task."""
        return [group for group in self.groups if group_kind(group) == "task"]

    @cached_property
    def categories(self) -> list[str]:
        """Groups that consist of one category."""
        return [group for group in self.groups if group_kind(group) == "category"]

    @cached_property
    def wider_categories(self) -> list[str]:
        """Categories, where they are several and not the tasks under another name; else none."""
        same = {group_title(group) for group in self.categories} == {
            group_title(group) for group in self.tasks
        }
        return [] if same or len(self.categories) < 2 else self.categories

    @cached_property
    def turns(self) -> list[str]:
        """Groups that are one turn of the conversations."""
        return [group for group in self.groups if group_kind(group) == "turn"]

    @cached_property
    def baseline(self) -> CellView | None:
        """The first vanilla cell, the baseline of all others unless conditions vary or runs are joined."""
        first = baseline_cell(self.run.header.cells)
        return None if first is None else self.by_label[first.label]

    def baseline_of(self, view: CellView) -> CellView | None:
        """Returns a cell's baseline: vanilla under the same conditions, or itself for the first vanilla cell."""
        own = baseline_of(view.cell, self.run.header.cells)
        return None if own is None else self.by_label[own.label]

    def is_baseline(self, view: CellView) -> bool:
        """Returns whether a cell is its own baseline, i.e. the first vanilla cell of its run."""
        return self.baseline_of(view) is view

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """Each cell's answers for comparisons, by cell label."""
        return {view.label: Arm.of(self.run, view.label) for view in self.cells}

    def relation(self, metric: str, group: str) -> Relation:
        """Returns verdicts on each pair of cells along one metric, cached for several plots."""
        if (metric, group) not in self._relations:
            self._relations[metric, group] = relation_along(
                self.arms,
                self.run.samples,
                metric,
                group=group,
                margins=Margins.of(self.run),
                runs={view.label: view.cell.run for view in self.cells},
            )
        return self._relations[metric, group]

    @cached_property
    def _relations(self) -> dict[tuple[str, str], Relation]:
        return {}

    @cached_property
    def several_baselines(self) -> bool:
        """Whether ratios must name their baseline."""
        return has_several(self.run.header.cells)

    @cached_property
    def measurements(self) -> dict[tuple[str, str], Measurement]:
        """Measurements by (cell label, group)."""
        return {(m.cell, m.group): m for m in measure_run(self.run)}

    def measured(self, view: CellView, group: str = ALL) -> Measurement:
        """Returns a cell's measurement over a group."""
        return self.measurements[view.label, group]

    @cached_property
    def comparisons(self) -> dict[tuple[str, str, str], Comparison]:
        """Comparisons with the baseline by (cell label, group, metric); empty without a baseline."""
        return compare_with_baseline(self)

    def compared(self, view: CellView, metric: str, group: str = ALL) -> Comparison | None:
        """Returns the comparison of a cell with its baseline in one metric."""
        return self.comparisons.get((view.label, group, metric))

    def estimate(self, view: CellView, metric: str, group: str = ALL) -> Estimate | None:
        """Returns one metric of a cell with the interval of its paired comparison; ``None`` without a number.

        The baseline has no interval, because the others' intervals describe their difference from it.
        """
        value = metric_value(self.measured(view, group), metric)
        if value is None:
            return None
        comparison = self.compared(view, metric, group)
        return Estimate(value=float(value)) if comparison is None else around(float(value), comparison)

    @cached_property
    def records(self) -> dict[str, list[SampleRecord]]:
        """Answered, measured records by cell label."""
        found: dict[str, list[SampleRecord]] = {view.label: [] for view in self.cells}
        for record in self.run.measured:
            if record.trace is not None and record.cell in found:
                found[record.cell].append(record)
        return found

    def traces(self, view: CellView, group: str = ALL) -> list[GenerationTrace]:
        """Returns the answered traces of a cell over a group."""
        samples = self.run.samples
        return [
            record.trace
            for record in self.records[view.label]
            if record.trace is not None
            and record.sample_id in samples
            and in_group(samples[record.sample_id], group)
        ]

    @cached_property
    def compared_prefills(self) -> dict[str, frozenset[Key]]:
        """Answers whose prefill times compare with other cells', by cell label."""
        return compared_prefills(self.run)

    @cached_property
    def primary_scores(self) -> dict[tuple[str, str, int], Score]:
        """Headline score by (cell label, sample id, repeat)."""
        return {(s.cell, s.sample_id, s.repeat): s for s in self.run.scores if s.primary}

    @cached_property
    def divergences(self) -> dict[tuple[str, str, int], Divergence]:
        """First differences from the baseline and the target's judgement there, by cell label, sample id and repeat.

        Empty unless the run was judged.
        """
        return divergences(self.run)


def view_cells(cells: Sequence[Cell]) -> tuple[CellView, ...]:
    """Returns the cells with their looks and short names."""
    families = {cell.label: family_of(cell) for cell in cells}
    styles = method_styles(list(families.values()))
    axes = {name: _axis([c for c in cells if families[c.label] == name]) for name in styles}
    views = []
    for cell in cells:
        family = families[cell.label]
        axis = axes[family]
        value = cell.knobs.get(axis) if axis else None
        order = float(value) if isinstance(value, int | float) else None
        views.append(
            CellView(
                cell=cell,
                style=styles[family],
                series=f"m{list(styles).index(family)}",
                short=_short(cell, [other for other in cells if families[other.label] == family]),
                order=order,
                strength=_strength(cell, [other for other in cells if families[other.label] == family]),
                control=is_control(cell),
            )
        )
    return tuple(views)


def family_of(cell: Cell) -> str:
    """Returns the method's name, with the word of the variant that the cell's setting belongs to."""
    try:
        variant = method_config(cell.method).from_knobs(cell.knobs).variant
    except HambenchError:
        variant = ""
    return f"{cell.method} {variant}".rstrip()


def _strength(cell: Cell, family: Sequence[Cell]) -> float:
    """Returns a strength from 1 for the first of a family's cells to 0.4 for its last."""
    mine = [other.label for other in family]
    return 1 - 0.6 * mine.index(cell.label) / max(1, len(mine) - 1)


def is_control(cell: Cell) -> bool:
    """Returns whether the cell is its method's control; false for a method that is not installed."""
    try:
        return method_config(cell.method).from_knobs(cell.knobs).is_control
    except HambenchError:
        return False


def merge(runs: Sequence[Run]) -> list[Run]:
    """Merges runs that may share a plot.

    Runs share a plot if model, samples, sampling and every environment key that affects speed agree. A label that
    occurs twice gets its run's id. Cells and readings keep their original run, so that speeds are divided within a run.
    """
    merged: list[list[Run]] = []
    for run in runs:
        for members in merged:
            if _comparable(members[0], run):
                members.append(run)
                break
        else:
            merged.append([run])
    return [members[0] if len(members) == 1 else _join(members) for members in merged]


def _comparable(a: Run, b: Run) -> bool:
    one, two = a.header, b.header
    return (
        one.model.get("sha256") == two.model.get("sha256")
        and one.model.get("name") == two.model.get("name")
        and one.data_hashes == two.data_hashes
        # of a budget's samples the clock decides how many there are
        and a.samples.keys() == b.samples.keys()
        and (one.temperature, one.top_p, one.seed) == (two.temperature, two.top_p, two.seed)
        and one.max_new_tokens == two.max_new_tokens
        and (one.ignore_eos, one.think_end) == (two.ignore_eos, two.think_end)
        and not differences(one.environment, two.environment, SPEED_KEYS)
    )


def _join(runs: Sequence[Run]) -> Run:
    labels = [cell.label for run in runs for cell in run.header.cells]
    cells: list[Cell] = []
    records: list[SampleRecord] = []
    scores: list[Score] = []
    telemetry: list[dict[str, Any]] = []
    for run in runs:
        names = {
            cell.label: f"{cell.label} @{run.header.run_id}" if labels.count(cell.label) > 1 else cell.label
            for cell in run.header.cells
        }
        identity = run.header.run_id
        cells += [replace(cell, label=names[cell.label], run=identity) for cell in run.header.cells]
        for reading in run.telemetry:
            renamed = {"cell": names.get(reading["cell"], reading["cell"])} if "cell" in reading else {}
            telemetry.append({**reading, **renamed, "run": identity})
        records += [replace(record, cell=names.get(record.cell, record.cell)) for record in run.records]
        scores += [replace(score, cell=names.get(score.cell, score.cell)) for score in run.scores]
    first = runs[0].header
    notes = dict.fromkeys(note for run in runs for note in run.header.notes)
    header = replace(
        first,
        run_id=" + ".join(run.header.run_id for run in runs),
        cells=tuple(cells),
        notes=tuple(notes),
        num_samples=len({sample for run in runs for sample in run.samples}),
    )
    samples = {key: sample for run in runs for key, sample in run.samples.items()}
    fidelity = {key: item for run in runs for key, item in run.fidelity.items()}
    return Run(runs[0].path, header, samples, tuple(records), tuple(scores), tuple(telemetry), fidelity)


def _axis(cells: Sequence[Cell]) -> str | None:
    """Returns the numeric knob that differs between the cells of a method, if exactly one does."""
    varying = [
        name
        for name in cells[0].knobs
        if len({repr(cell.knobs.get(name)) for cell in cells}) > 1
        and all(isinstance(cell.knobs.get(name), int | float) for cell in cells)
    ]
    return varying[0] if len(varying) == 1 else None


def _short(cell: Cell, family: Sequence[Cell]) -> str:
    if len(family) == 1:
        return ""
    common = set.intersection(*(set(_knob_texts(other)) for other in family))
    text = ",".join(part for part in _knob_texts(cell) if part not in common) or _inside(cell)
    return text.replace("confidence=", "") or cell.label


def _inside(cell: Cell) -> str:
    inside = cell.label.partition("[")[2]
    return inside.replace("]", "", 1) if inside else cell.label.removeprefix(cell.method)


def _knob_texts(cell: Cell) -> list[str]:
    return _inside(cell).split(",")
