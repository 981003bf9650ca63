import math

import numpy as np
import pytest

from hambench.analysis.intervals import ratio_of_sums


def test_a_ratio_of_sums_weighs_units_by_their_denominators():
    estimate = ratio_of_sums([10, 1], [10, 2])
    assert estimate.value == pytest.approx(11 / 12)
    assert estimate.n == 2


def test_with_equal_denominators_the_interval_is_that_of_a_mean():
    values = [1.0, 2.0, 4.0, 4.0]
    estimate = ratio_of_sums(values, [1] * 4)
    half = 1.959964 * np.std(values, ddof=1) / math.sqrt(4)
    assert estimate.high - estimate.value == pytest.approx(half)
    assert estimate.value - estimate.low == pytest.approx(half)


def test_splitting_a_unit_narrows_the_interval_and_splitting_what_it_sums_does_not():
    few = ratio_of_sums([30, 60], [30, 30])
    finer = ratio_of_sums([300, 600], [300, 300])
    assert (finer.low, finer.high) == pytest.approx((few.low, few.high))
    more = ratio_of_sums([10, 10, 10, 20, 20, 20], [10] * 6)
    assert more.high - more.low < few.high - few.low


def test_one_unit_or_agreeing_ones_have_no_interval_and_no_denominator_is_refused():
    assert ratio_of_sums([3], [2]).low is None
    assert ratio_of_sums([3, 6], [1, 2]).low is None
    with pytest.raises(ValueError, match="positive sum"):
        ratio_of_sums([1], [0])
    with pytest.raises(ValueError, match="as many"):
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
