"""The number of samples that "would tell" is measured: so many are drawn, and counted how often they tell."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from hambench.analysis.metrics import Better
from hambench.analysis.statistics import paired_tests
from hambench.analysis.statistics.forecast import (
    MIN_INFORMATIVE,
    MOST_NAMED,
    PROMISED,
    Forecast,
    blocks_needed,
)
from hambench.analysis.statistics.paired_tests import PairedResult, log_ratio_of_sums, mean_difference
from hambench.analysis.statistics.ratio_difference import equal_blocks_needed, ratio_difference
from hambench.analysis.verdicts import Sampled, verdict_of

SPEED, POINTS, NATS = math.log1p(0.05), 1.5, 0.05


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


def fidelity(rng: np.random.Generator, num: int, nats: float, differ: float) -> PairedResult:
    """Answers of some forty tokens; a share of them loses something on either side, the candidate's ``nats`` more."""
    tokens = np.round(rng.lognormal(3.7, 0.6, num).clip(4, 256))
    lost = np.where(rng.random(num) < differ, 1.0, 0.0)
    ours, base = lost * rng.exponential(0.05 + nats / differ, num), lost * rng.exponential(0.05, num)
    return ratio_difference((ours * tokens, tokens), (base * tokens, tokens), unseen=3.0)


def forecasts(
    draw: Callable[[int], PairedResult], *, first: int, margin: float, runs: int, better: Better = "higher"
) -> list[tuple[Forecast, bool]]:
    """Numbers that undecided draws name, each with whether a draw of that many decides."""
    named = []
    for _ in range(runs):
        seen = draw(first)
        if verdict_of(seen, margin=margin, better=better)[0] != "inconclusive":
            continue
        more = blocks_needed(seen, margin=margin)
        if more is not None:
            assert more.num_blocks > first
            then = verdict_of(draw(more.num_blocks), margin=margin, better=better)[0]
            named.append((more, then != "inconclusive"))
    return named


def share_decided(
    named: list[tuple[Forecast, bool]], *, would_tell: bool = True, unless_none: bool | None = None
) -> float:
    decided = [
        told
        for more, told in named
        if more.would_tell == would_tell and unless_none in (None, more.unless_none)
    ]
    assert len(decided) > 5
    return sum(decided) / len(decided)


@pytest.mark.parametrize("margins", [0.0, 1.5, 2.0, -2.0])
@pytest.mark.parametrize(("first", "sd"), [(8, 0.12), (18, 0.12), (8, 0.05)])
def test_the_named_number_decides_a_speed(first: int, sd: float, margins: float) -> None:
    rng = np.random.default_rng(first)
    named = forecasts(lambda num: speed(rng, num, margins * SPEED, sd), first=first, margin=SPEED, runs=60)
    # 60 draws are within 0.1 of the promise
    assert share_decided(named) >= PROMISED - 0.1


@pytest.mark.parametrize(("first", "rate", "upwards"), [(160, 0.04, 0.5), (160, 0.3, 0.35)])
def test_the_named_number_decides_an_accuracy(first: int, rate: float, upwards: float) -> None:
    rng = np.random.default_rng(2)
    named = forecasts(lambda num: accuracy(rng, num, rate, upwards), first=first, margin=POINTS, runs=60)
    assert share_decided(named) >= PROMISED - 0.1


@pytest.mark.parametrize(("nats", "differ"), [(0.0, 1.0), (0.09, 0.6), (0.1, 0.4)])
def test_the_named_number_decides_a_fidelity(nats: float, differ: float) -> None:
    rng = np.random.default_rng(6)
    named = forecasts(
        lambda num: fidelity(rng, num, nats, differ), first=18, margin=NATS, runs=60, better="lower"
    )
    assert share_decided(named) >= PROMISED - 0.1


def test_close_to_the_margin_no_number_is_sure_and_none_is_promised() -> None:
    rng = np.random.default_rng(3)
    named = forecasts(lambda num: speed(rng, num, SPEED, 0.05), first=8, margin=SPEED, runs=60)
    assert share_decided(named) < PROMISED


def test_a_number_that_helps_nobody_is_not_named() -> None:
    rng = np.random.default_rng(7)
    # a tenth of the scores changes, more often upwards, by the margin
    named = forecasts(lambda num: accuracy(rng, num, 0.15, 0.55), first=80, margin=POINTS, runs=40)
    assert all(more.num_blocks <= MOST_NAMED for more, _ in named)
    assert share_decided(named, would_tell=False) < PROMISED
    far = next(more for more, _ in named if not more.would_tell)
    assert far.num_blocks == MOST_NAMED
    rng = np.random.default_rng(8)
    while (result := accuracy(rng, 80, 0.15, 0.55)) and (more := blocks_needed(result, margin=POINTS)):
        if not more.would_tell:
            break
    _, reason = verdict_of(result, margin=POINTS, better="higher", sampled=Sampled(groups=8))
    assert reason.endswith("even 5,000 samples (625 of each task) may leave it open; there are 80")


@pytest.mark.parametrize(("nats", "differ"), [(1.2, 0.4), (0.6, 0.5)])
def test_a_large_loss_is_told_by_the_number_that_is_named_for_one(nats: float, differ: float) -> None:
    """To show that there is none would take thousands: the number is named for the case that there is one."""
    rng = np.random.default_rng(9)
    named = forecasts(
        lambda num: fidelity(rng, num, nats, differ), first=14, margin=NATS, runs=150, better="lower"
    )
    assert share_decided(named, unless_none=True) >= PROMISED - 0.1
    conditional = next(more for more, _ in named if more.unless_none)
    assert conditional.num_blocks < MOST_NAMED / 10


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("first", [6, 18])
def test_as_many_equal_answers_as_are_named_show_that_fidelity_holds(tokens: int, first: int) -> None:
    rng = np.random.default_rng(tokens)
    sizes = tokens * np.round(rng.lognormal(1, 0.5, first)).clip(1)
    needed = equal_blocks_needed((sizes, sizes), unseen=3.0, margin=NATS, most=MOST_NAMED)
    assert needed is not None
    for num, word in ((needed, "equivalent"), (needed - 1, "inconclusive")):
        side = (np.zeros(num), np.resize(sizes, num))
        assert verdict_of(ratio_difference(side, side, unseen=3.0), margin=NATS, better="lower")[0] == word
    # 1 − 0.05^(1/n) of the answers may differ, each by 3 nats at every token
    assert needed >= 179
    assert equal_blocks_needed((sizes, sizes), unseen=3.0, margin=NATS, most=needed - 1) is None


def test_no_number_is_named_where_too_few_samples_differ() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        result = accuracy(rng, 16, 0.05, 0.5)
        if result.num_informative < MIN_INFORMATIVE:
            assert blocks_needed(result, margin=POINTS) is None
            reason = verdict_of(result, margin=POINTS, better="higher")[1]
            assert "about" not in reason
            if result.num_informative:
                few = f"{result.num_informative} of 16 samples differ"
                assert reason == f"{few}: too few to say how many would tell"


def test_the_number_is_asked_for_by_the_task_and_what_is_there_is_said() -> None:
    result = speed(np.random.default_rng(5), 16, 0.0, 0.12)
    more = blocks_needed(result, margin=SPEED)
    assert more is not None
    needed = more.num_blocks
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
