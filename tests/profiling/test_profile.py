from __future__ import annotations

import dataclasses
import gzip
import importlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from fakes_hamburger import save_tiny_hamburger

from hambench.decoding import SamplingParams, answered
from hambench.errors import HambenchError
from hambench.method_facts import Phase
from hambench.methods.hamburger import HamburgerConfig
from hambench.profiling.memory import Change, levels_of
from hambench.profiling.profile import (
    ELSE,
    ENGINE_PHASES,
    Profile,
    Recorder,
    idle_cost,
    phase,
    profile_method,
    recording,
)
from hambench.registry import BUILTIN, method_config
from hambench.reports.terminal.profile import render_profiles

PARAMS = SamplingParams(max_new_tokens=12)


def resolve(module: str, attribute: str) -> object:
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def profiled(target: Any, name: str, **options: Any) -> Profile:
    config = method_config(name)()
    return profile_method(config.build(target), [3, 1, 4, 1, 5], PARAMS, phases=config.phases, **options)


def test_a_phase_outside_a_recording_does_nothing_and_inside_it_counts() -> None:
    with phase("alone"):
        pass
    with recording(Recorder()) as recorder:
        for _ in range(3):
            with phase("outer"), phase("inner"):
                pass
    assert recorder.calls == {("outer",): 3, ("outer", "inner"): 3}


def test_time_inside_a_phase_belongs_to_the_innermost() -> None:
    with recording(Recorder()) as recorder, phase("outer"):
        with phase("inner"):
            time.sleep(0.05)
        time.sleep(0.01)
    inner, outer = recorder.seconds["outer", "inner"], recorder.seconds["outer",]
    assert inner >= 0.05
    assert 0.01 <= outer < inner


def test_a_phase_decorates_functions_and_survives_errors() -> None:
    @phase("failing")
    def fail() -> None:
        raise KeyError("x")

    with recording(Recorder()) as recorder:
        for _ in range(2):
            with pytest.raises(KeyError):
                fail()
        with phase("after"):
            pass
    assert recorder.calls == {("failing",): 2, ("after",): 1}


def test_a_device_is_waited_for_at_both_ends_of_a_phase() -> None:
    waits: list[int] = []
    with recording(Recorder(synchronize=lambda: waits.append(1))), phase("a"), phase("b"):
        pass
    assert len(waits) == 4


@pytest.mark.parametrize("name", BUILTIN)
def test_every_phase_exists_and_is_itself_again_after_a_recording(name: str) -> None:
    phases = (*ENGINE_PHASES, *method_config(name).phases)
    before = [resolve(named.module, named.function) for named in phases]
    with recording(Recorder(), phases):
        during = [resolve(named.module, named.function) for named in phases]
    assert all(one is not other for one, other in zip(before, during, strict=True))
    assert [resolve(named.module, named.function) for named in phases] == before


def test_a_phase_that_names_no_function_is_one_clear_line_and_leaves_nothing_wrapped() -> None:
    first = ENGINE_PHASES[0]
    before = resolve(first.module, first.function)
    with (
        pytest.raises(HambenchError, match=r"phase 'draft' names hambench\.engine\.llama:nothing"),
        recording(Recorder(), (Phase("hambench.engine.llama", "nothing", "draft"),)),
    ):
        pass
    assert resolve(first.module, first.function) is before


def test_recordings_do_not_nest() -> None:
    with recording(Recorder()), pytest.raises(RuntimeError, match="already"), recording(Recorder()):
        pass


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vanilla", {("forward", "layers"), ("forward", "lm head"), ("sample",)}),
        (
            "speculative",
            {("draft", "forward", "layers"), ("verify", "forward", "layers"), ("verify", "accept")},
        ),
        ("prompt_lookup", {("draft",), ("verify", "forward", "layers")}),
        ("suffix", {("draft",), ("verify", "forward", "layers")}),
    ],
)
def test_phases_of_each_method_add_up_to_the_wall_time(
    target: Any, name: str, expected: set[tuple[str, ...]]
) -> None:
    profile = profiled(target, name)
    assert expected | {(ELSE,)} <= {row.path for row in profile.rows}
    assert profile.accounted_s == pytest.approx(profile.wall_s, rel=0.03)
    assert all(row.seconds >= 0 for row in profile.rows)
    assert profile.num_tokens == PARAMS.max_new_tokens - 1
    assert profile.prefill_s > 0


def test_hamburgers_phases_are_named_and_add_up(target: Any, tmp_path: Path) -> None:
    config = HamburgerConfig(confidence=0.0, checkpoint=str(save_tiny_hamburger(tmp_path)))
    profile = profile_method(config.build(target), [3, 1, 4, 1, 5], PARAMS, phases=config.phases)
    expected = {
        ("embedder",),
        ("forward", "layers"),
        ("micro-step", "layers"),
        ("lm head",),
        ("stop head",),
        ("sample",),
    }
    assert expected <= {row.path for row in profile.rows}
    assert profile.accounted_s == pytest.approx(profile.wall_s, rel=0.03)


