from dataclasses import replace

import pytest

from hambench.budget import Speed, calibrate, fit_budget, sample_seconds
from hambench.errors import HambenchError
from hambench.methods.vanilla import VanillaConfig
from hambench.records import Cell, Sample

CELLS = [Cell(method="vanilla", label=label, knobs={}, model="m", dtype="float32") for label in ("a", "b")]
SPEEDS = {label: Speed(prefill_s_per_token=0.01, decode_s_per_token=0.1) for label in ("a", "b")}


def samples(**counts):
    return [
        Sample(
            sample_id=f"s/{task}/{i}",
            suite="s",
            task=task,
            category="c",
            doc_id=i,
            prompt="x" * 50,
            stop=(),
            max_new_tokens=max_new,
        )
        for task, (count, max_new) in counts.items()
        for i in range(count)
    ]


def fit(rows, budget_s, repeats=1):
    return [s.sample_id for s in fit_budget(rows, CELLS, SPEEDS, budget_s, repeats=repeats, count_tokens=len)]


def test_a_budget_is_spread_evenly_over_tasks_in_the_order_given():
    # one sample takes 2 cells * (50 * 0.01 + 10 * 0.1) = 3 s
    rows = samples(x=(5, 10), y=(5, 10))
    assert fit(rows, 13) == ["s/x/0", "s/x/1", "s/y/0", "s/y/1"]


def test_a_task_too_dear_for_what_is_left_does_not_stop_the_others():
    rows = samples(dear=(3, 1000), cheap=(3, 10))
    assert fit(rows, 10) == ["s/cheap/0", "s/cheap/1", "s/cheap/2"]


def test_repeats_share_the_budget():
    assert len(fit(samples(x=(9, 10)), 18, repeats=3)) == 2


def test_a_cells_own_limit_and_context_decide_what_its_answers_take():
    (sample,) = samples(x=(1, 10))
    limited = [replace(CELLS[0], max_new_tokens=20), replace(CELLS[1], context=40)]
    # 50 prompt tokens and 20 new ones, then a prompt cut to 30 and 10 new ones
    expected = 50 * 0.01 + 20 * 0.1 + 30 * 0.01 + 10 * 0.1
    assert sample_seconds(sample, 50, limited, SPEEDS) == pytest.approx(expected)


def test_a_budget_that_fits_nothing_says_what_the_cheapest_sample_takes():
    with pytest.raises(HambenchError, match=r"a budget of 1 s fits no sample: the cheapest takes up to 3 s"):
        fit(samples(x=(1, 10)), 1)


def test_calibration_gives_positive_speeds(target):
    speed = calibrate(VanillaConfig().build(target), target.context_length)
    assert speed.prefill_s_per_token > 0
    assert speed.decode_s_per_token > 0
