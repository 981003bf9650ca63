import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from synthetic import task_samples

from hambench.decoding import Step, answered
from hambench.engine import warmup
from hambench.engine.llama import Llama
from hambench.engine.requests.shared_prefill import ReadPrompts
from hambench.errors import HambenchError
from hambench.methods.vanilla import VanillaConfig
from hambench.records import Cell
from hambench.runner import budget, start
from hambench.runner.budget import (
    CALIBRATION_PROMPT,
    MARGIN,
    Growth,
    Speed,
    bound_samples,
    calibrate,
    fit_budget,
    measure_growth,
    sample_seconds,
)
from hambench.runner.forecast.plan import plan_run
from hambench.runner.forecast.time_left import FIRST_SHARE, first_share
from hambench.runner.start import RunRequest, start_run
from hambench.runner.sweep import Sweep
from hambench.runner.work import NUM_TIMED_PROMPTS

CELLS = [Cell(method="vanilla", label=label, knobs={}, model="m", dtype="float32") for label in ("a", "b")]
SPEED = Speed(prefill_s_per_token=0.01, decode_s_per_token=0.1, step_s=0.2)
SPEEDS = {"a": SPEED, "b": SPEED}
SPENT_S = 27.0


def fit(rows, calibrated_s, repeats=1, **spent):
    """The ids of the samples that a budget takes which leaves so many seconds of calibrated time."""
    budget_s = SPENT_S + MARGIN * calibrated_s
    options = {"spent_s": SPENT_S, **spent}
    bound = bound_samples(rows, CELLS, SPEEDS, count_tokens=len)
    chosen = fit_budget(rows, CELLS, bound, budget_s, repeats=repeats, **options)
    return [sample.sample_id for sample in chosen]


def test_a_budget_is_spread_evenly_over_tasks_in_the_order_given():
    # one sample takes 2 cells * (50 * 0.01 + 10 * 0.1) = 3 s
    rows = task_samples(x=(5, 10), y=(5, 10))
    assert fit(rows, 13) == ["s/x/0", "s/x/1", "s/y/0", "s/y/1"]


def test_a_task_too_dear_for_what_is_left_does_not_stop_the_others():
    rows = task_samples(dear=(3, 1000), cheap=(3, 10))
    assert fit(rows, 10) == ["s/cheap/0", "s/cheap/1", "s/cheap/2"]


def test_repeats_share_the_budget():
    assert len(fit(task_samples(x=(9, 10)), 18, repeats=3)) == 2


def test_a_cells_own_limit_and_context_decide_what_its_answers_take():
    (sample,) = task_samples(x=(1, 10))
    limited = [replace(CELLS[0], max_new_tokens=20), replace(CELLS[1], context=40)]
    # 50 prompt tokens and 20 new ones, then a prompt cut to 30 and 10 new ones
    expected = 50 * 0.01 + 20 * 0.1 + 30 * 0.01 + 10 * 0.1
    assert sample_seconds(sample, 50, limited, SPEEDS) == pytest.approx(expected)


def test_a_budget_that_fits_nothing_says_what_the_cheapest_sample_takes():
    message = (
        r"a budget of 28 s fits no sample: 27 s go into loading, warming up, bandwidth probes, scoring and the report, "
        r"and the cheapest sample takes up to 4 s over 2 cells"
    )
    with pytest.raises(HambenchError, match=message):
        fit(task_samples(x=(1, 10)), 1)


def test_the_first_samples_get_a_share_and_one_at_least():
    """A machine that becomes slower after calibration would pass the budget with all of them."""
    rows = task_samples(x=(40, 10))
    assert len(fit(rows, 60)) == 20
    assert len(fit(rows, 60, share=0.25)) == 5
    assert len(fit(rows, 3.1, share=0.25)) == 1
    asked = RunRequest(sweep=Sweep(model="m", methods=("vanilla",)), suite="s", budget_s=60)
    assert first_share(asked) == FIRST_SHARE
    assert first_share(replace(asked, executor="ray")) == 1


def test_the_first_samples_are_those_that_come_first_in_turn():
    """A dear one beyond the share is not passed over for cheap ones: every cell would time prompts of these alone."""
    # the first three take 3 + 9 + 3 s
    rows = task_samples(cheap=(9, 10), dear=(9, 40))
    assert fit(rows, 40, share=0.25) == ["s/cheap/0"]
    assert fit(rows, 60, share=0.25) == ["s/cheap/0", "s/cheap/1", "s/dear/0"]
    # one that does not fit at all is
    assert fit(task_samples(dear=(3, 1000), cheap=(9, 10)), 24, share=0.25) == ["s/cheap/0", "s/cheap/1"]


def test_the_first_samples_fill_the_largest_batch_if_so_many_fit():
    rows = task_samples(x=(40, 10))
    assert len(fit(rows, 60, share=0.25, fewest=8)) == 8
    assert len(fit(rows, 60, share=0.25, fewest=4)) == 5
    assert len(fit(rows, 13, share=0.25, fewest=8)) == 4


