import math

import numpy as np
import pytest
from scipy import stats

from hambench.analysis.statistics.intervals import ratio_of_sums


def test_a_ratio_of_sums_weighs_units_by_their_denominators():
    estimate = ratio_of_sums([10, 1], [10, 2])
    assert estimate.value == pytest.approx(11 / 12)
    assert estimate.n == 2


def test_with_equal_denominators_and_no_skew_the_interval_is_students_of_the_logarithm():
    values = [math.exp(x) for x in (-0.03, -0.01, 0.01, 0.03, -0.02, 0.02, 0.0, 0.0)]
    estimate = ratio_of_sums(values, [1] * 8)
    half = stats.t.ppf(0.975, 0.8 * 7) * np.std(np.log(values), ddof=1) / math.sqrt(8)
    assert math.log(estimate.high / estimate.value) == pytest.approx(half, rel=0.02)
    assert math.log(estimate.value / estimate.low) == pytest.approx(half, rel=0.02)


def test_splitting_a_unit_narrows_the_interval_and_splitting_what_it_sums_does_not():
    few = ratio_of_sums([30, 45, 60], [30, 30, 30])
    finer = ratio_of_sums([300, 450, 600], [300, 300, 300])
    assert (finer.low, finer.high) == pytest.approx((few.low, few.high))
    more = ratio_of_sums([10, 10, 10, 20, 20, 20], [10] * 6)
    assert more.high - more.low < few.high - few.low


@pytest.mark.parametrize(
    ("numerators", "denominators"),
    [
        ([3], [2]),
        ([3, 5], [1, 2]),
        ([3, 6, 9], [1, 2, 3]),
        ([0, 0, 4], [1, 1, 1]),
        ([0.1, 0.2, 4], [1, 1, 1]),
    ],
)
def test_few_units_agreeing_ones_and_a_sum_of_one_unit_have_no_interval(numerators, denominators):
    estimate = ratio_of_sums(numerators, denominators)
    assert estimate.value == pytest.approx(sum(numerators) / sum(denominators))
    assert (estimate.low, estimate.high) == (None, None)


@pytest.mark.parametrize(
    ("num", "held"), [(3, 0.8), (3, 0.9), (5, 0.89), (13, 0.85), (40, 0.95), (200, 0.99)]
)
def test_an_interval_past_ten_thousand_times_the_ratio_is_not_given(num, held):
    # one unit holds most of the sum; of thirteen, 85 % gave an end of a million times the ratio
    others = (1 - held) / (num - 1)
    estimate = ratio_of_sums([held, *(others * (0.9 + 0.2 * (i % 2)) for i in range(num - 1))], [1] * num)
    assert (estimate.low, estimate.high) == (None, None)


def test_every_interval_that_is_given_says_something():
    rng = np.random.default_rng(0)
    given = 0
    for num in (3, 5, 13, 20):
        for _ in range(200):
            estimate = ratio_of_sums(np.exp(rng.normal(-1, 1, num)), [1] * num)
            if estimate.low is not None:
                assert (
                    estimate.value / 1e4
                    <= estimate.low
                    < estimate.value
                    < estimate.high
                    <= estimate.value * 1e4
                )
                given += 1
    assert 0.7 * 800 < given < 800


def test_a_unit_of_half_a_sum_leaves_an_interval():
    estimate = ratio_of_sums([4, *([1 / 3] * 6), *([0.4] * 6)], [1] * 13)
    assert 0 < estimate.low < estimate.value < estimate.high < 100 * estimate.value


def test_a_unit_that_holds_most_of_both_sums_leaves_an_interval():
    estimate = ratio_of_sums([95, 1.2, 1, 1.1, 0.9], [100, 1, 1, 1, 1])
    assert 0 < estimate.low < estimate.value < estimate.high


def test_no_denominator_is_refused():
    with pytest.raises(ValueError, match="positive sum"):
        ratio_of_sums([1], [0])
    with pytest.raises(ValueError, match="same length"):
        ratio_of_sums([1, 2], [1])


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        sizes = rng.integers(5, 50, 40)
        rates = rng.beta(6, 4, 40)
        estimate = ratio_of_sums(rng.binomial(sizes, rates), sizes)
        covered += estimate.low <= 0.6 <= estimate.high
    assert 0.91 <= covered / 400 <= 0.98
