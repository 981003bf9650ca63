"""A suite's own averages, and the floors of its tasks, reach the terminal, the JSON and the report."""

import dataclasses
import json

import pytest
import synthetic
from click.testing import CliRunner

from hambench.analysis.measurements import measure_run
from hambench.analysis.suite_averages import averages_of
from hambench.cli.show import command
from hambench.reports.sections.tables import averages_table, task_table
from hambench.reports.terminal.averages import render_averages, render_bounds
from hambench.reports.view import View
from hambench.store import load_run

FLOOR = {"floor": 20.0, "floor_by": "always x", "ceiling": 100.0}


NAMES = ("lcc", "multifieldqa_en", "passage_retrieval_en", "gov_report")


@pytest.fixture
def folder(tmp_path):
    """A run whose suite says that its benchmark averages by category and by length."""
    plans = {name: {"config": f"longbench/{name}.yaml"} for name in (*NAMES, "qasper")}
    plans["lcc"]["bounds"] = FLOOR
    spec = {"suite": "longbench", "averages": "categories and lengths", "tasks": plans}
    cells = synthetic.cells(confidences=(0.5,))
    options = {"per_task": 4, "error_rate": 0.0, "header_changes": {"suite_spec": spec}}
    return synthetic.write_run(tmp_path / "run", cells, **options)


def test_the_overall_figure_is_the_mean_of_the_categories(folder):
    run = load_run(folder)
    first = averages_of(run)[0]
    points = {
        m.group.split("/")[-1]: m.accuracy.value
        for m in measure_run(run)
        if m.cell == "vanilla" and m.accuracy
    }
    means = {
        "code": points["lcc"],
        "single-doc": points["multifieldqa_en"],
        "synthetic": points["passage_retrieval_en"],
        "summarisation": points["gov_report"],
    }
    assert {each.category: each.points for each in first.average.categories} == pytest.approx(means)
    assert first.average.overall == pytest.approx(sum(means.values()) / 4)
    assert first.average.missing == ("qasper",)
    assert first.corrected == {"lcc": pytest.approx(100 * (points["lcc"] - 20) / 80)}


def test_show_prints_the_averages_and_json_holds_them(folder):
    run = load_run(folder)
    expected = averages_of(run)[0]
    text = CliRunner().invoke(command, [str(folder)], catch_exceptions=False).output
    row = next(line for line in text.split("above chance")[-1].splitlines() if line.startswith("vanilla"))
    assert float(row.split()[1]) == pytest.approx(expected.average.overall, abs=0.05)
    assert "! Not in these means: no points in qasper." in text
    found = CliRunner().invoke(command, [str(folder), "--json"], catch_exceptions=False).output
    first = json.loads(found.splitlines()[0])["benchmark"]
    assert first == json.loads(json.dumps(expected.as_dict()))


def test_a_cell_that_failed_at_a_task_is_not_averaged_like_the_others_in_silence(folder):
    run = load_run(folder)
    lossy = run.header.cells[-1].label
    scores = tuple(
        dataclasses.replace(score, **changed)
        for score in run.scores
        for changed in [
            {"value": float("nan")}
            if score.cell == lossy and "/lcc/" in score.sample_id
            else {"error": "the sandbox died"}
            if score.cell == lossy and score.sample_id.endswith("gov_report/0")
            else {}
        ]
    )
    broken = dataclasses.replace(run, scores=scores)
    own = next(each for each in averages_of(broken) if each.average.cell == lossy)
    assert own.average.missing == ("lcc", "qasper")
    assert own.average.num_failed == 5
    assert own.corrected == {}
    line = f"Not in these means: no points in lcc, qasper; 5 answers without a score ({lossy})."
    assert f"! {line}" in render_averages(broken, width=300)
    assert line in averages_table(View(broken)).caption


def test_show_by_task_says_between_which_points_the_task_can_tell(folder):
    text = CliRunner().invoke(command, [str(folder), "--by", "task"], catch_exceptions=False).output
    assert text.count("floor 20.0 (always x), ceiling 100.0; above chance: vanilla ") == 1
    assert render_bounds(load_run(folder), "task:longbench/gov_report") == ""


def test_the_report_has_both(folder):
    view = View(load_run(folder))
    averages = averages_table(view)
    assert [column.title for column in averages.columns][:2] == ["Cell", "overall"]
    table = task_table(view)
    assert [column.title for column in table.columns][-2:] == ["Floor", "Above chance"]
    by_task = {row[0].text: row[-2].text for row in table.rows}
    assert by_task["longbench/lcc"] == "20.0"
    assert by_task["longbench/gov_report"] != "20.0"


def test_a_suite_that_says_nothing_has_neither(tmp_path):
    run = load_run(synthetic.write_run(tmp_path / "run", per_task=2))
    assert averages_of(run) == ()
    assert render_averages(run) == ""
    assert averages_table(View(run)) is None
    assert not any(column.title == "Floor" for column in task_table(View(run)).columns)
