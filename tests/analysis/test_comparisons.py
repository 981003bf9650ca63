from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from synthetic import header

from hambench.analysis.comparisons import Arm, compare_arms, compare_cells, compare_run
from hambench.analysis.statistics.paired_tests import PairedResult, equal_answers_bound
from hambench.analysis.verdicts import Margins, control_false_discoveries, verdict_of
from hambench.records import Cell, Comparison, GenerationTrace, Sample, SampleRecord, Score, StepRecord
from hambench.store import Run

MARGINS = Margins(tps=0.03)


def make_samples(num: int, *, num_tasks: int = 1) -> dict[str, Sample]:
    samples = {}
    for i in range(num):
        task = f"task{i % num_tasks}"
        sample_id = f"s/{task}/{i}"
        samples[sample_id] = Sample(
            sample_id=sample_id,
            suite="s",
            task=task,
            category="c",
            doc_id=i,
            prompt="p",
            stop=(),
            max_new_tokens=9,
        )
    return samples


def make_arm(
    name: str,
    samples: dict[str, Sample],
    seed: int,
    *,
    slowdown: float = 1.0,
    kv_factor: float = 1.0,
    flip: float = 0.08,
    loss: float = 0.0,
    noise: float = 0.05,
    repeats: int = 1,
    first_token: int = 0,
) -> Arm:
    """An arm of a simulated run: lengths and difficulty belong to the sample, noise to the arm."""
    records, points = {}, {}
    for i, sample in enumerate(samples.values()):
        shared = np.random.default_rng([i, 1000])
        own = np.random.default_rng([i, seed])
        num_steps = int(shared.integers(10, 80))
        pace, right = 0.01 * np.exp(shared.normal(0, 0.3)), shared.random() < 0.5
        for repeat in range(repeats):
            seconds = pace * slowdown * num_steps * np.exp(own.normal(0, noise))
            size = int(1000 * kv_factor * (100 + num_steps))
            steps = (
                StepRecord(tokens=(first_token,), seconds=1.0, kv_slots=100, kv_bytes=100),
                *(
                    StepRecord(tokens=(1,), seconds=seconds / num_steps, kv_bytes=size)
                    for _ in range(num_steps)
                ),
            )
            records[sample.sample_id, repeat] = SampleRecord(
                cell=name,
                sample_id=sample.sample_id,
                prompt_hash="h",
                repeat=repeat,
                trace=GenerationTrace(prompt_tokens=100, steps=steps, finish="length"),
            )
        flipped = own.random() < flip
        right_now = bool(right) != flipped and own.random() >= loss
        points |= {(sample.sample_id, repeat): 100.0 * right_now for repeat in range(repeats)}
    return Arm(name, records, points)


def verdicts(candidate: Arm, baseline: Arm, samples: dict[str, Sample]) -> dict[str, Comparison]:
    rows = compare_arms(candidate, baseline, samples, groups=["all"], margins=MARGINS)
    return {row.metric: row for row in rows}


def test_equal_arms_are_called_neither_better_nor_worse_in_19_of_20_runs() -> None:
    samples = make_samples(24)
    called = {"tps": 0, "accuracy": 0}
    for i in range(60):
        # different answers of equal quality: the harder case, equal ones are equivalent by definition
        a, b = make_arm("a", samples, 2 * i), make_arm("b", samples, 2 * i + 1, first_token=9)
        rows = verdicts(a, b, samples)
        for metric in called:
            called[metric] += rows[metric].verdict in ("better", "worse")
        assert rows["kv_bytes_per_position"].verdict == "equivalent"
    assert called["tps"] <= 3
    assert called["accuracy"] <= 3


@pytest.mark.parametrize(("effect", "power"), [(0.05, 0.75), (0.10, 0.99)])
def test_planted_slowdowns_are_found_at_the_stated_power(effect: float, power: float) -> None:
    samples = make_samples(40)
    found = 0
    for i in range(40):
        slow = make_arm("slow", samples, 2 * i, slowdown=1 + effect)
        row = verdicts(slow, make_arm("base", samples, 2 * i + 1), samples)["tps"]
        assert row.verdict != "better"
        found += row.verdict == "worse"
    assert found / 40 >= power


