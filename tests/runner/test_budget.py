import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from hambench.decoding import Step, answered
from hambench.errors import HambenchError
from hambench.methods.vanilla import VanillaConfig
from hambench.records import Cell, Sample
from hambench.runner.budget import (
    MARGIN,
    Growth,
    Speed,
    calibrate,
    fit_budget,
    measure_growth,
    sample_seconds,
)
from hambench.runner.plan import plan_run
from hambench.runner.start import RunRequest, start_run
from hambench.runner.sweep import Sweep

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


class SlowingModel:
    """A model on a fake clock whose prefill has a quadratic part and whose steps slow with the context."""

    def __init__(self, clock):
        self.clock, self.slots = clock, 0

    def new_cache(self, capacity):
        return SlowingModel(self.clock)

    def prefill(self, ids, cache):
        self.clock.now += 2e-3 * len(ids) + 4e-7 * len(ids) ** 2
        cache.slots += len(ids)
        return SimpleNamespace(logits=torch.zeros(1, 4))

    def greedy(self, tokens, cache):
        self.clock.now += 0.02 + 4e-6 * cache.slots
        cache.slots += 1
        return [0]

    # a method and its session at once
    def warmup(self):
        pass

    def start(self, prompt_ids, params):
        session = SlowingModel(self.clock)
        session.prompt = prompt_ids
        session.cache = SlowingModel(self.clock)
        session.prefill = lambda: SlowingModel.prefill(session, prompt_ids, session.cache) and TOKEN
        session.step = lambda: session.greedy([0], session.cache) and TOKEN
        return session


TOKEN = Step(tokens=(0,))


@pytest.mark.parametrize("num_prompt", [300, 1000, 2048, 4096, 7000])
def test_what_is_foretold_of_a_long_prompt_is_no_less_than_it_takes(monkeypatch, num_prompt):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("hambench.runner.budget.time", SimpleNamespace(perf_counter=lambda: clock.now))
    model = SlowingModel(clock)
    target = SimpleNamespace(llama=model, context_length=8192, device="cpu")
    growth = measure_growth(target, 7000)
    speed = calibrate(model, 8192, growth=growth)
    began = clock.now
    session = model.start([0] * num_prompt, None)
    answered(session.prefill())
    for _ in range(64):
        answered(session.step())
    taken = clock.now - began
    assert taken <= MARGIN * speed.seconds(num_prompt, 64) <= 1.4 * taken


def test_a_plan_bounds_the_run_that_it_foretells(tiny_model, rows, tmp_path):
    request = RunRequest(
        sweep=Sweep(model=str(tiny_model), methods=("vanilla", "prompt_lookup"), dtype="float32"),
        suite="longbench",
        tasks=("lcc", "multifieldqa_en"),
        data=rows,
        max_new_tokens=24,
    )
    plan = plan_run(request)
    began = time.perf_counter()
    run = start_run(request, tmp_path / "run")
    assert time.perf_counter() - began <= plan.seconds
    assert run.fidelity


def test_judging_costs_a_prompt_once_and_each_answer_its_rows():
    (sample,) = samples(x=(1, 10))
    judge = Growth(prefill_s_per_token=0.01)
    alone = sample_seconds(sample, 50, CELLS, SPEEDS)
    # a prompt of 50 tokens, then two answers of 10 that cost twice a prompt token each
    assert sample_seconds(sample, 50, CELLS, SPEEDS, judge=judge) == pytest.approx(alone + 0.01 * (50 + 40))
