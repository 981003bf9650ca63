"""The number of samples that "would tell" is measured: so many are drawn, and counted how often they tell."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from hambench.analysis.statistics import paired_tests
from hambench.analysis.statistics.forecast import MIN_INFORMATIVE, PROMISED, blocks_needed
from hambench.analysis.statistics.paired_tests import PairedResult, log_ratio_of_sums, mean_difference
from hambench.analysis.verdicts import Sampled, verdict_of

SPEED, POINTS = math.log1p(0.05), 1.5


@pytest.fixture(autouse=True)
def few_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    """A permutation test of fewer flips: thousands of verdicts are asked for."""
    monkeypatch.setattr(paired_tests, "_NUM_FLIPS", 199)
    paired_tests._cached_signs.cache_clear()


def speed(rng: np.random.Generator, num: int, effect: float, sd: float) -> PairedResult:
    tokens = np.exp(rng.normal(4, 0.7, num))
    seconds = tokens * 0.03
    return log_ratio_of_sums([tokens, seconds / np.exp(rng.normal(effect, sd, num))], [tokens, seconds])


def accuracy(rng: np.random.Generator, num: int, rate: float, upwards: float) -> PairedResult:
    """Eight tasks; a share of the 0/1 scores changes."""
    each = math.ceil(num / 8)
    base = 100.0 * (rng.random(8 * each) < 0.3)
    changed, up = rng.random(8 * each) < rate, rng.random(8 * each) < upwards
    ours, theirs = np.where(changed, 100.0 * up, base), np.where(changed, 100.0 * ~up, base)
    return mean_difference(ours, theirs, strata=np.repeat(np.arange(8), each).tolist())


def decided_at_the_named_number(
    draw: Callable[[int], PairedResult], *, first: int, margin: float, runs: int
) -> tuple[float, list[int | None]]:
    named: list[int | None] = []
    decided = []
    for _ in range(runs):
        seen = draw(first)
        if verdict_of(seen, margin=margin, better="higher")[0] != "inconclusive":
            continue
        needed = blocks_needed(seen, margin=margin)
        named.append(needed)
        if needed is not None:
            assert needed > first
            decided.append(verdict_of(draw(needed), margin=margin, better="higher")[0] != "inconclusive")
    return (sum(decided) / len(decided) if decided else math.nan), named


@pytest.mark.parametrize("margins", [0.0, 1.5, 2.0, -2.0])
@pytest.mark.parametrize(("first", "sd"), [(8, 0.12), (18, 0.12), (8, 0.05)])
def test_the_named_number_decides_a_speed(first: int, sd: float, margins: float) -> None:
    rng = np.random.default_rng(first)
    share, named = decided_at_the_named_number(
        lambda num: speed(rng, num, margins * SPEED, sd), first=first, margin=SPEED, runs=60
    )
    assert len(named) > 5
    # 60 draws are within 0.1 of the promise
    assert share >= PROMISED - 0.1


@pytest.mark.parametrize(("rate", "upwards"), [(0.1, 0.5), (0.2, 0.2)])
def test_the_named_number_decides_an_accuracy(rate: float, upwards: float) -> None:
    rng = np.random.default_rng(2)
    share, named = decided_at_the_named_number(
        lambda num: accuracy(rng, num, rate, upwards), first=80, margin=POINTS, runs=40
    )
    assert len([number for number in named if number is not None]) > 5
    assert share >= PROMISED - 0.1


def test_close_to_the_margin_no_number_is_sure_and_none_is_promised() -> None:
    rng = np.random.default_rng(3)
    share, _ = decided_at_the_named_number(
        lambda num: speed(rng, num, SPEED, 0.05), first=8, margin=SPEED, runs=60
    )
    assert share < PROMISED


def test_no_number_is_named_where_too_few_samples_differ() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        result = accuracy(rng, 16, 0.05, 0.5)
        if result.num_informative < MIN_INFORMATIVE:
            assert blocks_needed(result, margin=POINTS) is None
            reason = verdict_of(result, margin=POINTS, better="higher")[1]
            assert "about" not in reason
            if result.num_informative:
                few = f"{result.num_informative} of 16 samples score differently"
                assert reason == f"{few}: too few to say how many would tell"


def test_the_number_is_asked_for_by_the_task_and_what_is_there_is_said() -> None:
    result = speed(np.random.default_rng(5), 16, 0.0, 0.12)
    needed = blocks_needed(result, margin=SPEED)
    assert needed is not None
    _, reason = verdict_of(result, margin=SPEED, better="higher", sampled=Sampled(groups=8))
    each = math.ceil(needed / 8)
    assert reason.endswith(f"about {needed:,} samples ({each:,} of each task) would tell; there are 16")


def test_a_real_effect_below_the_margin_has_a_word() -> None:
    result = PairedResult(
        effect=0.045, num_blocks=20, low=0.036, high=0.054, p_value=0.0005, sampled_variance=2e-5, degrees_of_freedom=19
    )  # fmt: skip
    verdict, reason = verdict_of(result, margin=SPEED, better="higher")
    assert verdict == "inconclusive"
    assert reason.startswith("real but small")
