"""Time per token of the engine's loop over that of a bare loop, after their calls and tokens were found equal."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hambench.analysis.statistics.paired_tests import log_ratio_of_sums
from hambench.bench.asking.loops import BareSpeculative, BareVanilla, EngineLoop, Loop
from hambench.bench.asking.models import AnswersAtOnce, Call, NotedCalls
from hambench.bench.overhead import PROMPT
from hambench.decoding import Asking, DecodingMethod, SamplingParams, answered
from hambench.engine.loop import Clock
from hambench.engine.requests.forwards import Greedy
from hambench.errors import HambenchError
from hambench.methods.speculative import SpeculativeConfig
from hambench.methods.vanilla import VanillaConfig
from hambench.models.target import TargetModel
from hambench.records import Estimate
from hambench.runner.backend import run_by

STEPS_PER_TURN = 4
"""Steps that one loop takes before the other one's turn: short, so that both meet the same machine."""
TOKENS_PER_ANSWER = 32
"""Most tokens per compared answer: short, so that there are many. Steps of one answer share its cache's place in
memory and its moment, so answers are the blocks of the interval, not turns."""
AT_ONCE_STEPS, AT_ONCE_TURNS = 500, 11
"""Steps per turn and turns of the loops over a model that answers at once."""


class Turn(NamedTuple):
    """The same steps by both loops, one directly after the other."""

    engine_s: float
    bare_s: float
    num_steps: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingCost:
    """Cost of the engine's loop over a bare loop, for one method.

    The engine's loop has the session, its generators and requests, the end of the answer and a record of each step. The
    bare loop has only the model's calls. So the ratio is an upper bound of what asking costs.
    """

    method: str
    num_calls: int
    """Calls of models in one answer, prompt included: equal in both loops."""
    num_forwards: int
    """Forwards of these calls."""
    requests_per_step: float
    """Calls per step after the prompt; the engine's loop asks for each by a request."""
    answers: tuple[tuple[Turn, ...], ...]
    """Turns of each answer."""
    at_once_us: float
    """Microseconds per step that the engine's loop adds where models answer at once: the median of paired turns. Code
    and objects stay in the processor's caches there, so it is a lower bound."""
    request_us: float
    """Microseconds that one request takes more than a call, with the generators of its step, where models answer at
    once: the part of :attr:`at_once_us` that asking costs, per request."""

    @property
    def ratio(self) -> Estimate:
        """Time per token of the engine's loop over the bare loop's, paired by answer, with a 95 % interval."""
        tokens = [sum(turn.num_tokens for turn in turns) for turns in self.answers]
        engine_s = [sum(turn.engine_s for turn in turns) for turns in self.answers]
        bare_s = [sum(turn.bare_s for turn in turns) for turns in self.answers]
        result = log_ratio_of_sums((engine_s, tokens), (bare_s, tokens))
        low, high = (None if bound is None else math.exp(bound) for bound in (result.low, result.high))
        return Estimate(value=math.exp(result.effect), low=low, high=high, n=result.num_blocks)

    @property
    def bare_us(self) -> float:
        """Microseconds per step of the bare loop."""
        turns = [turn for answer in self.answers for turn in answer]
        return 1e6 * sum(turn.bare_s for turn in turns) / sum(turn.num_steps for turn in turns)

    @property
    def added_us(self) -> Estimate:
        """Microseconds per step that the engine's loop adds, from :attr:`ratio`; below 0 by noise alone."""
        ratio, bare = self.ratio, self.bare_us
        low, high = (None if bound is None else (bound - 1) * bare for bound in (ratio.low, ratio.high))
        return Estimate(value=(ratio.value - 1) * bare, low=low, high=high, n=ratio.n)

    @property
    def at_once_share(self) -> float:
        """:attr:`at_once_us` as a share of a step of the bare loop on the real model."""
        return self.at_once_us / self.bare_us

    @property
    def asking_share(self) -> float:
        """The requests of a step as a share of a step of the bare loop on the real model."""
        return self.request_us * self.requests_per_step / self.bare_us

    def facts(self) -> dict[str, Any]:
        """Returns everything as JSON."""
        return {
            "method": self.method,
            "num_calls": self.num_calls,
            "num_forwards": self.num_forwards,
            "requests_per_step": self.requests_per_step,
            "ratio": dataclasses.asdict(self.ratio),
            "bare_us_per_step": self.bare_us,
            "added_us_per_step": dataclasses.asdict(self.added_us),
            "at_once_us_per_step": self.at_once_us,
            "at_once_share": self.at_once_share,
            "us_per_request": self.request_us,
            "asking_share": self.asking_share,
            "answers": [[turn._asdict() for turn in turns] for turns in self.answers],
        }


