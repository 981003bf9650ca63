"""Reports of one's own prompts: categories and turns wherever tasks are, no word about accuracy that nobody asked."""

import dataclasses
import json

import pytest
import synthetic
from click.testing import CliRunner

from hambench.cli.show import command
from hambench.groups import group_title
from hambench.reports.page.cautions import cautions
from hambench.reports.page.verdict_words import answer
from hambench.reports.sections.pareto_page import pareto_section, small_multiples
from hambench.reports.sections.tables import all_tables, category_table, turn_table
from hambench.reports.view import View
from hambench.store import PROMPTS, load_run


@pytest.fixture
def folder(tmp_path):
    """A run of two-turn conversations: two tasks of one category, and two that are their own."""
    spec = {"suite": "longbench", "asks_accuracy": False, "tasks": {}}
    path = synthetic.write_run(
        tmp_path / "run",
        synthetic.cells(confidences=(0.5,)),
        per_task=4,
        error_rate=0.0,
        header_changes={"suite_spec": spec, "notes": ()},
    )
    samples = [json.loads(line) for line in (path / PROMPTS).read_text().splitlines()]
    tasks = list(dict.fromkeys(sample["task"] for sample in samples))
    for sample in samples:
        sample["category"] = "both" if sample["task"] in tasks[:2] else sample["task"]
        sample["turn"] = 1 + sample["doc_id"] % 2
        sample["conversation"] = f"{sample['task']}/{sample['doc_id'] // 2}"
    (path / PROMPTS).write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


def test_categories_and_turns_have_tables_and_panels(folder):
    view = View(load_run(folder))
    names = [table.name for table in all_tables(view)]
    assert names.index("categories") < names.index("turns") < names.index("tasks")
    table = category_table(view)
    assert {row[0].text for row in table.rows} == {group_title(group) for group in view.categories}
    turns = turn_table(view)
    assert [row[0].text for row in turns.rows[:: len(view.cells)]] == [group_title(g) for g in view.turns]
    assert "longbench/turn 2" in {row[0].text for row in turns.rows}
    figures = [figure.name for figure in pareto_section(view).figures]
    assert figures.index("pareto-categories") < figures.index("pareto-tasks")


def test_where_nothing_was_scored_the_panels_show_regret(folder):
    run = dataclasses.replace(load_run(folder), scores=())
    figure = small_multiples(View(run), View(run).categories, "category")
    assert figure is not None
    assert "per category" in figure.title
    assert "accuracy" not in figure.title


def test_categories_that_are_the_tasks_are_not_shown_twice(folder):
    run = load_run(folder)
    samples = {key: dataclasses.replace(s, category=s.task, turn=0) for key, s in run.samples.items()}
    view = View(dataclasses.replace(run, samples=samples))
    assert category_table(view) is None
    assert turn_table(view) is None


def test_accuracy_that_was_not_asked_is_no_fault_of_the_run(folder):
    run = dataclasses.replace(load_run(folder), scores=())
    assert "Not scored" not in {each.title for each in cautions(View(run))}
    spec = {**run.header.suite_spec, "asks_accuracy": True}
    asked = dataclasses.replace(run, header=dataclasses.replace(run.header, suite_spec=spec))
    assert "Not scored" in {each.title for each in cautions(View(asked))}
    assert "was not scored" not in answer(View(run))


def test_the_terminal_shows_turns(folder):
    result = CliRunner().invoke(command, [str(folder), "--by", "turn"])
    assert result.exit_code == 0, result.output
    assert "longbench/turn 1" in result.output
    assert "longbench/turn 2" in result.output
