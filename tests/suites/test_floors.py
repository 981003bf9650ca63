"""Floors and ceilings of the offline tasks: what answers that read nothing get, found again by other means."""

import dataclasses
import json
import statistics
from collections import Counter
from pathlib import Path

import pytest

from hambench.groups import Bounds, bounds_by_group
from hambench.suites import CaptureRequest, capture, floors
from hambench.suites.floors import bounds_of, compute_bounds
from hambench.suites.listing import describe
from hambench.suites.offline import OFFLINE
from hambench.suites.offline.guesses import MOST, spread

QUICK = (
    "doc-section-retrieval",
    "stdlib-line-number",
    "doc-key-fact",
    "doc-two-keys",
    "module-purpose",
    "module-look-up",
    "small-sums",
)


def test_guesses_are_spread_over_the_text():
    assert list(spread("abc")) == ["a", "b", "c"]
    assert list(spread(range(16))) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert list(spread([])) == []


def test_points_above_chance_are_0_at_the_floor_and_100_at_the_ceiling():
    bounds = Bounds(floor=25.0, floor_by="always A", ceiling=75.0)
    assert [bounds.corrected(points) for points in (0, 25, 50, 75)] == [-50, 0, 50, 100]
    assert Bounds(floor=50.0, floor_by="", ceiling=50.0).corrected(50.0) is None


def test_the_floor_of_balanced_classes_is_their_share():
    assert compute_bounds(OFFLINE["module-purpose"]).floor == pytest.approx(25)
    assert compute_bounds(OFFLINE["stdlib-line-kind"]).floor == pytest.approx(12.5)


def test_the_floor_of_a_program_is_the_share_of_one_problem():
    assert compute_bounds(OFFLINE["next-function"]).floor == pytest.approx(100 / 60)
    assert compute_bounds(OFFLINE["function-bodies"]).floor == pytest.approx(100 / 164)


def test_the_floor_of_a_number_is_the_commonest_one_or_a_random_one_of_the_text():
    rows = OFFLINE["stdlib-line-number"].build(OFFLINE["stdlib-line-number"].entry.num_rows)
    commonest = Counter(row["answers"][0] for row in rows).most_common(1)[0][1] / len(rows)
    bounds = compute_bounds(OFFLINE["stdlib-line-number"])
    assert bounds.floor >= 100 * commonest - 1e-9
    assert bounds.floor <= 10


def test_the_floor_of_a_fact_is_that_of_a_random_fact_at_least():
    def f1(one, two):
        # two words each, none twice
        shared = len(set(one.split()) & set(two.split()))
        return 2 * shared / (len(one.split()) + len(two.split()))

    rows = OFFLINE["doc-two-keys"].build(OFFLINE["doc-two-keys"].entry.num_rows)
    guesses = OFFLINE["doc-two-keys"].guesses
    by_hand = {
        name: 100
        * statistics.mean(statistics.mean(f1(each, row["answers"][0]) for each in guess(row)) for row in rows)
        for name, guess in guesses.items()
    }
    bounds = compute_bounds(OFFLINE["doc-two-keys"])
    assert bounds.floor >= max(by_hand.values()) - 1e-6
    assert by_hand.get(bounds.floor_by, bounds.floor) == pytest.approx(bounds.floor)


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    """An empty cache on disk, and none in memory."""
    monkeypatch.setenv("HAMBENCH_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache" / "offline"
    forget()


def forget():
    floors.bounds_of.cache_clear()
    floors._digest.cache_clear()


def refuse_to_compute(each, *, seed=0):
    raise AssertionError(f"{each.entry.name} is computed again")


@pytest.mark.parametrize("task", QUICK)
def test_floors_are_the_same_from_disk_and_computed_again(task, cache_folder, monkeypatch):
    computed = bounds_of(task)
    assert computed == compute_bounds(OFFLINE[task])
    forget()
    monkeypatch.setattr(floors, "compute_bounds", refuse_to_compute)
    assert bounds_of(task) == computed
    with pytest.raises(AssertionError, match="computed again"):
        bounds_of(task, 1)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"\xff", b'{"floor": 1}', b'{"floor": "1", "ceiling": []}']
)
def test_a_damaged_floor_on_disk_is_computed_again(cache_folder, content):
    expected = bounds_of("small-sums")
    (kept,) = cache_folder.glob("bounds-*")
    whole = kept.read_bytes()
    kept.write_bytes(content)
    forget()
    assert bounds_of("small-sums") == expected
    assert kept.read_bytes() == whole


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [(floors.sys, "version", "another build"), (floors, "scorer_of", str), (floors, "version_or_none", str)],
)
def test_what_makes_or_scores_the_rows_is_in_the_floors_key(cache_folder, monkeypatch, module, name, value):
    bounds_of("small-sums")
    monkeypatch.setattr(floors, "compute_bounds", refuse_to_compute)
    monkeypatch.setattr(module, name, value)
    forget()
    with pytest.raises(AssertionError, match="computed again"):
        bounds_of("small-sums")


def test_the_code_of_every_room_of_the_suites_is_in_the_floors_key(cache_folder, monkeypatch):
    read = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or read_bytes(path))
    floors._digest("x")
    # how a request is built, how answers are scored, how rows are made and columns checked
    assert {"task_requests.py", "longbench.py", "facts.py", "columns.py", "catalogue.py"} <= set(read)


def test_a_floor_is_given_where_it_can_not_be_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HAMBENCH_CACHE", str(tmp_path / "file" / "cache"))
    forget()
    assert bounds_of("module-purpose").floor == pytest.approx(25)


@pytest.mark.parametrize("each", OFFLINE.values(), ids=list(OFFLINE))
def test_every_task_has_a_floor_well_below_its_ceiling(each):
    bounds = bounds_of(each.entry.name)
    assert bounds.ceiling == pytest.approx(100)
    assert 0 <= bounds.floor <= 55
    assert bounds.floor_by


@pytest.mark.parametrize("each", [e for e in OFFLINE.values() if e.guesses], ids=lambda e: e.entry.name)
def test_guesses_find_values_in_every_text_and_never_look_at_the_answer(each):
    for row in each.build(16):
        blind = {**row, "answers": None}
        for name, guess in each.guesses.items():
            assert list(guess(blind)), (row["_id"], name)
        # the right answer is among the values, so that a random one of them is a fair guess
        if "any value of the text" in each.guesses:
            found = each.guesses["any value of the text"](row)
            assert row["answers"][0].removeprefix("Paragraph ") in found or len(found) == MOST


def test_a_capture_keeps_the_floors_and_the_listing_prints_them():
    captured = capture(CaptureRequest("offline-long", tasks=("doc-key-fact",), limit=1))
    bounds = bounds_of("doc-key-fact")
    assert captured.spec["tasks"]["doc-key-fact"]["bounds"] == dataclasses.asdict(bounds)
    assert bounds_by_group(json.loads(json.dumps(captured.spec))) == {
        "task:offline-long/doc-key-fact": bounds
    }
    (listed,) = [each for each in describe("offline-long") if each.task == "doc-key-fact"]
    assert (listed.floor, listed.ceiling, listed.floor_by) == (
        round(bounds.floor, 1),
        100.0,
        bounds.floor_by,
    )


def test_settings_of_ones_own_take_the_floor_away(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("tasks: [{task: doc-key-fact, max_gen_toks: 1}]\n")
    captured = capture(CaptureRequest(str(path), edition="offline", limit=1))
    assert "bounds" not in captured.spec["tasks"]["doc-key-fact"]


def test_official_tasks_have_no_floor_here():
    assert all(each.floor is None for each in describe("longbench"))