@dataclass(frozen=True, slots=True)
class _Arm:
    """A method with its bare loop, and the same method on other models."""

    method: Any
    bare: Callable[[Any, Sequence[int], SamplingParams], Loop]

    def around(self, wrap: Callable[[str, Any], Any]) -> _Arm:
        """Returns the arm over ``wrap(name, model)`` instead of each of its models."""
        target = self.method.target
        models = {"target": dataclasses.replace(target, llama=wrap("target", target.llama))}
        draft = getattr(self.method, "draft", None)
        if draft is not None:
            models["draft"] = wrap("draft", draft)
        return _Arm(dataclasses.replace(self.method, **models), self.bare)


def measure_asking(
    target: TargetModel,
    *,
    kernels: str = "auto",
    num_records: int,
    max_new_tokens: int,
) -> tuple[AskingCost, ...]:
    """Compares both loops for vanilla, and for speculative[k=4] where the model can have an INT8 draft.

    Each loop decodes the tokens of ``num_records`` answers of ``max_new_tokens``, in answers of at most
    :data:`TOKENS_PER_ANSWER`.

    Raises:
        HambenchError: If the loops of a method differ in a call or a token.
    """
    target = run_by(target, kernels=kernels)
    if target.tokenizer is None:
        raise HambenchError(f"model must have a tokenizer to encode the prompt, {target.name} has none")
    prompt_ids = target.tokenizer.encode(PROMPT * 4)
    num_answers = max(num_records, math.ceil(num_records * max_new_tokens / TOKENS_PER_ANSWER))
    length = min(max_new_tokens, TOKENS_PER_ANSWER)
    return tuple(
        compare_loops(method, bare, prompt_ids, num_answers=num_answers, max_new_tokens=length)
        for method, bare in _arms(target)
    )


def _arms(target: TargetModel) -> list[tuple[DecodingMethod, Any]]:
    arms: list[tuple[DecodingMethod, Any]] = [(VanillaConfig().build(target), BareVanilla)]
    speculative = SpeculativeConfig(num_draft_tokens=4)
    if speculative.unavailable_on(target) is None:
        arms.append((speculative.build(target), BareSpeculative))
    return arms


def compare_loops(
    method: DecodingMethod,
    bare: Callable[[Any, Sequence[int], SamplingParams], Loop],
    prompt_ids: Sequence[int],
    *,
    num_answers: int,
    max_new_tokens: int,
    clock: Clock = time.perf_counter,
) -> AskingCost:
    """Compares the engine's loop of a method with its bare loop; neither times the prompt.

    Args:
        method: The built method, a dataclass with its ``target`` and, if it drafts with a model, its ``draft``.
        bare: Opens a bare loop of the method, like :class:`~hambench.bench.asking.loops.BareVanilla`.
        prompt_ids: The prompt.
        num_answers: Answers that each loop decodes in turns with the other.
        max_new_tokens: Tokens per answer, at least 2.
        clock: Returns seconds from any fixed point.

    Raises:
        HambenchError: If the loops differ in a call or a token.
    """
    arm, params = _Arm(method, bare), SamplingParams(max_new_tokens=max_new_tokens)
    # both answers also warm up what is timed next
    calls, num_steps = _equal_calls(arm, prompt_ids, params)
    answers: list[tuple[Turn, ...]] = []
    for number in range(num_answers):
        flipped = number % 2 == 1
        engine, plain = _opened(arm, prompt_ids, params, flipped=flipped)
        answers.append(tuple(_alternate(engine, plain, STEPS_PER_TURN, clock, flipped=flipped)))
        _require_equal(method.name, "tokens", engine.tokens, plain.tokens)
    return AskingCost(
        method=method.name,
        num_calls=len(calls),
        num_forwards=sum(call.num_forwards for call in calls),
        requests_per_step=sum(call.name != "prefill" for call in calls) / num_steps,
        answers=tuple(answers),
        at_once_us=_microseconds_at_once(arm, prompt_ids),
        request_us=_microseconds_per_request(arm),
    )


def _equal_calls(arm: _Arm, prompt_ids: Sequence[int], params: SamplingParams) -> tuple[list[Call], int]:
    """Decodes an answer with each loop and returns the calls that both make, and the steps after the prompt.

    Raises:
        HambenchError: If the loops differ in a call or a token.
    """
    noted: list[list[Call]] = [[], []]
    by_engine, by_bare = (arm.around(functools.partial(_noted, calls=calls)) for calls in noted)
    engine = EngineLoop(by_engine.method, prompt_ids, params)
    plain = by_bare.bare(by_bare.method, prompt_ids, params)
    for loop in (engine, plain):
        loop.prefill()
        loop.advance(params.max_new_tokens)
    _require_equal(arm.method.name, "tokens", engine.tokens, plain.tokens)
    _require_equal(arm.method.name, "calls", *noted)
    return noted[0], engine.num_steps