def test_a_planted_loss_of_accuracy_is_found_and_a_small_one_is_not_called() -> None:
    samples = make_samples(400, num_tasks=4)
    base = make_arm("base", samples, 1)
    lossy = verdicts(make_arm("lossy", samples, 2, loss=0.3, first_token=9), base, samples)["accuracy"]
    assert lossy.verdict == "worse"
    close = verdicts(make_arm("close", samples, 3, first_token=9), base, samples)["accuracy"]
    assert close.verdict == "inconclusive"
    assert (close.minimum_detectable_effect or 0) > 1.5


@pytest.mark.parametrize("slowdown", [0.8, 0.97, 1.0, 1.3])
def test_swapped_arms_mirror_every_verdict(slowdown: float) -> None:
    samples = make_samples(30, num_tasks=3)
    a = make_arm("a", samples, 1, slowdown=slowdown, kv_factor=0.5, loss=0.4, first_token=9)
    b = make_arm("b", samples, 2)
    mirror = {"better": "worse", "worse": "better"}
    there = compare_arms(a, b, samples, margins=MARGINS)
    back = compare_arms(b, a, samples, margins=MARGINS)
    assert len(there) == 3 * (1 + 3)
    for row, mirrored in zip(there, back, strict=True):
        assert mirrored.verdict == mirror.get(row.verdict, row.verdict)
        assert row.p_value == pytest.approx(mirrored.p_value)


def test_fewer_bytes_are_better_and_the_effect_is_a_ratio() -> None:
    samples = make_samples(10)
    row = verdicts(make_arm("a", samples, 1, kv_factor=0.5), make_arm("b", samples, 2), samples)[
        "kv_bytes_per_position"
    ]
    assert row.verdict == "better"
    assert row.effect is not None
    assert row.effect.value == pytest.approx(0.5, rel=1e-3)


def test_counts_are_facts_even_about_two_answers_and_speeds_are_not() -> None:
    samples = make_samples(2)
    rows = verdicts(
        make_arm("a", samples, 1, kv_factor=0.5, slowdown=0.1), make_arm("b", samples, 2), samples
    )
    assert (rows["kv_bytes_per_position"].verdict, rows["kv_bytes_per_position"].reason) == (
        "better",
        "in each of the 2 answers",
    )
    assert rows["tps"].verdict == "inconclusive"
    assert "6 samples" in rows["tps"].reason


def test_repeats_of_a_few_fixed_prompts_are_blocks_too() -> None:
    samples = make_samples(2)
    a = make_arm("a", samples, 1, slowdown=1.3, repeats=10)
    row = verdicts(a, make_arm("b", samples, 2, repeats=10), samples)["tps"]
    assert row.verdict == "worse"
    assert row.reason == "over 10 repeats of 2 fixed prompts"


@pytest.mark.parametrize("num", [1, 3, 18])
def test_equal_answers_hold_accuracy_for_a_lossless_method_and_bound_it_for_another(num: int) -> None:
    samples = make_samples(num)
    a, b = make_arm("a", samples, 1, flip=0), make_arm("b", samples, 2, flip=0)
    row = verdicts(a, b, samples)["accuracy"]
    assert row.verdict == "inconclusive"
    assert row.effect is not None
    bound = 100 * (1 - 0.05 ** (1 / num))
    assert (row.effect.value, row.effect.low, row.effect.high) == pytest.approx((0, -bound, bound))
    answers = f"{num} of {num} answer{'s' * (num > 1)} equal token by token"
    assert (
        row.reason
        == f"{answers}: at most {bound:.0f} % of answers differ; 199 equal ones would show that accuracy holds"
    )
    by_design = [dataclasses.replace(arm, lossless=True) for arm in (a, b)]
    row = verdicts(*by_design, samples)["accuracy"]
    assert (row.verdict, row.reason) == ("equivalent", f"lossless by design, {answers}")
    assert (row.num_equal, row.num_answers) == (num, num)


