from __future__ import annotations

import dataclasses
import json
import math
import statistics
from pathlib import Path

import pytest
from click.testing import CliRunner
from fakes import tiny_target

import hambench.engine.loop as engine_loop
from hambench.bench.asking import measure
from hambench.bench.asking.loops import BareSpeculative, BareVanilla, EngineLoop
from hambench.bench.asking.measure import AskingCost, Turn, compare_loops, measure_asking
from hambench.bench.asking.models import Call, NotedCalls
from hambench.cli.bench.overhead import command
from hambench.decoding import SamplingParams
from hambench.engine.llama import Llama
from hambench.engine.requests.rows import ChainStop
from hambench.errors import HambenchError
from hambench.methods.speculative import Speculative, SpeculativeConfig
from hambench.methods.vanilla import Vanilla, VanillaConfig
from hambench.models.target import load

PROMPT_IDS = [5, 17, 5, 17, 9, 5]
BARE = {"vanilla": BareVanilla, "rejected drafts": BareSpeculative, "accepted drafts": BareSpeculative}


@pytest.fixture(autouse=True)
def few_turns_at_once(monkeypatch):
    monkeypatch.setattr(measure, "AT_ONCE_STEPS", 20)
    monkeypatch.setattr(measure, "AT_ONCE_TURNS", 3)


def method_named(name: str) -> Vanilla | Speculative:
    target = tiny_target()
    if name == "vanilla":
        return VanillaConfig().build(target)
    method = SpeculativeConfig(num_draft_tokens=4).build(target)
    return dataclasses.replace(
        method, draft=target.llama if name == "accepted drafts" else tiny_target(seed=1).llama
    )


