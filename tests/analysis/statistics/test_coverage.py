"""Every 95 % interval of the program covers at least 93 % wherever it is printed; see ``interval_coverage.py``."""

from __future__ import annotations

import math

import numpy as np
import pytest
from interval_coverage import LEAST, SAMPLES, documented, table

from hambench.analysis.statistics.intervals import largest_unseen_rate, mean_interval
from hambench.analysis.verdicts import best_of
from hambench.history.shifts import CONFIDENCE, MIN_RUNS, prediction_interval
from hambench.records import Comparison, Estimate

Rows = dict[tuple[str, str], list[float | None]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    return table()


def test_a_printed_interval_covers(rows: Rows) -> None:
    low = {
        f"{name}, {kind}, n = {n}: {share:.1f} %"
        for (name, kind), shares in rows.items()
        for n, share in zip(SAMPLES, shares, strict=True)
        if share is not None and share < LEAST
    }
    assert low == set()


def test_the_table_of_the_documentation_is_this_one(rows: Rows) -> None:
    shown = documented()
    assert shown.keys() == rows.keys()
    for key, shares in rows.items():
        for here, there in zip(shares, shown[key], strict=True):
            assert (here is None) == (there is None), key
            # another numpy may draw other numbers
            assert here is None or here == pytest.approx(there, abs=1.5), key


def test_an_interval_that_is_printed_from_some_number_on_stays_printed(rows: Rows) -> None:
    for shares in rows.values():
        printed = [share is not None for share in shares]
        assert printed == sorted(printed)
        assert printed[-1]


@pytest.mark.parametrize("trials", [1, 2, 3, 5, 8, 20, 168])
def test_a_rate_that_was_never_seen_is_above_its_bound_in_one_of_twenty_samples(trials: int) -> None:
    assert (1 - largest_unseen_rate(trials)) ** trials == pytest.approx(0.05)


@pytest.mark.parametrize(("num_settings", "num_samples"), [(2, 8), (9, 8), (18, 20)])
def test_the_interval_of_the_best_of_many_settings_covers(num_settings: int, num_samples: int) -> None:
    rng = np.random.default_rng(num_settings)
    covered = {"best": 0, "uncorrected": 0}
    for _ in range(1_000):
        logs = rng.normal(0, 0.1, (num_settings, num_samples))
        interval = mean_interval(logs.mean(axis=-1), logs, np.ones_like(logs))
        best = int(logs.mean(axis=-1).argmax())
        effect = Estimate(
            value=math.exp(logs[best].mean()),
            low=math.exp(interval.low[best]),
            high=math.exp(interval.high[best]),
        )
        row = Comparison(
            candidate="a", baseline="b", group="all", metric="tps", effect=effect, verdict="inconclusive",
            degrees_of_freedom=float(interval.degrees_of_freedom[best]),
        )  # fmt: skip
        widened = best_of(row, num_settings)
        assert widened is not None
        covered["best"] += (widened.low or 0) <= 1 <= (widened.high or 0)
        covered["uncorrected"] += (effect.low or 0) <= 1 <= (effect.high or 0)
    assert covered["best"] / 1_000 >= 0.93
    assert covered["uncorrected"] < covered["best"]


@pytest.mark.parametrize("num_runs", [MIN_RUNS, 20])
@pytest.mark.parametrize("tails", ["normal", "heavy"])
def test_the_next_run_lies_where_it_is_expected(num_runs: int, tails: str) -> None:
    rng = np.random.default_rng(num_runs)
    draws = rng.normal(0, 0.02, (3_000, num_runs + 1))
    if tails == "heavy":
        draws = 0.02 * rng.standard_t(4, draws.shape)
    inside = 0
    for logs in draws:
        _, low, high = prediction_interval(logs[:-1])
        inside += low <= logs[-1] <= high
    assert inside / 3_000 >= (CONFIDENCE - 0.005 if tails == "normal" else 0.97)
