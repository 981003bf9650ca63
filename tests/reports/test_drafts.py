"""The figure of acceptance by place, and variants of a method as curves of their own."""

from __future__ import annotations

import dataclasses

from synthetic import write_run

from hambench.records import Cell, StepRecord
from hambench.reports.sections.pareto_figure import ACCURACY, TPS, pareto_figure
from hambench.reports.sections.steps.drafts import drafts_figure
from hambench.reports.view import View, family_of, view_cells
from hambench.store import Run, load_run


def cell(method: str, label: str, **knobs: int | float | str | bool) -> Cell:
    return Cell(method=method, label=label, knobs=knobs, model="toy", dtype="bfloat16")


VARIANTS = (
    cell("vanilla", "vanilla"),
    cell("speculative", "speculative[c=0.3,k=4]", num_draft_tokens=4, confidence=0.3),
    cell("speculative", "speculative[c=0.6,k=4]", num_draft_tokens=4, confidence=0.6),
    cell(
        "speculative",
        "speculative[c=0.3,accept=relative,k=4]",
        num_draft_tokens=4,
        confidence=0.3,
        accept="relative",
    ),
    cell(
        "speculative",
        "speculative[c=0.6,accept=relative,k=4]",
        num_draft_tokens=4,
        confidence=0.6,
        accept="relative",
    ),
    cell("hamburger", "hamburger[c=0.5]", confidence=0.5),
    cell("hamburger", "hamburger[c=0.9]", confidence=0.9),
    cell("hamburger", "hamburger[c=0.5,verify=true]", confidence=0.5, verify=True),
    cell("hamburger", "hamburger[c=0.9,verify=true]", confidence=0.9, verify=True),
)


def test_a_variant_is_a_curve_of_its_own_with_a_look_and_short_names() -> None:
    views = {view.label: view for view in view_cells(VARIANTS)}
    families = [view.method for view in views.values()]
    assert list(dict.fromkeys(families)) == [
        "vanilla", "speculative", "speculative relaxed", "hamburger", "hamburger verified",
    ]  # fmt: skip
    looks = {(view.method, view.series, view.style.hue, view.style.marker) for view in views.values()}
    # five families, five series, five looks
    assert len(looks) == len({look[2:] for look in looks}) == len({look[1] for look in looks}) == 5
    # what all of a family have is left out of the short name
    assert views["speculative[c=0.6,accept=relative,k=4]"].short == "c=0.6"
    assert views["hamburger[c=0.9,verify=true]"].short == "c=0.9"
    assert views["hamburger[c=0.9,verify=true]"].order == 0.9
    assert not views["hamburger[c=0.9,verify=true]"].control


def test_a_method_that_is_not_installed_has_no_variant() -> None:
    assert family_of(cell("elsewhere", "elsewhere[x=1]", x=1)) == "elsewhere"


def test_the_figure_shows_each_place_of_each_drafting_cell_and_its_limit(run: Run) -> None:
    view = View(run)
    figure = drafts_figure(view)
    assert figure is not None
    drafting = [row[0].text for row in figure.table.rows]
    assert drafting == ["speculative[k=2]", "speculative[k=4]", "prompt_lookup[k=8]"]
    columns = [column.title for column in figure.table.columns]
    four = dict(zip(columns, figure.table.rows[1], strict=True))
    shares = view.measured(view.by_label["speculative[k=4]"]).acceptance_conditional
    for place, share in shares.items():
        assert four[f"Place {place}"].value == share
    # places that a cell never drafts are absent, not 0
    assert four["Place 5"].value is None
    assert "speculative (k=" in figure.finding
    assert ", k = " in figure.finding
    assert "gives most" in figure.finding


def test_too_few_rounds_are_said_to_be_too_few(run: Run) -> None:
    cells = tuple(each for each in run.header.cells if each.method in ("vanilla", "prompt_lookup"))
    rounds = (StepRecord(tokens=(1, 2), seconds=0.02, drafted=2, accepted=1),) * 9
    first = next(r for r in run.records if r.cell == cells[1].label)
    vanilla = [r for r in run.records if r.cell == "vanilla"]
    only = dataclasses.replace(
        first, trace=dataclasses.replace(first.trace, steps=(first.trace.steps[0], *rounds))
    )
    few = dataclasses.replace(
        run, header=dataclasses.replace(run.header, cells=cells), records=(*vanilla, only), scores=()
    )
    figure = drafts_figure(View(few))
    assert figure is not None
    assert figure.finding == "Fewer than 10 rounds drafted: too few to say what limits it."


def test_a_run_without_drafts_has_no_such_figure(tmp_path) -> None:
    cells = tuple(each for each in VARIANTS if each.label in ("vanilla", "hamburger[c=0.5]"))
    assert drafts_figure(View(load_run(write_run(tmp_path / "run", cells, per_task=1)))) is None


def test_an_unknown_cost_is_said(run: Run) -> None:
    # no vanilla cell, so no unit for a cost
    cells = tuple(each for each in run.header.cells if each.method != "vanilla")
    without = dataclasses.replace(run, header=dataclasses.replace(run.header, cells=cells))
    figure = drafts_figure(View(without))
    assert figure is not None
    assert figure.finding.startswith("What drafting costs is unknown")


def test_lines_of_the_pareto_plot_follow_confidence_within_a_variant(tmp_path) -> None:
    view = View(load_run(write_run(tmp_path / "run", VARIANTS, per_task=2)))
    figure = pareto_figure(view, TPS, ACCURACY)
    assert figure is not None
    assert [name for _, name in figure.series] == [
        "vanilla", "speculative", "speculative relaxed", "hamburger", "hamburger verified",
    ]  # fmt: skip
    # one line per family of two confidences, besides points, whiskers and the front
    dashed = [
        line
        for line in figure.canvas.axes[0].get_lines()
        if len(line.get_xdata()) == 2 and line.get_zorder() == 2
    ]
    assert len(dashed) == 4
