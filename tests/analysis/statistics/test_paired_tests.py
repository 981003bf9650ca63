from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hambench.analysis.statistics.paired_tests import (
    PairedResult,
    adjusted_p_values,
    log_ratio_of_sums,
    mcnemar_p_value,
    mean_difference,
)

Sides = tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]


def timed_arms(
    rng: np.random.Generator, num_blocks: int, *, slowdown: float = 1.0, noise: float = 0.04
) -> Sides:
    """Two arms over answers of very different lengths, with drift shared by both and noise of their own."""
    tokens = rng.integers(20, 400, num_blocks).astype(float)
    drift = np.exp(rng.normal(0, 0.3, num_blocks))

    def seconds() -> list[float]:
        return list(tokens * 0.01 * drift * np.exp(rng.normal(0, noise, num_blocks)))

    return (list(tokens), [s * slowdown for s in seconds()]), (list(tokens), seconds())


def covers(result: PairedResult, truth: float) -> bool:
    assert result.low is not None
    assert result.high is not None
    return result.low <= truth <= result.high


@pytest.mark.parametrize("num_blocks", [8, 20, 100])
def test_the_ratio_interval_covers_at_its_nominal_rate(num_blocks: int) -> None:
    rng = np.random.default_rng(1)
    truth = -math.log(1.07)
    results = [log_ratio_of_sums(*timed_arms(rng, num_blocks, slowdown=1.07)) for _ in range(400)]
    covered = sum(covers(result, truth) for result in results)
    assert 0.92 <= covered / 400 <= 0.985


@pytest.mark.parametrize("num_blocks", [8, 40])
def test_swapping_arms_alarms_at_its_nominal_rate_when_nothing_differs(num_blocks: int) -> None:
    rng = np.random.default_rng(2)
    alarms = sum((log_ratio_of_sums(*timed_arms(rng, num_blocks)).p_value or 0) <= 0.05 for _ in range(300))
    assert alarms / 300 <= 0.085
    assert alarms > 0


def test_the_ratio_is_that_of_sums_and_not_a_mean_of_ratios() -> None:
    result = log_ratio_of_sums(([10.0, 1000.0], [1.0, 1000.0]), ([10.0, 1000.0], [10.0, 1000.0]))
    assert math.exp(result.effect) == pytest.approx((1010 / 1001) / (1010 / 1010))


positive = st.floats(0.01, 1e4)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(positive, positive, positive, positive), min_size=2, max_size=30))
def test_swapped_arms_mirror_the_ratio(blocks: list[tuple[float, float, float, float]]) -> None:
    a, b, c, d = (list(column) for column in zip(*blocks, strict=True))
    there, back = log_ratio_of_sums((a, b), (c, d)), log_ratio_of_sums((c, d), (a, b))
    assert there.effect == pytest.approx(-back.effect, abs=1e-9)
    assert there.low == pytest.approx(-(back.high or 0), abs=1e-6, rel=1e-6)
    assert there.p_value == pytest.approx(back.p_value)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 40.0, 100.0]), st.sampled_from([0.0, 100.0]), st.integers(0, 2)),
        min_size=1,
        max_size=60,
    )
)
def test_swapped_arms_mirror_the_difference(rows: list[tuple[float, float, int]]) -> None:
    a, b, strata = (list(column) for column in zip(*rows, strict=True))
    there, back = mean_difference(a, b, strata=strata), mean_difference(b, a, strata=strata)
    assert there.effect == pytest.approx(-back.effect, abs=1e-9)
    assert (there.low is None) == (back.high is None)
    if there.low is not None and back.high is not None:
        assert there.low == pytest.approx(-back.high, abs=1e-6)
    assert there.p_value == pytest.approx(back.p_value)


