"""Shifts of a series: found soon, rarely imagined, and never across a change of the environment."""

import math
from pathlib import Path

import numpy as np
import pytest

from hambench.history.archive import Annotation, Entry, History, Pin, Tracked
from hambench.history.shifts import MIN_RUNS, Point, describe_series, find_shifts, points_of


def points(values, segments=None):
    return [
        Point(run_id=f"r{i}", created_at=f"2026-01-01T00:{i:02d}", commit=None, value=v, segment=s)
        for i, (v, s) in enumerate(zip(values, segments or [0] * len(values), strict=True))
    ]


def noisy(rng, count, level=1.5, sigma=0.01):
    return list(level * np.exp(rng.normal(0, sigma, count)))


def kinds(values, **options):
    return [(f.kind, f.index, f.better) for f in find_shifts(points(values), **options)[0]]


FLAT = [1.5 + 0.004 * (-1) ** i for i in range(12)]


def test_a_step_is_a_shift_once_a_second_run_confirms_it():
    assert kinds([*FLAT, 1.4]) == [("watch", 12, False)]
    assert kinds([*FLAT, 1.4, 1.4]) == [("shift", 12, False)]


def test_a_single_run_that_comes_back_is_an_outlier():
    assert kinds([*FLAT, 1.2, 1.5, 1.5]) == [("outlier", 12, False)]


def test_two_runs_on_opposite_sides_are_two_outliers():
    assert [kind for kind, *_ in kinds([*FLAT, 1.2, 1.9, 1.5])] == ["outlier", "outlier"]


def test_after_a_shift_the_new_level_is_the_normal_one():
    after = [1.4 + 0.004 * (-1) ** i for i in range(12)]
    assert kinds([*FLAT, *after]) == [("shift", 12, False)]


def test_direction_follows_what_is_better():
    assert kinds([*FLAT, 1.7, 1.7])[0] == ("shift", 12, True)
    assert kinds([*FLAT, 1.7, 1.7], better="lower")[0] == ("shift", 12, False)


def test_too_few_runs_say_nothing():
    assert kinds([*FLAT[:MIN_RUNS], 0.5]) != []
    assert kinds([*FLAT[: MIN_RUNS - 1], 0.5]) == []


def test_a_constant_series_does_not_alarm_at_a_hair():
    assert kinds([1.5] * 12 + [1.5 * 1.0001] * 2) == []
    assert kinds([1.5] * 12 + [1.3] * 2) == [("shift", 12, False)]


@pytest.mark.parametrize("gone", [0.0, -1.0])
def test_a_value_that_fell_to_nothing_is_found(gone):
    assert kinds([*FLAT, gone, gone])[0][0] == "shift"


def test_a_new_segment_starts_anew():
    values, segments = [*FLAT, *[1.2] * 6], [0] * 12 + [1] * 6
    # only the six runs of the new segment count
    assert find_shifts(points(values, segments)) == ([], 5)
    assert find_shifts(points(values))[0] != []


def test_noise_alone_is_rarely_a_shift_and_a_step_of_five_percent_rarely_missed():
    rng = np.random.default_rng(1)
    false = sum(any(k == "shift" for k, *_ in kinds(noisy(rng, 20))) for _ in range(500))
    assert false / 500 <= 0.01
    found = 0
    for _ in range(300):
        values = noisy(rng, 16) + noisy(rng, 2, level=1.5 * 0.95)
        found += ("shift", 16, False) in kinds(values)
    assert found / 300 >= 0.80


def entry(number, value, **changes):
    fields = {
        "schema_version": 1,
        "run_id": f"r{number}",
        "created_at": f"2026-01-{number + 1:02d}",
        "commit": None,
        "suite": "s",
        "edition": "offline",
        "machine": "m",
        "machine_facts": {},
        "versions": {"torch": "1", "python": "3.11"},
        "model": "toy",
        "data": "d",
        "series": {"tps_ratio": {"x": Tracked(value=value, unit="× vanilla", better="higher")}},
    }
    return Entry(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"versions": {"torch": "2", "python": "3.11"}}, "torch 1 → 2"),
        ({"model": "other"}, "other weights"),
        ({"data": "e"}, "other prompts"),
    ],
)
def test_what_changed_in_the_environment_breaks_the_series_and_is_named(changes, why):
    entries = [entry(0, 1.0), entry(1, 1.0), entry(2, 1.0, **changes), entry(3, 1.0, **changes)]
    made = points_of(entries, "tps_ratio", "x")
    assert [point.segment for point in made] == [0, 0, 1, 1]
    assert made[2].broken_by == why


def test_an_annotation_breaks_only_if_it_says_so_and_only_its_machine():
    entries = [entry(number, 1.0) for number in range(3)]

    def segments(**fields):
        made = Annotation(created_at="2026-01-02", at="2026-01-02", text="cooling", **fields)
        return [point.segment for point in points_of(entries, "tps_ratio", "x", [made])]

    assert segments(breaks=True) == [0, 1, 1]
    assert segments() == [0, 0, 0]
    assert segments(breaks=True, machine="another") == [0, 0, 0]


def test_a_value_that_is_no_number_is_no_point():
    assert len(points_of([entry(0, 1.0), entry(1, math.nan)], "tps_ratio", "x")) == 1


def test_a_creep_that_no_window_sees_shows_against_a_pin():
    entries = [entry(number, 1.5 * 0.995**number) for number in range(20)]
    pins = {"release": Pin(name="release", run_id="r0", created_at="2026-01-01")}
    history = History(root=Path(), entries=tuple(entries), pins=pins, annotations=())
    series = describe_series(history, entries, "tps_ratio", "x")
    assert series.since_pins["release"] == pytest.approx(0.995**19)
    assert series.lost is False
    assert any("since release: -9" in line for line in series.lines())


@pytest.mark.parametrize(
    ("num_runs", "last", "lost", "words"),
    [
        (3, 0.5, None, "too few runs to tell: 3 of 9 runs"),
        (8, 0.5, None, "too few runs to tell: 8 of 9 runs"),
        (9, 1.0, False, "no confirmed loss"),
        (9, 0.5, False, "no confirmed loss"),
    ],
)
def test_with_too_few_runs_nothing_is_said_of_a_loss(num_runs, last, lost, words):
    rng = np.random.default_rng(0)
    values = [*(1.0 + 0.01 * rng.normal(size=num_runs - 1)), last]
    entries = [entry(number, value) for number, value in enumerate(values)]
    history = History(root=Path(), entries=tuple(entries), pins={}, annotations=())
    series = describe_series(history, entries, "tps_ratio", "x")
    assert series.lost is lost
    assert series.verdict.startswith(words)
    assert series.as_dict()["lost"] is lost
    assert any(words in line for line in series.lines())


def test_a_second_run_below_is_a_loss_and_the_runs_after_it_are_counted_anew():
    values = [1.0, 1.01, 0.99, 1.0, 1.01, 1.0, 0.99, 1.0, 0.5, 0.5, 0.5]
    entries = [entry(number, value) for number, value in enumerate(values)]

    def series(number):
        history = History(root=Path(), entries=tuple(entries[:number]), pins={}, annotations=())
        return describe_series(history, entries[:number], "tps_ratio", "x")

    assert [series(number).lost for number in (9, 10, 11)] == [False, True, None]
    assert series(11).verdict == "too few runs to tell: 3 of 9 runs since the last change"