def test_enough_equal_answers_show_that_a_lossy_method_holds_accuracy_and_one_fewer_do_not() -> None:
    for num, verdict in ((199, "equivalent"), (198, "inconclusive")):
        samples = make_samples(num)
        a, b = make_arm("a", samples, 1, flip=0), make_arm("b", samples, 2, flip=0)
        assert verdicts(a, b, samples)["accuracy"].verdict == verdict


def test_a_lossless_method_whose_answers_differ_is_judged_by_its_scores_and_says_how_many_are_equal() -> None:
    samples = make_samples(20)
    a, b = (dataclasses.replace(make_arm(n, samples, i, flip=0), lossless=True) for i, n in enumerate("ab"))
    key = next(iter(a.records))
    trace = a.records[key].trace
    assert trace is not None
    longer = dataclasses.replace(
        trace, steps=(*trace.steps, StepRecord(tokens=(5,), seconds=0.01, kv_bytes=9))
    )
    a.records[key] = dataclasses.replace(a.records[key], trace=longer)
    row = verdicts(a, b, samples)["accuracy"]
    assert row.verdict == "inconclusive"
    # nobody judged the other one
    assert row.reason.startswith("meant to be lossless, 19 of 20 answers equal token by token")
    judged = [dataclasses.replace(arm, judged=dict.fromkeys(arm.records, (0.0, 10))) for arm in (a, b)]
    row = verdicts(*judged, samples)["accuracy"]
    assert row.reason.startswith("lossless by design, 19 of 20 answers equal token by token")
    # a judgement that leaves it open bears nothing out
    judged[0].judged[key] = (5.0, 10)
    rows = verdicts(*judged, samples)
    assert rows["regret"].verdict == "inconclusive"
    assert rows["accuracy"].reason.startswith("meant to be lossless, 19 of 20 answers equal token by token")


def test_equal_answers_of_a_lossless_method_need_no_judgement() -> None:
    samples = make_samples(20)
    a, b = (dataclasses.replace(make_arm(n, samples, i, flip=0), lossless=True) for i, n in enumerate("ab"))
    a.points.pop(next(iter(a.points)))
    row = verdicts(a, b, samples)["accuracy"]
    assert row.reason.startswith("lossless by design, 19 of 19 answers equal token by token; 1 sample of 20")


def test_shorter_answers_are_no_less_kv_memory() -> None:
    samples = make_samples(12)
    base = make_arm("base", samples, 1)
    short = make_arm("short", samples, 1)
    for arm, share in ((base, 1.0), (short, 0.6)):
        for key, record in arm.records.items():
            assert record.trace is not None
            num = max(2, int(share * len(record.trace.steps)))
            steps = tuple(
                dataclasses.replace(step, kv_bytes=1000 * (100 + i))
                for i, step in enumerate(record.trace.steps[:num])
            )
            arm.records[key] = dataclasses.replace(
                record, trace=dataclasses.replace(record.trace, steps=steps)
            )
    row = verdicts(short, base, samples)["kv_bytes_per_position"]
    assert row.verdict == "equivalent"
    assert row.effect is not None
    assert row.effect.value == pytest.approx(1, abs=1e-3)


def test_answers_without_a_token_after_their_first_step_are_counted_and_said() -> None:
    samples = make_samples(12)
    a, b = make_arm("a", samples, 1), make_arm("b", samples, 2)
    for key in list(a.records)[:5]:
        trace = a.records[key].trace
        assert trace is not None
        a.records[key] = dataclasses.replace(
            a.records[key], trace=dataclasses.replace(trace, steps=trace.steps[:1])
        )
    row = verdicts(a, b, samples)["tps"]
    assert row.num_left_out == 5
    assert "5 answers left out: not a token after its first step on both sides" in row.reason
    assert row.effect is not None
    assert row.effect.n == 7