def test_what_loading_took_is_no_longer_there_for_samples():
    rows = task_samples(x=(9, 10))
    assert len(fit(rows, 18)) == 6
    assert len(fit(rows, 18, spent_s=SPENT_S + 2 * 3 * MARGIN)) == 4


def test_calibration_gives_positive_speeds(target):
    speed = calibrate(VanillaConfig().build(target), target.context_length)
    assert speed.prefill_s_per_token > 0
    assert speed.decode_s_per_token > 0
    assert speed.step_s >= speed.decode_s_per_token


READER = (1, 2)


def test_a_prompt_that_cells_share_is_foretold_once():
    rates = {READER: 0.008}
    speeds = {label: replace(SPEED, reads=rates) for label in SPEEDS}
    (sample,) = task_samples(x=(1, 10))
    each = 2 * (50 * 0.01 + 10 * 0.1)
    assert sample_seconds(sample, 50, CELLS, speeds) == pytest.approx(each)
    # the second cell has its own part of a prefill left
    shared = sample_seconds(sample, 50, CELLS, speeds, is_shared=True)
    assert shared == pytest.approx(each - 50 * 0.008)
    # other weights, another cut of the prompt, or a turn behind a cell's own answer are read by each
    others = {**speeds, "b": replace(SPEED, reads={(3, 4): 0.008})}
    assert sample_seconds(sample, 50, CELLS, others, is_shared=True) == pytest.approx(each)
    cut = [CELLS[0], replace(CELLS[1], context=40)]
    assert sample_seconds(sample, 50, cut, speeds, is_shared=True) == sample_seconds(sample, 50, cut, speeds)
    turn = replace(sample, conversation="c", turn=2)
    assert sample_seconds(turn, 50, CELLS, speeds, is_shared=True) == pytest.approx(each)
    # and a budget takes more samples
    rows = task_samples(x=(20, 10))
    taken = [
        len(
            fit_budget(
                rows,
                CELLS,
                bound_samples(rows, CELLS, speeds, count_tokens=len, is_shared=is_shared),
                40.0,
                repeats=1,
            )
        )
        for is_shared in (False, True)
    ]
    assert taken[1] > taken[0]


def test_calibration_reads_its_prompt_once_per_model_and_counts_it_for_every_cell(target, monkeypatch):
    read, calls = type(target.llama).prefill, []

    def counting(self, ids, *args, **kwargs):
        calls.append(len(ids))
        time.sleep(0.2)
        return read(self, ids, *args, **kwargs)

    monkeypatch.setattr(type(target.llama), "prefill", counting)
    prompts = ReadPrompts()
    method = VanillaConfig().build(target)
    speeds = [calibrate(method, target.context_length, prompts=prompts) for _ in range(3)]
    assert calls == [256]
    for speed in speeds:
        # what reading takes is in each cell's speed, whoever read
        assert 256 * speed.prefill_s_per_token >= 0.2
        assert sum(speed.reads.values()) <= speed.prefill_s_per_token
        assert [reader[0] for reader in speed.reads] == [id(target.llama)]


def counted(monkeypatch):
    """Counts what is done before the first sample: passes of a warm-up by method, prompts read, texts encoded."""
    counts = {"passes": [], "read": [], "encoded": []}
    one_pass, read, encode = warmup._one_pass, Llama.prefill, start.count_tokens

    def passing(method, *args):
        counts["passes"].append(method.name)
        return one_pass(method, *args)

    def reading(self, ids, *args, **kwargs):
        counts["read"].append(len(ids))
        return read(self, ids, *args, **kwargs)

    def encoding(text, *args, **kwargs):
        counts["encoded"].append(text)
        return encode(text, *args, **kwargs)

    monkeypatch.setattr(warmup, "_one_pass", passing)
    monkeypatch.setattr(Llama, "prefill", reading)
    monkeypatch.setattr(start, "count_tokens", encoding)
    return counts


def test_what_precedes_the_samples_is_done_once_for_cells_that_share_it(
    tiny_model, rows, tmp_path, monkeypatch
):
    """The accounting behind the share of a budget that samples get: fixed work does not grow with the settings."""
    counts = counted(monkeypatch)
    methods = ("vanilla", "prompt_lookup", *(f"speculative[k={k}]" for k in (1, 2, 3, 4)))
    request = RunRequest(
        sweep=Sweep(model=str(tiny_model), methods=methods, dtype="float32"),
        suite="longbench",
        tasks=("lcc", "multifieldqa_en"),
        data=rows,
        max_new_tokens=4,
        limit=3,
        budget_s=600,
    )
    run = start_run(request, tmp_path / "run")
    # of four settings with the same weights one is warmed up until it settles
    passes = Counter(counts["passes"])
    assert [passes[f"speculative[k={k}]"] for k in (2, 3, 4)] == [1, 1, 1]
    assert all(
        3 <= passes[name] <= warmup.MAX_PASSES for name in ("vanilla", "prompt_lookup", "speculative[k=1]")
    )
    (reading,) = [
        item for item in run.telemetry if item["kind"] == "warmup" and item["cell"] == "speculative[k=4]"
    ]
    assert reading["shares"] == "speculative[k=1]"
    # growth reads its prompt twice, calibration once with the target and once with the draft
    assert sum(num == CALIBRATION_PROMPT for num in counts["read"]) <= 4
    # no text is encoded twice to be counted
    assert max(Counter(counts["encoded"]).values()) == 1
    (prepared,) = [item["parts"] for item in run.telemetry if item["kind"] == "preparation"]
    assert list(prepared) == ["model", "suite", "methods", "counting tokens", "warm-ups", "calibration"]
    assert all(seconds >= 0 for seconds in prepared.values())