class WorkClock:
    """Stands still but for the work that is charged to it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """A clock on which a greedy forward of the model takes a second, and all else no time."""
    clock = WorkClock()
    forward = Llama.greedy

    def greedy(self, tokens, cache, *, num_tokens=1):
        clock.now += 1.0
        return forward(self, tokens, cache, num_tokens=num_tokens)

    monkeypatch.setattr(Llama, "greedy", greedy)
    return clock


@pytest.mark.parametrize("name", BARE)
@pytest.mark.parametrize("max_new_tokens", [2, 3, 24])
def test_both_loops_make_the_same_calls_and_give_the_same_tokens(name, max_new_tokens):
    method, params = method_named(name), SamplingParams(max_new_tokens=max_new_tokens)
    noted, tokens = [], []
    for kind in (EngineLoop, BARE[name]):
        calls: list[Call] = []
        other = {
            "target": dataclasses.replace(
                method.target, llama=NotedCalls("target", method.target.llama, calls)
            )
        }
        if name != "vanilla":
            other["draft"] = NotedCalls("draft", method.draft, calls)
        loop = kind(dataclasses.replace(method, **other), PROMPT_IDS, params)
        loop.prefill()
        loop.advance(max_new_tokens)
        noted.append(calls)
        tokens.append(loop.tokens)
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == max_new_tokens
    assert noted[0] == noted[1]
    if name == "vanilla":
        prompt = Call("target", "prefill", 6, 0, 1)
        steps = [Call("target", "greedy", 1, 6 + number, 1) for number in range(max_new_tokens - 1)]
        assert noted[0] == [prompt, *steps]
    else:
        assert {call.model for call in noted[0]} == {"target", "draft"}


@pytest.mark.parametrize("name", ["rejected drafts", "accepted drafts"])
def test_the_compared_answers_reject_and_accept_drafts(name):
    trace = engine_loop.generate(method_named(name), PROMPT_IDS, SamplingParams(max_new_tokens=24))
    kept = {step.accepted == step.drafted for step in trace.steps[1:] if step.drafted}
    assert (name == "accepted drafts") in kept


@pytest.mark.parametrize("name", BARE)
def test_without_a_cost_of_asking_the_ratio_is_one(name, clock):
    cost = compare_loops(
        method_named(name), BARE[name], PROMPT_IDS, num_answers=2, max_new_tokens=25, clock=clock
    )
    assert cost.ratio.value == pytest.approx(1)
    assert cost.added_us.value == pytest.approx(0)


def test_a_slow_asking_path_shows_in_the_ratio(clock, monkeypatch):
    answered = engine_loop.answered

    def slowly(asked, *answer):
        clock.now += 0.5
        return answered(asked, *answer)

    monkeypatch.setattr(engine_loop, "answered", slowly)
    cost = compare_loops(
        method_named("vanilla"), BareVanilla, PROMPT_IDS, num_answers=2, max_new_tokens=25, clock=clock
    )
    assert cost.ratio.value == pytest.approx(1.5)
    assert cost.bare_us == pytest.approx(1e6)
    assert cost.added_us.value == pytest.approx(0.5e6)
    assert [[turn.num_steps for turn in turns] for turns in cost.answers] == [[4] * 6] * 2


def test_a_slow_asking_path_shows_on_the_machines_own_clock(monkeypatch):
    answered = engine_loop.answered

    def thrice(asked, *answer):
        began = engine_loop.time.perf_counter()
        result = answered(asked, *answer)
        took = engine_loop.time.perf_counter() - began
        while engine_loop.time.perf_counter() < began + 3 * took:
            pass
        return result

    monkeypatch.setattr(engine_loop, "answered", thrice)
    cost = compare_loops(method_named("vanilla"), BareVanilla, PROMPT_IDS, num_answers=3, max_new_tokens=101)
    turns = [turn for answer in cost.answers for turn in answer]
    # the median, because a machine that does other things holds up single turns for as long as all others take
    assert statistics.median(turn.engine_s / turn.bare_s for turn in turns) > 1.5
    assert cost.at_once_us > 0


def test_which_loop_goes_first_changes_at_every_turn(monkeypatch):
    order: list[type] = []
    for kind in (EngineLoop, BareVanilla):

        def advance(self, num_steps, kind=kind, advance=kind.advance):
            order.append(kind)
            advance(self, num_steps)

        monkeypatch.setattr(kind, "advance", advance)
    method = method_named("vanilla")
    engine, plain = (
        kind(method, PROMPT_IDS, SamplingParams(max_new_tokens=13)) for kind in (EngineLoop, BareVanilla)
    )
    for loop in (engine, plain):
        loop.prefill()
    measure._alternate(engine, plain, 4, WorkClock())
    # the fourth turn finds both at their end
    assert order == [EngineLoop, BareVanilla, BareVanilla, EngineLoop] * 2


def test_which_loop_gets_its_memory_first_changes_at_every_answer(monkeypatch):
    opened: list[type] = []
    for kind in (EngineLoop, BareVanilla):

        def prefill(self, kind=kind, prefill=kind.prefill):
            opened.append(kind)
            prefill(self)

        monkeypatch.setattr(kind, "prefill", prefill)
    monkeypatch.setattr(measure, "_equal_calls", lambda *_: ([], 1))
    monkeypatch.setattr(measure, "_microseconds_at_once", lambda *_: 0.0)
    compare_loops(method_named("vanilla"), BareVanilla, PROMPT_IDS, num_answers=3, max_new_tokens=2)
    assert opened == [EngineLoop, BareVanilla, BareVanilla, EngineLoop, EngineLoop, BareVanilla]


def test_turns_of_one_answer_are_one_pair():
    slow, even = (Turn(1.2, 1.0, 4, 4),) * 50, (Turn(1.0, 1.0, 4, 4),) * 50
    cost = dataclasses.replace(cost_of([]), answers=(slow, even))
    assert cost.ratio.n == 2
    assert cost.ratio.value == pytest.approx(1.1)
    assert cost.ratio.low is None or cost.ratio.low < 1


def test_a_long_answer_is_compared_in_short_ones(tiny_model: Path):
    vanilla, _ = measure_asking(
        load(str(tiny_model), dtype="float32", device="cpu"), num_records=1, max_new_tokens=80
    )
    assert [sum(turn.num_tokens for turn in turns) for turns in vanilla.answers] == [31, 31, 31]


class OtherTokens(BareVanilla):
    """A loop whose last token is another one."""

    @property
    def tokens(self):
        return [*super().tokens[:-1], -1]


class OtherCalls(BareVanilla):
    """A loop that reads the prompt twice, into two caches."""

    def prefill(self):
        again = BareVanilla.__new__(BareVanilla)
        again.__dict__ |= self.__dict__ | {"_cache": self._model.new_cache(40), "_tokens": []}
        BareVanilla.prefill(again)
        super().prefill()


@pytest.mark.parametrize(("loop", "what"), [(OtherTokens, "tokens"), (OtherCalls, "calls")])
def test_loops_that_do_other_work_get_no_ratio(loop, what, monkeypatch):
    monkeypatch.setattr(measure, "_alternate", lambda *_, **__: pytest.fail("timed before it was checked"))
    with pytest.raises(HambenchError, match=f"vanilla: {what} of the engine's loop.*no ratio is given"):
        compare_loops(method_named("vanilla"), loop, PROMPT_IDS, num_answers=1, max_new_tokens=8)


def test_a_chain_that_ended_early_is_noted_with_the_tokens_it_gave():
    calls = []
    model = NotedCalls("draft", tiny_target().llama, calls)
    tokens = model.decode_greedily([1, 2], model.new_cache(16), 5, stop=ChainStop(1.5, True))
    assert len(tokens) == 1
    assert calls == [Call("draft", "decode_greedily", 2, 0, 1)]


def test_chains_are_as_many_forwards_as_tokens():
    assert Call("draft", "decode_greedily", 2, 8, 4).num_forwards == 4
    assert Call("draft", "decode_greedily", 1, 8, 0).num_forwards == 0
    assert Call("target", "greedy", 5, 8, 5).num_forwards == 1


def cost_of(turns: list[Turn]) -> AskingCost:
    return AskingCost(
        method="x",
        num_calls=1,
        num_forwards=1,
        requests_per_step=2.0,
        answers=tuple((turn,) for turn in turns),
        at_once_us=10.0,
        request_us=1.5,
    )


def test_figures_are_those_of_paired_sums():
    cost = cost_of([Turn(1.1, 1.0, 4, 8), Turn(2.1, 2.0, 4, 8), Turn(1.0, 1.0, 2, 3), Turn(1.2, 1.0, 2, 3)])
    assert cost.ratio.value == pytest.approx(5.4 / 5.0)
    assert cost.ratio.n == 4
    assert cost.ratio.low is not None
    assert cost.ratio.low < 5.4 / 5.0 < (cost.ratio.high or -math.inf)
    assert cost.bare_us == pytest.approx(5.0e6 / 12)
    assert cost.added_us.value == pytest.approx(0.4e6 / 12)
    assert cost.at_once_share == pytest.approx(10.0 / cost.bare_us)
    assert cost.asking_share == pytest.approx(3.0 / cost.bare_us)


def test_one_turn_has_no_interval():
    assert cost_of([Turn(1.1, 1.0, 4, 8)]).ratio.low is None
    assert cost_of([Turn(1.1, 1.0, 4, 8)]).added_us.high is None


def test_vanilla_and_speculation_are_compared_on_a_saved_model(tiny_model: Path):
    costs = measure_asking(
        load(str(tiny_model), dtype="float32", device="cpu"), num_records=1, max_new_tokens=12
    )
    assert [cost.method for cost in costs] == ["vanilla", "speculative[k=4]"]
    assert [cost.requests_per_step for cost in costs] == [1.0, 2.0]
    assert costs[0].num_calls == 12
    assert all(cost.ratio.value > 0 for cost in costs)


def test_the_command_prints_the_ratio_and_stores_every_turn(tiny_model: Path):
    arguments = ["--model", str(tiny_model), "--dtype", "float32", "--records", "2", "--max-new-tokens", "12"]
    text = CliRunner().invoke(command, arguments, catch_exceptions=False).stdout
    assert "the engine's loop over a bare loop with the same calls:" in text
    assert "\n  vanilla: " in text
    assert "\n  speculative[k=4]: " in text
    assert "(95 % interval " in text
    assert ", 2 pairs of answers)" in text
    assert "both loops make the same 12 calls, 12 forwards" in text
    assert "1.00 requests per step" in text
    one = [*arguments[:4], "--records", "1", *arguments[6:]]
    assert (
        "(no interval from 1 pair of answers)"
        in CliRunner().invoke(command, one, catch_exceptions=False).stdout
    )
    lines = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False).stdout.splitlines()
    (vanilla, speculative) = json.loads(lines[-1])["asking"]
    assert vanilla["ratio"]["n"] == len(vanilla["answers"]) == 2
    assert [turn["num_tokens"] for turns in vanilla["answers"] for turn in turns] == [4, 4, 3] * 2
    assert speculative["requests_per_step"] == 2