def fail(arm: Arm, sample_ids: list[str]) -> None:
    """These answers were never given: no trace, no score."""
    for sid in sample_ids:
        arm.records[sid, 0] = dataclasses.replace(arm.records[sid, 0], trace=None, error="out of memory")
        del arm.points[sid, 0]


def test_an_answer_of_one_side_only_is_left_out_of_speed_and_counts_as_no_points() -> None:
    samples = make_samples(20)
    a, b = make_arm("a", samples, 1, slowdown=2), make_arm("b", samples, 2)
    failed = [sid for sid in samples if b.points[sid, 0] == 100][:2]
    fail(a, failed)
    rows = verdicts(a, b, samples)
    assert rows["tps"].verdict == "worse"
    assert rows["tps"].effect is not None
    assert rows["tps"].effect.n == 18
    assert rows["tps"].reason == "2 samples of 20 left out: answered by one of the two only"
    accuracy = rows["accuracy"]
    assert "2 answers that a failed to give count as 0" in accuracy.reason
    assert accuracy.effect is not None
    assert accuracy.effect.n == 20
    difference = sum(a.points.get((sid, 0), 0.0) - b.points[sid, 0] for sid in samples) / 20
    assert accuracy.effect.value == pytest.approx(difference)


def test_failing_what_is_hard_never_looks_better_than_answering_it_wrongly() -> None:
    samples = make_samples(40)
    base = make_arm("b", samples, 2)
    wrong, failing = (make_arm("a", samples, 1, first_token=9) for _ in range(2))
    hard = [sid for sid in samples if wrong.points[sid, 0] == 0][:5]
    fail(failing, hard)
    effects = [verdicts(arm, base, samples)["accuracy"].effect for arm in (wrong, failing)]
    assert effects[0] == effects[1]


def test_a_repeat_that_one_side_failed_counts_as_no_points_for_its_sample() -> None:
    samples = make_samples(20)
    a, b = (make_arm(name, samples, seed, repeats=2, first_token=seed) for name, seed in (("a", 1), ("b", 2)))
    right = [sid for sid in samples if a.points[sid, 0] == 100 == b.points[sid, 0]][:3]
    before = verdicts(a, b, samples)["accuracy"]
    for sid in right:
        a.records[sid, 1] = dataclasses.replace(a.records[sid, 1], trace=None, error="out of memory")
        del a.points[sid, 1]
    after = verdicts(a, b, samples)["accuracy"]
    assert before.effect is not None
    assert after.effect is not None
    assert after.effect.value == pytest.approx(before.effect.value - 3 * 50 / 20)
    assert "3 answers that a failed to give count as 0" in after.reason
    # a repeat that both failed is in neither, and the other repeat still counts
    for sid in right:
        b.records[sid, 1] = dataclasses.replace(b.records[sid, 1], trace=None, error="out of memory")
        del b.points[sid, 1]
    neither = verdicts(a, b, samples)["accuracy"]
    assert neither.effect == before.effect
    assert "failed" not in neither.reason
    # a scorer's failure is no failure to answer
    del a.points[next(sid for sid in samples if sid not in right), 1]
    assert (
        "1 answer of 37 scored for one of the two only: left out"
        in verdicts(a, b, samples)["accuracy"].reason
    )


