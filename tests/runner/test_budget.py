from dataclasses import replace

import pytest

from hambench.errors import HambenchError
from hambench.methods.vanilla import VanillaConfig
from hambench.records import Cell, Sample
from hambench.runner.budget import MARGIN, Speed, calibrate, fit_budget, sample_seconds

CELLS = [Cell(method="vanilla", label=label, knobs={}, model="m", dtype="float32") for label in ("a", "b")]
SPEED = Speed(prefill_s_per_token=0.01, decode_s_per_token=0.1, step_s=0.2)
SPEEDS = {"a": SPEED, "b": SPEED}
# six passes of 64 prompt tokens and eight steps, in both cells
WARM_UP_S = 2 * 6 * (64 * 0.01 + 8 * 0.2)


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


def fit(rows, calibrated_s, repeats=1, **spent):
    """The ids of the samples that a budget takes which leaves so many seconds of calibrated time."""
    budget_s = WARM_UP_S + MARGIN * calibrated_s
    chosen = fit_budget(rows, CELLS, SPEEDS, budget_s, repeats=repeats, count_tokens=len, **spent)
    return [sample.sample_id for sample in chosen]


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
    message = (
        r"a budget of 28 s fits no sample: 27 s go into loading and warming up, "
        r"and the cheapest sample takes up to 4 s over 2 cells"
    )
    with pytest.raises(HambenchError, match=message):
        fit(samples(x=(1, 10)), 1)


def test_what_loading_took_is_no_longer_there_for_samples():
    rows = samples(x=(9, 10))
    assert len(fit(rows, 18)) == 6
    assert len(fit(rows, 18, spent_s=2 * 3 * MARGIN)) == 4


def test_calibration_gives_positive_speeds(target):
    speed = calibrate(VanillaConfig().build(target), target.context_length)
    assert speed.prefill_s_per_token > 0
    assert speed.decode_s_per_token > 0
    assert speed.step_s >= speed.decode_s_per_token
