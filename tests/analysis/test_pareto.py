from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hambench.analysis.arms import Arm
from hambench.analysis.metrics import Better
from hambench.analysis.pareto import Front, Point, Relation, mirrored, pareto_front, relation_along
from hambench.analysis.verdicts import Margins
from hambench.records import Estimate, GenerationTrace, Sample, SampleRecord, StepRecord, Verdict

coarse = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([math.nan, math.inf, -math.inf]))
planes = st.lists(st.tuples(coarse, coarse), max_size=12)
directions = st.sampled_from(["higher", "lower"])


def by_value(values: dict[str, float], better: Better = "higher") -> Relation:
    """The verdicts that exact values would get."""

    def along(a: str, b: str) -> Verdict:
        if values[a] == values[b]:
            return "equivalent"
        return "better" if (values[a] > values[b]) == (better == "higher") else "worse"

    return along


def exact(values: list[tuple[float, float]], x: Better = "higher", y: Better = "higher") -> Front:
    points = [
        Point(label=str(i), x=Estimate(value=a), y=Estimate(value=b)) for i, (a, b) in enumerate(values)
    ]
    relations = (
        by_value({str(i): a for i, (a, _) in enumerate(values)}, x),
        by_value({str(i): b for i, (_, b) in enumerate(values)}, y),
    )
    return pareto_front(points, relations=relations, x_better=x, y_better=y)


@given(planes, directions, directions)
def test_with_exact_verdicts_the_front_equals_a_brute_force_oracle(
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
        twins = sum(other == (a, b) for other in finite.values()) > 1
        # of two settings that are equal in both ways neither is shown to be better than the other
        expected = "dominated" if beaten else ("open" if twins else "front")
        assert front.standings[label] == expected
        assert (label in front.order) == (not beaten)
    assert front.num_missing == len(values) - len(finite)


@given(planes)
def test_along_the_order_one_axis_rises_while_the_other_falls(values: list[tuple[float, float]]) -> None:
    along = [values[int(label)] for label in exact(values).order]
    for (a, b), (c, d) in pairwise(along):
        assert (a, b) == (c, d) or (a < c and b > d)


def points(*values: tuple[str, float, float]) -> list[Point]:
    return [Point(label=label, x=Estimate(value=x), y=Estimate(value=y)) for label, x, y in values]


def test_without_comparisons_nothing_is_shown() -> None:
    front = pareto_front(points(("a", 30.1, 40), ("b", 30.0, 40)))
    assert front.standings == {"a": "open", "b": "open"}
    assert front.order == ("a",)
    assert pareto_front(points(("only", 1, 1))).standings == {"only": "front"}


@pytest.mark.parametrize(
    ("along_x", "along_y", "of_a", "of_b"),
    [
        ("better", "equivalent", "front", "dominated"),
        ("better", "better", "front", "dominated"),
        ("better", "inconclusive", "front", "open"),
        ("better", "not comparable", "front", "open"),
        ("better", "worse", "front", "front"),
        ("equivalent", "equivalent", "open", "open"),
        ("inconclusive", "equivalent", "open", "open"),
        ("not comparable", "worse", "open", "front"),
    ],
)
def test_what_is_said_follows_from_the_two_verdicts(
    along_x: Verdict, along_y: Verdict, of_a: str, of_b: str
) -> None:
    def relation(word: Verdict) -> Relation:
        return lambda first, _: word if first == "a" else mirrored(word)

    # the measured values say that a beats b on both axes
    front = pareto_front(points(("a", 2, 2), ("b", 1, 1)), relations=(relation(along_x), relation(along_y)))
    assert front.standings == {"a": of_a, "b": of_b}


@pytest.mark.parametrize("word", get_args(Verdict))
def test_every_word_has_a_mirror(word: Verdict) -> None:
    assert mirrored(mirrored(word)) == word


def test_labels_must_be_unique() -> None:
    with pytest.raises(ValueError, match="unique"):
        pareto_front(points(("a", 1, 1), ("a", 2, 2)))


def arms_of_equal_settings(rng: np.random.Generator, num: int) -> tuple[dict[str, Arm], dict[str, Sample]]:
    """Settings whose speed and accuracy are the same, answering the same eight samples."""
    samples = {
        str(i): Sample(
            sample_id=str(i),
            suite="s",
            task="t",
            category="c",
            doc_id=i,
            prompt="p",
            stop=(),
            max_new_tokens=9,
        )
        for i in range(8)
    }
    arms = {}
    for setting in range(num):
        records = {}
        for i in range(8):
            pace = 0.01 * float(np.exp(rng.normal(0, 0.1)))
            steps = (
                StepRecord(tokens=(setting,), seconds=1.0, kv_bytes=100),
                *(StepRecord(tokens=(1,), seconds=pace, kv_bytes=100) for _ in range(20)),
            )
            trace = GenerationTrace(prompt_tokens=9, steps=steps, finish="length")
            records[str(i), 0] = SampleRecord(
                cell=str(setting), sample_id=str(i), prompt_hash="h", trace=trace
            )
        scores = {(str(i), 0): 100.0 * float(rng.random() < 0.5) for i in range(8)}
        arms[str(setting)] = Arm(str(setting), records, scores)
    return arms, samples


def test_of_equal_settings_hardly_one_is_ever_called_dominated() -> None:
    rng = np.random.default_rng(0)
    dominated = 0
    for _ in range(30):
        arms, samples = arms_of_equal_settings(rng, 5)
        along = [
            relation_along(arms, samples, metric, group="all", margins=Margins())
            for metric in ("tps", "accuracy")
        ]
        values = points(*((label, rng.random(), rng.random()) for label in arms))
        front = pareto_front(values, relations=(along[0], along[1]))
        dominated += "dominated" in front.standings.values()
    assert dominated <= 2


def test_speeds_of_two_runs_are_never_held_against_each_other() -> None:
    arms, samples = arms_of_equal_settings(np.random.default_rng(1), 3)
    runs = {"0": "monday", "1": "tuesday", "2": "tuesday"}
    along = relation_along(arms, samples, "tps", group="all", margins=Margins(), runs=runs)
    assert along("0", "1") == along("1", "0") == "not comparable"
    assert along("1", "2") != "not comparable"