def test_equal_answers_about_one_document_are_one_chance_to_differ() -> None:
    alone = equal_answers_bound(["t"] * 20)
    assert equal_answers_bound(["t"] * 20, range(20)) == alone
    assert equal_answers_bound(["t"] * 20, [i // 4 for i in range(20)]) == equal_answers_bound(["t"] * 5)
    # the same questions in two languages
    crossed = equal_answers_bound(["a"] * 10 + ["b"] * 10, [*range(10), *range(10)])
    assert crossed == equal_answers_bound(["t"] * 10)
    assert crossed > equal_answers_bound(["a"] * 10 + ["b"] * 10) == alone
    samples = {
        sid: dataclasses.replace(sample, cluster=f"document {i // 5}")
        for i, (sid, sample) in enumerate(make_samples(20).items())
    }
    a, b = make_arm("a", samples, 1, flip=0), make_arm("b", samples, 2, flip=0)
    row = verdicts(a, b, samples)["accuracy"]
    assert row.effect is not None
    assert row.effect.high == pytest.approx(equal_answers_bound(["t"] * 4))
    assert "199 that have no text in common, equal, would show that accuracy holds" in row.reason


def test_too_many_answers_of_one_side_only_are_not_comparable() -> None:
    samples = make_samples(20)
    a, b = make_arm("a", samples, 1), make_arm("b", samples, 2)
    fail(a, list(samples)[:5])
    for row in verdicts(a, b, samples).values():
        assert row.verdict == "not comparable"
        assert row.reason == "5 samples of 20 answered by one of the two only"


def test_a_gate_leaves_no_sample_out() -> None:
    samples = make_samples(20)
    a, b = make_arm("a", samples, 1), make_arm("b", samples, 2)
    fail(a, list(samples)[:1])
    rows = compare_arms(a, b, samples, groups=["all"], margins=MARGINS, most_one_sided=0.0)
    assert {row.verdict for row in rows} == {"not comparable"}


def test_what_both_failed_concerns_neither() -> None:
    samples = make_samples(20)
    a, b = make_arm("a", samples, 1), make_arm("b", samples, 2)
    both = list(samples)[:12]
    fail(a, both)
    fail(b, both)
    for row in verdicts(a, b, samples).values():
        assert row.verdict != "not comparable"
        assert row.effect is not None
        assert row.effect.n == 8
        assert "left out" not in row.reason
        assert "count" not in row.reason


def test_a_score_of_one_side_only_is_left_out_of_accuracy_and_leaves_speed_alone() -> None:
    samples = make_samples(20)
    a, b = make_arm("a", samples, 1, slowdown=2, first_token=9), make_arm("b", samples, 2)
    first, *more = a.points
    del a.points[first]
    rows = verdicts(a, b, samples)
    assert rows["accuracy"].effect is not None
    assert rows["accuracy"].effect.n == 19
    assert "1 sample of 20 scored for one of the two only: left out" in rows["accuracy"].reason
    assert (rows["tps"].verdict, rows["tps"].reason) == ("worse", "")
    for key in more[:4]:
        del a.points[key]
    assert verdicts(a, b, samples)["accuracy"].verdict == "not comparable"


def test_different_prompts_are_not_comparable() -> None:
    samples = make_samples(8)
    a, b = make_arm("a", samples, 1), make_arm("b", samples, 2)
    key = next(iter(a.records))
    a.records[key] = dataclasses.replace(a.records[key], prompt_hash="another")
    assert {row.verdict for row in verdicts(a, b, samples).values()} == {"not comparable"}


def test_nothing_in_common_has_no_effect_and_says_what_is_missing() -> None:
    samples = make_samples(4)
    unscored = Arm("b", make_arm("b", samples, 2).records, {})
    rows = verdicts(Arm("a", {}, {}), unscored, samples)
    assert {row.verdict for row in rows.values()} == {"not comparable"}
    assert all(row.effect is None for row in rows.values())
    assert rows["accuracy"].reason == "no sample has a score in both"


def test_a_busy_machine_is_named_beside_the_verdict() -> None:
    samples = make_samples(20)
    a, b = make_arm("a", samples, 1, slowdown=1.5), make_arm("b", samples, 2)
    for key, record in a.records.items():
        a.records[key] = dataclasses.replace(record, other_load=0.4)
    row = verdicts(a, b, samples)["tps"]
    assert (row.verdict, row.reason) == ("worse", "others took 40% of the machine meanwhile")


def test_a_throttled_gpu_is_named_beside_the_verdict() -> None:
    samples = make_samples(20)
    a, b = make_arm("a", samples, 1, slowdown=1.5), make_arm("b", samples, 2)
    for key in list(a.records)[:3]:
        a.records[key] = dataclasses.replace(a.records[key], throttles=("power cap",), contaminated=True)
    row = verdicts(a, b, samples)["tps"]
    assert (row.verdict, row.reason) == ("worse", "the GPU held its clocks down in 3 answers (power cap)")


def judged(group: str, p: float, candidate: str = "a", metric: str = "tps") -> Comparison:
    return Comparison(
        candidate=candidate, baseline="b", group=group, metric=metric, effect=None, verdict="worse", p_value=p
    )


def test_single_tasks_are_called_only_if_they_stand_correction_for_their_number() -> None:
    tasks = [judged(f"task:s/{i}", 0.04 if i == 0 else 0.5) for i in range(10)]
    kept = control_false_discoveries([judged("all", 0.04), *tasks])
    assert kept[0].verdict == "worse"
    assert kept[0].adjusted_p_value is None
    assert kept[1].verdict == "inconclusive"
    assert "10 tasks" in kept[1].reason
    assert kept[1].adjusted_p_value == pytest.approx(0.4)


def test_settings_are_called_only_if_they_stand_correction_for_their_number() -> None:
    settings = [judged("all", 0.04 if i == 0 else 0.5, str(i)) for i in range(9)]
    kept = control_false_discoveries(settings)
    assert kept[0].verdict == "inconclusive"
    assert "9 settings" in kept[0].reason
    both = [judged(f"task:s/{t}", 0.04 if s == t == 0 else 0.5, str(s)) for s in range(3) for t in range(4)]
    assert "3 settings on 4 tasks" in control_false_discoveries(both)[0].reason
    counts = [judged("all", 0.04 if i == 0 else 0.5, str(i), "kv_bytes_per_position") for i in range(9)]
    assert control_false_discoveries(counts)[0].verdict == "worse"


def test_of_equal_settings_one_in_twenty_sweeps_has_a_faster_one() -> None:
    samples = make_samples(17)
    called = 0
    for seed in range(40):
        arms = [make_arm(str(i), samples, 100 * seed + i, noise=0.15, repeats=1) for i in range(10)]
        run = make_run([arms[1], dataclasses.replace(arms[0]), *arms[2:]], samples)
        rows = compare_run(run, metrics=("tps",), groups=("all",))
        called += any(row.verdict == "better" for row in rows)
    assert called <= 4


@pytest.mark.parametrize(
    ("effect", "half", "expected"),
    [(0.10, 0.02, "better"), (-0.10, 0.02, "worse"), (0.0, 0.02, "equivalent"), (0.02, 0.005, "equivalent"),
     (0.0, 0.10, "inconclusive"), (0.025, 0.02, "inconclusive"), (0.10, 0.2, "inconclusive")],
)  # fmt: skip
def test_words_follow_from_interval_and_margin(effect: float, half: float, expected: str) -> None:
    result = PairedResult(effect=effect, num_blocks=20, low=effect - half, high=effect + half, p_value=0.01)
    assert verdict_of(result, margin=0.03, better="higher")[0] == expected


def test_a_permutation_test_that_disagrees_keeps_a_verdict_from_being_called() -> None:
    result = PairedResult(effect=0.1, num_blocks=20, low=0.05, high=0.15, p_value=0.3, test="sign-flip")
    verdict, reason = verdict_of(result, margin=0.03, better="higher")
    assert verdict == "inconclusive"
    assert "sign-flip" in reason


def make_run(arms: list[Arm], samples: dict[str, Sample]) -> Run:
    cells = tuple(
        Cell(method="vanilla" if i == 1 else "x", label=arm.cell, knobs={}, model="toy", dtype="float32")
        for i, arm in enumerate(arms)
    )
    scores = tuple(
        Score(cell=arm.cell, sample_id=sid, repeat=repeat, metric="m", value=points / 50, scale=2.0)
        for arm in arms
        for (sid, repeat), points in arm.points.items()
    )
    records = tuple(record for arm in arms for record in arm.records.values())
    return Run(Path("run"), header(cells, num_samples=len(samples)), samples, records, scores)


def test_a_run_is_compared_with_its_vanilla_cell_over_all_and_each_task() -> None:
    samples = make_samples(24, num_tasks=2)
    arms = [make_arm("fast", samples, 1, slowdown=0.5), make_arm("vanilla", samples, 2)]
    rows = compare_run(make_run(arms, samples))
    assert {(row.candidate, row.baseline) for row in rows} == {("fast", "vanilla")}
    assert {row.group for row in rows} == {"all", "task:s/task0", "task:s/task1"}
    assert {row.verdict for row in rows if row.metric == "tps"} == {"better"}
    by_arm = {row.group: row for row in rows if row.metric == "accuracy"}
    direct = compare_arms(*arms, samples, metrics=["accuracy"], margins=MARGINS)
    assert [by_arm[row.group].effect for row in direct] == [row.effect for row in direct]


def test_each_cell_is_judged_against_the_vanilla_of_its_own_conditions_and_that_against_the_first() -> None:
    samples = make_samples(12)
    names = ["vanilla[threads=1]", "vanilla[threads=2]", "x[threads=1]", "x[threads=2]"]
    arms = [make_arm(name, samples, i, slowdown=1 / (1 + i % 2)) for i, name in enumerate(names)]
    cells = tuple(
        Cell(
            method=name.partition("[")[0], label=name, knobs={}, model="m", dtype="float32", threads=1 + i % 2
        )
        for i, name in enumerate(names)
    )
    run = make_run(arms, samples)
    run = dataclasses.replace(run, header=dataclasses.replace(run.header, cells=cells))
    rows = {row.candidate: row for row in compare_run(run) if (row.group, row.metric) == ("all", "tps")}
    assert {label: row.baseline for label, row in rows.items()} == {
        "vanilla[threads=2]": "vanilla[threads=1]",
        "x[threads=1]": "vanilla[threads=1]",
        "x[threads=2]": "vanilla[threads=2]",
    }
    # the second thread doubled every speed: that is seen once, on vanilla, and is no merit of x
    assert rows["vanilla[threads=2]"].verdict == "better"
    assert {rows[label].verdict for label in names[2:]} <= {"equivalent", "inconclusive"}


def test_an_a_a_run_alarms_in_at_most_one_of_twenty_simulated_runs() -> None:
    samples = make_samples(24)
    alarms = {"tps": 0, "kv_bytes_per_position": 0, "accuracy": 0}
    for seed in range(20):
        arms = [
            make_arm(name, samples, 2 * seed + i, first_token=i)
            for i, name in enumerate(("vanilla", "vanilla#2"))
        ]
        run = make_run(arms, samples)
        cells = tuple(dataclasses.replace(cell, method="vanilla") for cell in run.header.cells)
        run = dataclasses.replace(run, header=dataclasses.replace(run.header, cells=cells))
        for row in compare_run(run):
            assert (row.candidate, row.baseline) == ("vanilla#2", "vanilla")
            if row.group == "all":
                alarms[row.metric] += row.verdict in ("better", "worse")
    assert all(count <= 1 for count in alarms.values())


def test_an_unknown_cell_is_refused() -> None:
    samples = make_samples(2)
    run = make_run([make_arm("a", samples, 1)], samples)
    with pytest.raises(ValueError, match="no cell 'b'"):
        compare_cells(run, "a", "b")


def test_margins_are_wider_on_a_cpu_than_on_a_gpu() -> None:
    samples = make_samples(1)
    run = make_run([make_arm("a", samples, 1)], samples)
    on_gpu = dataclasses.replace(run, header=dataclasses.replace(run.header, environment={"gpu": "H200"}))
    assert Margins.of(run).tps > Margins.of(on_gpu).tps
