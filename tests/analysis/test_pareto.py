from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hambench.analysis.metrics import Better
from hambench.analysis.pareto import Front, Point, front_of, pareto_front
from hambench.records import Comparison, Estimate, Measurement

coarse = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([math.nan, math.inf, -math.inf]))
planes = st.lists(st.tuples(coarse, coarse), max_size=12)
directions = st.sampled_from(["higher", "lower"])


def exact(values: list[tuple[float, float]], x: Better = "higher", y: Better = "higher") -> Front:
    points = [
        Point(label=str(i), x=Estimate(value=a), y=Estimate(value=b)) for i, (a, b) in enumerate(values)
    ]
    return pareto_front(points, x_better=x, y_better=y)


@given(planes, directions, directions)
def test_the_front_equals_a_brute_force_oracle(
    values: list[tuple[float, float]], x: Better, y: Better
) -> None:
    front = exact(values, x, y)
    signs = (1 if x == "higher" else -1, 1 if y == "higher" else -1)
    turned = {str(i): (signs[0] * a, signs[1] * b) for i, (a, b) in enumerate(values)}
    finite = {label: p for label, p in turned.items() if all(map(math.isfinite, p))}
    for label, (a, b) in turned.items():
        if label not in finite:
            assert front.standings[label] == "missing"
            continue
        beaten = any((c, d) != (a, b) and c >= a and d >= b for c, d in finite.values())
        assert front.standings[label] == ("dominated" if beaten else "front")
    assert front.num_missing == len(values) - len(finite)
    assert set(front.order) == {label for label, s in front.standings.items() if s == "front"}


@given(planes)
def test_along_the_front_one_axis_rises_while_the_other_falls(values: list[tuple[float, float]]) -> None:
    along = [values[int(label)] for label in exact(values).order]
    for (a, b), (c, d) in pairwise(along):
        assert (a, b) == (c, d) or (a < c and b > d)


def test_duplicates_share_their_standing_and_a_tie_on_one_axis_is_dominated() -> None:
    front = exact([(2, 2), (2, 2), (2, 1), (1, 2)])
    assert front.standings == {"0": "front", "1": "front", "2": "dominated", "3": "dominated"}
    assert front.order == ("0", "1")


def interval(label: str, x: float, y: float, half: float) -> Point:
    return Point(label=label, x=Estimate(value=x), y=Estimate(value=y, low=y - half, high=y + half))


def test_a_lead_within_the_intervals_is_a_tie_and_beyond_them_it_dominates() -> None:
    wide = pareto_front([interval("a", 10, 50, 5), interval("b", 10, 48, 5)])
    assert wide.standings == {"a": "front", "b": "tied"}
    narrow = pareto_front([interval("a", 10, 50, 1), interval("b", 10, 48, 1)])
    assert narrow.standings == {"a": "front", "b": "dominated"}


def test_a_tie_on_one_axis_does_not_excuse_a_clear_loss_on_the_other() -> None:
    front = pareto_front([interval("a", 20, 50, 5), interval("b", 10, 48, 5)])
    assert front.standings["b"] == "dominated"


@given(planes, st.floats(0, 5))
def test_wider_intervals_never_dominate_more(values: list[tuple[float, float]], half: float) -> None:
    points = [interval(str(i), x, y, half) for i, (x, y) in enumerate(values)]
    sharp, wide = exact(values), pareto_front(points)
    for label, standing in wide.standings.items():
        if standing == "dominated":
            assert sharp.standings[label] == "dominated"
        assert (standing == "front") == (sharp.standings[label] == "front")


def test_labels_must_be_unique() -> None:
    with pytest.raises(ValueError, match="unique"):
        pareto_front([interval("a", 1, 1, 0), interval("a", 2, 2, 0)])


def measurement(cell: str, *, tps: float | None, kv_bytes: float, accuracy: float) -> Measurement:
    names = (
        "ttft_s",
        "tpot_p50_s",
        "tpot_p90_s",
        "tpot_p99_s",
        "tokens_per_target_forward",
        "acceptance_rate",
    )
    more = ("mean_acceptance_length", "kv_compression_output", "kv_compression_total", "peak_memory_bytes")
    return Measurement(
        cell=cell, group="all", num_samples=9, num_errors=0, num_tokens=9, tps=tps, kv_bytes=kv_bytes,
        accuracy=Estimate(value=accuracy, low=accuracy - 20, high=accuracy + 20, n=9), **dict.fromkeys((*names, *more)),
    )  # fmt: skip


def test_fewer_bytes_and_more_tokens_per_second_are_each_the_better_direction() -> None:
    small = measurement("small", tps=5, kv_bytes=10, accuracy=50)
    fast = measurement("fast", tps=9, kv_bytes=90, accuracy=50)
    lost = measurement("lost", tps=None, kv_bytes=90, accuracy=40)
    assert front_of([small, fast, lost], x="kv_bytes").order == ("small",)
    speed = front_of([small, fast, lost], x="tps")
    assert speed.order == ("fast",)
    assert speed.standings["lost"] == "missing"


def test_paired_intervals_replace_a_cells_own() -> None:
    base = measurement("base", tps=10, kv_bytes=1, accuracy=50)
    worse = measurement("worse", tps=10, kv_bytes=1, accuracy=45)
    assert front_of([base, worse], x="tps").standings["worse"] == "tied"
    effect = Estimate(value=-5, low=-6, high=-4, n=9)
    paired = Comparison(
        candidate="worse", baseline="base", group="all", metric="accuracy", effect=effect, verdict="worse"
    )
    assert front_of([base, worse], x="tps", comparisons=[paired]).standings["worse"] == "dominated"


def test_a_lead_over_a_point_without_interval_rests_on_the_leaders_own() -> None:
    base = Point(label="base", x=Estimate(value=28.0), y=Estimate(value=50.0))
    unsure = Point(label="unsure", x=Estimate(value=44.0, low=24.0, high=78.0), y=Estimate(value=50.0))
    sure = Point(label="sure", x=Estimate(value=44.0, low=40.0, high=48.0), y=Estimate(value=50.0))
    assert pareto_front([base, unsure]).standings["base"] == "tied"
    assert pareto_front([base, sure]).standings["base"] == "dominated"
