"""Averages as LongBench reports them, worked out by hand."""

import dataclasses
import math

import pytest

from hambench.analysis.suite_averages import metric_points, points_by_length, suite_average
from hambench.records import Sample, Score


def sample(task, category, number, **doc):
    return Sample(
        sample_id=f"longbench/{task}/{number}",
        suite="longbench",
        task=task,
        category=category,
        doc_id=number,
        prompt="p",
        stop=(),
        max_new_tokens=1,
        doc=doc,
    )


def score(task, number, value, *, cell="v", metric="score", primary=True):
    error = None if value is not None else "the scorer failed"
    return Score(
        cell=cell,
        sample_id=f"longbench/{task}/{number}",
        repeat=0,
        metric=metric,
        value=value,
        primary=primary,
        error=error,
    )


SAMPLES = {
    each.sample_id: each
    for each in (
        sample("qasper", "single-doc", 0, length=100),
        sample("qasper", "single-doc", 1, length=4000),
        sample("narrativeqa", "single-doc", 0, length=9000),
        sample("lcc", "code", 0, length=7999),
    )
}


def test_the_overall_figure_is_the_mean_of_categories_not_of_rows():
    scores = [
        score("qasper", 0, 1.0),
        score("qasper", 1, 0.0),
        score("narrativeqa", 0, 0.3),
        score("lcc", 0, 0.8),
    ]
    found = suite_average(scores, SAMPLES, cell="v", suite="longbench")
    assert {each.task: each.points for each in found.tasks} == {
        "qasper": 50.0,
        "narrativeqa": 30.0,
        "lcc": 80.0,
    }
    # single-doc: (50 + 30) / 2; overall: (40 + 80) / 2; the mean of rows would be 52.5
    assert {each.category: each.points for each in found.categories} == {"single-doc": 40.0, "code": 80.0}
    assert found.overall == pytest.approx(60.0)
    assert found.missing == ()


def test_a_failed_task_is_shown_as_missing_and_never_as_zero():
    scores = [
        score("qasper", 0, 1.0),
        score("qasper", 1, None),
        score("narrativeqa", 0, None),
        score("lcc", 0, 0.5),
    ]
    found = suite_average(scores, SAMPLES, cell="v", suite="longbench", tasks=("qasper", "gov_report"))
    by_task = {each.task: each for each in found.tasks}
    assert (by_task["qasper"].points, by_task["qasper"].num_scored, by_task["qasper"].num_failed) == (
        100.0,
        1,
        1,
    )
    assert (by_task["narrativeqa"].points, by_task["narrativeqa"].num_failed) == (None, 1)
    assert found.categories[0].missing == ("narrativeqa",)
    assert found.missing == ("narrativeqa", "gov_report")
    assert found.overall == pytest.approx((100.0 + 50.0) / 2)


@pytest.mark.parametrize("changes", [{"value": None}, {"value": math.nan}, {"error": "no scorer"}])
def test_a_score_that_says_it_failed_has_no_points_whatever_it_holds(changes):
    broken = dataclasses.replace(score("qasper", 1, 0.4), **changes)
    assert broken.points is None
    found = suite_average([score("qasper", 0, 1.0), broken], SAMPLES, cell="v", suite="longbench")
    task = next(each for each in found.tasks if each.task == "qasper")
    assert (task.points, task.num_scored, task.num_failed) == (100.0, 1, 1)


def test_without_any_score_there_is_no_average():
    found = suite_average([], SAMPLES, cell="v", suite="longbench")
    assert found.overall is None
    assert set(found.missing) == {"qasper", "narrativeqa", "lcc"}


def test_other_cells_and_secondary_metrics_stay_out():
    scores = [
        score("lcc", 0, 0.5),
        score("lcc", 0, 1.0, cell="other"),
        score("lcc", 0, 1.0, metric="code_sim_score", primary=False),
    ]
    assert suite_average(scores, SAMPLES, cell="v", suite="longbench").overall == 50.0
    assert metric_points(scores, SAMPLES, cell="v", task="lcc", metric="code_sim_score") == 100.0


def test_length_buckets_have_longbench_es_bounds():
    scores = [score("qasper", 0, 1.0), score("qasper", 1, 0.5)]
    assert points_by_length(scores, SAMPLES, cell="v", task="qasper") == {
        "0-4k": 100.0,
        "4-8k": 50.0,
        "8k+": None,
    }


def test_instruction_level_accuracy_counts_instructions():
    samples = {
        each.sample_id: each
        for each in (
            sample("ifeval", "instructions", 0, instruction_id_list=["a"]),
            sample("ifeval", "instructions", 1, instruction_id_list=["a", "b", "c"]),
        )
    }
    metric = "inst_level_strict_acc"
    scores = [score("ifeval", 0, 1.0, metric=metric), score("ifeval", 1, 1 / 3, metric=metric)]
    # 2 of 4 instructions, though the mean over prompts is 2/3
    assert metric_points(scores, samples, cell="v", task="ifeval", metric=metric) == pytest.approx(50.0)