def test_the_longest_prompts_are_foretold_from_shorter_ones(target, monkeypatch):
    timed = []
    monkeypatch.setattr(budget, "_time_target", lambda _, num: timed.append(num) or (0.001, 0.01))
    long = SimpleNamespace(llama=target.llama, context_length=8192, device="cpu")
    measure_growth(long, 8000)
    assert max(timed) == 2048


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
    (sample,) = task_samples(x=(1, 10))
    judge = Growth(prefill_s_per_token=0.01)
    alone = sample_seconds(sample, 50, CELLS, SPEEDS)
    # a prompt of 50 tokens, then two answers of 10 that cost twice a prompt token each
    assert sample_seconds(sample, 50, CELLS, SPEEDS, judge=judge) == pytest.approx(alone + 0.01 * (50 + 40))


def test_equal_greedy_answers_are_judged_once():
    (sample,) = task_samples(x=(1, 10))
    judge = Growth(prefill_s_per_token=0.01)

    def judged(*cells, **how):
        named = [replace(cell, label=str(number)) for number, cell in enumerate(cells)]
        speeds = {cell.label: SPEED for cell in named}
        seconds = [sample_seconds(sample, 50, named, speeds, judge=j, **how) for j in (judge, None)]
        return round((seconds[0] - seconds[1]) / 0.01) - 50

    vanilla = replace(CELLS[0], kernels="native")
    draft = replace(vanilla, method="prompt_lookup")
    lossy = replace(vanilla, method="hamburger", knobs={"confidence": 0.5})
    assert judged(vanilla, draft, lossy, is_greedy=False) == 3 * 20
    assert judged(vanilla, draft, is_greedy=True) == 20
    assert judged(vanilla, draft, lossy, is_greedy=True) == 2 * 20
    # a peer may differ by its rounding, lossless as it is
    assert judged(vanilla, replace(vanilla, method="transformers"), is_greedy=True) == 2 * 20
    # batches change nothing on native kernels, and roundings elsewhere
    assert judged(lossy, replace(lossy, batch=4), is_greedy=True) == 20
    assert (
        judged(*(replace(vanilla, kernels="reference", batch=batch) for batch in (1, 4)), is_greedy=True)
        == 40
    )
    # another limit, prompt or setting is another answer
    for change in ({"max_new_tokens": 5}, {"context": 40}):
        assert judged(vanilla, replace(vanilla, **change), is_greedy=True) > 20
    assert judged(lossy, replace(lossy, knobs={"confidence": 0.7}), is_greedy=True) == 40


def test_a_judge_that_copies_a_cells_prompt_reads_none():
    (sample,) = task_samples(x=(1, 10))
    judge = Growth(prefill_s_per_token=0.01)
    speeds = {label: replace(SPEED, reads={READER: 0.008}) for label in SPEEDS}

    def more(**how):
        return sample_seconds(sample, 50, CELLS, speeds, judge=judge, **how) - sample_seconds(
            sample, 50, CELLS, speeds, is_shared=how.get("is_shared", False)
        )

    assert more(is_shared=True, judge_reader=READER) == pytest.approx(0.01 * 40)
    for how in ({"is_shared": True, "judge_reader": (9, 9)}, {"judge_reader": READER}, {"is_shared": True}):
        assert more(**how) == pytest.approx(0.01 * (50 + 40)), how


def test_a_budget_counts_the_prompts_that_every_cell_reads():
    rows = task_samples(x=(20, 10))
    speeds = {label: replace(SPEED, reads={READER: 0.008}) for label in SPEEDS}
    each = sample_seconds(rows[0], len(rows[0].prompt), CELLS, speeds)
    shared = sample_seconds(rows[0], len(rows[0].prompt), CELLS, speeds, is_shared=True)
    assert shared < each
    # as many as are read by every cell, and one more that is shared
    enough = MARGIN * (NUM_TIMED_PROMPTS * each + shared)

    def taken(budget):
        bound = bound_samples(rows, CELLS, speeds, count_tokens=len, is_shared=True)
        return len(fit_budget(rows, CELLS, bound, budget, repeats=1))

    assert taken(1.001 * enough) == NUM_TIMED_PROMPTS + 1
    assert taken(0.999 * enough) == NUM_TIMED_PROMPTS