def test_exact_sign_flips_agree_with_scipy() -> None:
    rng = np.random.default_rng(4)
    difference = rng.normal(3, 10, 10)
    ours = mean_difference(list(difference), [0.0] * 10)
    theirs = stats.permutation_test(
        (difference,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert ours.p_value == pytest.approx(theirs.pvalue)


def test_mcnemar_is_the_exact_binomial_of_the_disagreements() -> None:
    a = [100.0] * 9 + [0.0] * 1 + [100.0] * 50
    b = [0.0] * 9 + [100.0] * 1 + [100.0] * 50
    result = mean_difference(a, b)
    assert result.test == "McNemar"
    assert result.p_value == pytest.approx(stats.binomtest(1, 10, 0.5).pvalue)
    assert mcnemar_p_value(np.zeros(20)) == 1


def paired_scores(
    rng: np.random.Generator, n: int, *, base: float = 0.5, flips: float = 0.1, shift: float = 0.0
) -> tuple[list[float], list[float]]:
    """0/1 scores that agree but for ``flips`` of the samples; ``shift`` makes them fall to one side."""
    right = rng.random(n) < base
    flipped = rng.random(n) < flips
    better = rng.random(n) < 0.5 + shift / (2 * flips)
    ours = np.where(flipped, better, right)
    theirs = np.where(flipped, ~better, right)
    return list(100.0 * ours), list(100.0 * theirs)


@pytest.mark.parametrize("n", [20, 60, 200])
def test_the_interval_of_a_difference_of_0_1_scores_covers(n: int) -> None:
    rng = np.random.default_rng(5)
    covered = sum(covers(mean_difference(*paired_scores(rng, n, shift=0.04)), 4.0) for _ in range(400))
    assert covered / 400 >= 0.93


@pytest.mark.parametrize("n", [12, 40, 150])
def test_the_interval_of_a_difference_of_graded_scores_covers_and_its_test_alarms_nominally(n: int) -> None:
    rng = np.random.default_rng(6)
    covered = alarms = 0
    for _ in range(300):
        base = rng.beta(0.5, 0.5, n)
        ours, theirs = (np.clip(base + rng.normal(0, 0.15, n), 0, 1) * 100 for _ in range(2))
        result = mean_difference(list(ours), list(theirs))
        covered += covers(result, 0.0)
        alarms += (result.p_value or 0) <= 0.05
    assert covered / 300 >= 0.92
    assert alarms / 300 <= 0.085


def test_the_interval_covers_when_graded_scores_seldom_differ() -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(400):
        differs = rng.random(60) < 0.05
        size = np.where(differs, rng.choice([-60.0, 20.0], 60, p=[0.25, 0.75]), 0.0)
        covered += covers(mean_difference(list(30 + size), [30.0] * 60), 0.0)
    assert covered / 400 >= 0.94


def test_rows_that_belong_together_count_as_one() -> None:
    rng = np.random.default_rng(7)
    alarms = {"own": 0, "clustered": 0}
    for _ in range(200):
        question = rng.normal(0, 20, 12)  # the same luck in all five languages
        difference = np.repeat(question, 5) + rng.normal(0, 3, 60)
        ids = np.repeat(np.arange(12), 5).tolist()
        zeros = [0.0] * 60
        alarms["own"] += (mean_difference(list(difference), zeros).p_value or 0) <= 0.05
        clustered = mean_difference(list(difference), zeros, clusters=ids)
        assert clustered.num_blocks == 12
        alarms["clustered"] += (clustered.p_value or 0) <= 0.05
    assert alarms["clustered"] / 200 <= 0.1
    assert alarms["own"] / 200 > 0.25


def test_pooling_weighs_tasks_equally_whatever_their_size() -> None:
    ours = [100.0] * 90 + [0.0] * 10
    theirs = [0.0] * 90 + [100.0] * 10
    strata = ["large"] * 90 + ["small"] * 10
    assert mean_difference(ours, theirs, strata=strata).effect == pytest.approx(0)
    assert mean_difference(ours, theirs).effect == pytest.approx(80)


def test_stratified_intervals_cover_when_tasks_are_tiny() -> None:
    rng = np.random.default_rng(8)
    covered = 0
    for _ in range(300):
        ours, theirs = paired_scores(rng, 42, flips=0.2, shift=0.05)
        covered += covers(mean_difference(ours, theirs, strata=[i // 2 for i in range(42)]), 5.0)
    assert covered / 300 >= 0.93


def test_a_few_pairs_that_agree_prove_little() -> None:
    few, many = (mean_difference([100.0] * n, [100.0] * n) for n in (5, 1000))
    assert few.effect == many.effect == 0
    assert (few.high or 0) > 30
    assert (many.high or 99) < 0.5


@pytest.mark.parametrize("n", [1, 2])
def test_an_interval_past_every_possible_difference_is_not_given(n: int) -> None:
    result = mean_difference([100.0] * n, [0.0] * n)
    assert (result.effect, result.low, result.high) == (100, None, None)


def test_no_interval_reaches_past_a_possible_difference() -> None:
    result = mean_difference([100.0] * 4, [0.0] * 4)
    assert result.low is not None
    assert result.high == 100


def test_one_block_has_an_effect_and_no_interval() -> None:
    result = log_ratio_of_sums(([4.0], [1.0]), ([4.0], [2.0]))
    assert math.exp(result.effect) == pytest.approx(2)
    assert (result.low, result.p_value, result.minimum_detectable_effect()) == (None, None, None)


@pytest.mark.parametrize(
    "sides",
    [(([], []), ([], [])), (([1.0], [0.0]), ([1.0], [1.0])), (([1.0, 2.0], [1.0, 2.0]), ([1.0], [1.0]))],
)
def test_impossible_ratios_are_refused(sides: Sides) -> None:
    with pytest.raises(ValueError, match="must"):
        log_ratio_of_sums(*sides)


@pytest.mark.parametrize("margin", [0.0, 0.03, 0.06])
def test_the_minimum_detectable_effect_is_found_about_as_often_as_stated(margin: float) -> None:
    rng = np.random.default_rng(9)
    each = [log_ratio_of_sums(*timed_arms(rng, 20)).minimum_detectable_effect(margin) or 0 for _ in range(50)]
    found = 0
    for _ in range(300):
        result = log_ratio_of_sums(*timed_arms(rng, 20, slowdown=math.exp(np.mean(each))))
        found += (result.high or 0) < 0 and result.effect <= -margin
    # 80 % in theory; a little less where margin and noise are of one size
    assert 0.68 <= found / 300 <= 0.9


def test_adjusted_p_values_are_larger_and_keep_their_order() -> None:
    raw = [0.001, 0.04, 0.03, 0.8]
    adjusted = adjusted_p_values(raw)
    assert all(a >= r for a, r in zip(adjusted, raw, strict=True))
    assert np.argsort(adjusted, kind="stable")[0] == 0
    assert adjusted[1] > 0.05
    assert adjusted_p_values([]) == []