def _noted(name: str, model: Any, *, calls: list[Call]) -> NotedCalls:
    return NotedCalls(name, model, calls)


def _opened(
    arm: _Arm, prompt_ids: Sequence[int], params: SamplingParams, *, flipped: bool = False
) -> tuple[EngineLoop, Loop]:
    """Opens both loops and reads the prompt with each; ``flipped`` lets the bare loop get its memory first."""
    loops: dict[Any, Any] = {}
    for kind in (arm.bare, EngineLoop) if flipped else (EngineLoop, arm.bare):
        loops[kind] = kind(arm.method, prompt_ids, params)
        loops[kind].prefill()
    return loops[EngineLoop], loops[arm.bare]


def _alternate(
    engine: EngineLoop,
    plain: Loop,
    num_steps: int,
    clock: Clock,
    *,
    flipped: bool = False,
    max_turns: int | None = None,
) -> list[Turn]:
    """Times both loops turn by turn to their end; which one goes first changes at every turn."""
    turns: list[Turn] = []
    steps_before, tokens_before = engine.num_steps, len(engine.tokens)
    while max_turns is None or len(turns) < max_turns:
        if flipped:
            bare_s = _seconds(plain, num_steps, clock)
            engine_s = _seconds(engine, num_steps, clock)
        else:
            engine_s = _seconds(engine, num_steps, clock)
            bare_s = _seconds(plain, num_steps, clock)
        steps, tokens = engine.num_steps, len(engine.tokens)
        if steps == steps_before:
            return turns
        turns.append(Turn(engine_s, bare_s, steps - steps_before, tokens - tokens_before))
        steps_before, tokens_before, flipped = steps, tokens, not flipped
    return turns


def _seconds(loop: Loop | _Requests, num_steps: int, clock: Clock) -> float:
    began = clock()
    loop.advance(num_steps)
    return clock() - began


def _microseconds_at_once(arm: _Arm, prompt_ids: Sequence[int]) -> float:
    at_once = arm.around(lambda _, model: AnswersAtOnce(model))
    drafted: int = getattr(getattr(arm.method, "config", None), "num_draft_tokens", 0)
    num_tokens = 1 + AT_ONCE_STEPS * AT_ONCE_TURNS * (drafted + 1)
    target = dataclasses.replace(at_once.method.target, context_length=len(prompt_ids) + num_tokens)
    method = dataclasses.replace(at_once.method, target=target)
    params = SamplingParams(max_new_tokens=num_tokens)
    engine, plain = _opened(_Arm(method, arm.bare), prompt_ids, params)
    turns = _alternate(engine, plain, AT_ONCE_STEPS, time.perf_counter, max_turns=AT_ONCE_TURNS)
    return statistics.median(1e6 * (turn.engine_s - turn.bare_s) / turn.num_steps for turn in turns)


class _Requests:
    """A loop of steps that each make one request, through the generators that vanilla's step has."""

    def __init__(self, model: Any) -> None:
        self._model, self._cache = model, model.new_cache(0)

    def step(self) -> Asking[list[int]]:
        return (yield from self._advance())

    def _advance(self) -> Asking[list[int]]:
        tokens: list[int] = yield Greedy(self._model, [0], self._cache, num_tokens=1)
        return tokens

    def advance(self, num_steps: int) -> None:
        for _ in range(num_steps):
            answered(self.step())


class _Calls(_Requests):
    """The same calls without a request."""

    def advance(self, num_steps: int) -> None:
        model, cache = self._model, self._cache
        for _ in range(num_steps):
            model.greedy([0], cache, num_tokens=1)


def _microseconds_per_request(arm: _Arm) -> float:
    at_once = AnswersAtOnce(arm.method.target.llama)
    loops = [_Requests(at_once), _Calls(at_once)]
    added = []
    for number in range(AT_ONCE_TURNS):
        order = loops[::-1] if number % 2 else loops
        seconds = {type(loop): _seconds(loop, AT_ONCE_STEPS, time.perf_counter) for loop in order}
        added.append(1e6 * (seconds[_Requests] - seconds[_Calls]) / AT_ONCE_STEPS)
    return statistics.median(added)


def _require_equal(method: str, what: str, engine: Sequence[object], bare: Sequence[object]) -> None:
    if list(engine) == list(bare):
        return
    place = next(
        (index for index, (a, b) in enumerate(zip(engine, bare, strict=False)) if a != b),
        min(len(engine), len(bare)),
    )
    sides = (side[place] if place < len(side) else "nothing" for side in (engine, bare))
    raise HambenchError(
        f"{method}: {what} of the engine's loop and of the bare loop differ from number {place + 1} of {len(engine)} "
        f"and {len(bare)}, {' and '.join(map(str, sides))}: the loops don't do the same work, so no ratio is given"
    )