def test_time_that_is_counted_twice_or_in_no_phase_does_not_add_up_and_the_table_says_so(
    target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = profiled(target, "vanilla")
    assert "off the wall time" not in render_profiles([honest])
    lost = dataclasses.replace(honest, rows=honest.rows[1:])
    assert "phases' sum is off the wall time by -" in render_profiles([lost])

    def counts_twice(self: Recorder) -> None:
        self._open[-1].inside = 0.0
        original(self)

    original = Recorder.exit
    monkeypatch.setattr(Recorder, "exit", counts_twice)
    twice = profiled(target, "vanilla")
    assert twice.accounted_s > 1.03 * twice.wall_s
    assert "phases' sum is off the wall time by +" in render_profiles([twice])


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("name", ["vanilla", "speculative", "prompt_lookup", "hamburger"])
def test_phases_add_up_on_the_embedded_model(name: str) -> None:
    from hambench.models.target import DEFAULT_MODEL, load

    target = load(DEFAULT_MODEL)
    config = method_config(name)()
    profile = profile_method(config.build(target), list(range(100, 130)), PARAMS, phases=config.phases)
    assert profile.accounted_s == pytest.approx(profile.wall_s, rel=0.03)


def test_ranges_that_are_off_are_counted_and_timed_and_none_is_left_in_the_code(target: Any) -> None:
    def used_three_times() -> None:
        for _ in range(3):
            with phase("mine"):
                pass

    cost = idle_cost(used_three_times, num_timed=1000)
    assert cost.num_ranges == 3
    assert 0 < cost.seconds_each < 1e-4
    before = phase.__enter__
    assert idle_cost(lambda: _answer(target), num_timed=10).num_ranges == 0
    assert phase.__enter__ is before


def _answer(target: Any) -> None:
    session = method_config("speculative")().build(target).start([1, 2, 3], PARAMS)
    answered(session.prefill())
    answered(session.step())


def test_vanilla_runs_each_part_once_a_token(target: Any) -> None:
    calls = {row.path: row.calls for row in profiled(target, "vanilla").rows}
    assert calls["forward",] == calls["forward", "lm head"] == calls["sample",] == PARAMS.max_new_tokens - 1


def test_the_trace_is_chromes_format_and_holds_the_phases(target: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "vanilla.trace.json.gz"
    profiled(target, "vanilla", trace_to=path)
    with gzip.open(path, "rt") as file:
        events = json.load(file)["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"prefill", "decode", "forward", "lm head"} <= names


def test_a_phase_that_is_not_recorded_costs_less_than_a_two_thousandth_of_a_tiny_models_step(
    target: Any,
) -> None:
    def best(run: Any, repeats: int) -> float:
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        return min(times)

    def thousand() -> None:
        for _ in range(1000):
            with phase("off"):
                pass

    session = method_config("vanilla")().build(target).start([1, 2, 3], SamplingParams(max_new_tokens=100))
    answered(session.prefill())
    # ten phases a step then cost less than 0.5 %, on a model thousands of times smaller than any that is measured
    assert best(thousand, 20) / 1000 < best(lambda: answered(session.step()), 50) / 2000


def test_the_table_shows_two_methods_side_by_side(target: Any) -> None:
    text = render_profiles([profiled(target, "vanilla"), profiled(target, "speculative")])
    assert "vanilla" in text
    assert "draft › forward › layers" in text
    assert "–" in text
    total = next(line for line in text.splitlines() if line.startswith("total"))
    assert total.count("100.0%") + total.count("99.") == 2


@pytest.mark.parametrize("name", ["vanilla", "speculative", "prompt_lookup"])
def test_memory_is_read_at_every_step_and_holds_at_least_the_cache(target: Any, name: str) -> None:
    memory = profiled(target, name).memory
    assert memory[-1].num_tokens == PARAMS.max_new_tokens
    assert [point.num_tokens for point in memory] == sorted({point.num_tokens for point in memory})
    for point in memory:
        assert point.kv_bytes is not None
        assert point.held_bytes >= point.kv_bytes > 0
        assert point.activation_bytes > 0


def test_a_cache_that_is_made_whole_is_held_from_the_first_step_and_filled_later(target: Any) -> None:
    memory = profiled(target, "vanilla").memory
    slot = target.llama.new_cache(1).bytes_per_slot
    capacity = 5 + PARAMS.max_new_tokens
    for index, point in enumerate(memory):
        assert point.kv_bytes == (5 + index) * slot
        assert capacity * slot <= point.held_bytes < 2 * capacity * slot


def test_levels_follow_allocations_and_a_peak_belongs_to_its_step() -> None:
    end = None
    changes = [(1, 100), (2, 50), (3, -50), (4, end), (5, 10), (6, -10), (7, end), (8, -100), (9, end)]
    levels = levels_of([Change(at, size) for at, size in changes])
    assert list(levels) == [(100, 150), (100, 110), (0, 100)]


def test_the_memory_table_shows_first_last_and_highest_step(target: Any) -> None:
    profile = profiled(target, "vanilla")
    points = list(profile.memory)
    points[4] = dataclasses.replace(points[4], peak_bytes=10**9)
    text = render_profiles([dataclasses.replace(profile, memory=tuple(points))])
    steps = [line.split()[0] for line in text.partition("after step")[2].splitlines()[1:]]
    assert steps[0] == "0"
    assert steps[-1] == str(len(points) - 1)
    assert "4 (highest)" in text
    assert "1000.00" in text
