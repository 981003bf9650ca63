"""Judges HAMburger weights on held-out answers of the base: agreement, accuracy, calibration, and free-running regret.

Three passes over the same answers: along them at each confidence, at every token of them from unmerged features, and
free from their prompts, judged as ``hambench run`` judges answers. Intervals are over answers, whose counts are kept.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hambench.analysis import fidelity
from hambench.analysis.statistics.intervals import clustered_rate, mean_interval, ratio_of_sums
from hambench.decoding import Asking, SamplingParams
from hambench.engine.loop import Ending
from hambench.errors import DataError
from hambench.methods.hamburger.checkpoint import digest, load
from hambench.methods.hamburger.config import HamburgerConfig
from hambench.methods.hamburger.judging.agreement import (
    Agreement,
    Answer,
    TokenAccuracy,
    joined,
    measure,
    token_accuracy,
)
from hambench.methods.hamburger.judging.lockstep import most_at_once, run_side_by_side
from hambench.methods.hamburger.judging.reliability import Reliability, reliability
from hambench.methods.hamburger.method import Hamburger, build
from hambench.methods.hamburger.weights_folder import find_weights
from hambench.records import Estimate, Fidelity
from hambench.runner.judge import read_answers

if TYPE_CHECKING:
    from hambench.models.target import TargetModel

CONFIDENCES = (0.5, 0.7, 0.8, 0.9)
AT_M = (1.25, 1.5)
"""Tokens per macro-step at which weights are compared."""
_NEAR = 0.3
"""How far apart the m of the two confidences may lie that are interpolated between."""
_MOST_FURTHER = 4
"""Most confidences to add for one m, each halfway between the two that are next to it."""
RELIABILITY_AT = 0.7
"""Confidence whose decisions make the reliability curve, or the one nearest to it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlongAnswers:
    """Figures at one confidence along the base's own answers."""

    confidence: float
    m: Estimate
    same: Estimate
    """Share of tokens that equal the base's."""
    next_token: Estimate | None
    """Share of first tokens after a merged slot that equal the base's; ``None`` if nothing was merged."""
    grafted: float | None
    """Share of the micro-step decoder's tokens that equal the base's."""
    reliability: Reliability | None
    """``None`` for the one-token control."""
    counts: tuple[Mapping[str, int], ...]
    """Counts of each answer, see :class:`.judging.agreement.Agreement`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreeRunning:
    """Figures at one confidence of answers that nobody corrects."""

    confidence: float
    m: Estimate
    regret: Estimate
    """Nats per token, see :func:`hambench.analysis.fidelity.regret`."""
    agreement: float
    """Share of tokens that are the target's own choice at their place."""
    repetitive: int
    """Answers of which fewer than half of the 4-grams are distinct."""
    answers: int
    tokens: int
    counts: tuple[Mapping[str, float], ...]
    """``tokens``, ``macro_steps`` and ``agreed`` tokens of each answer, and its ``regret`` in nats."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsJudgement:
    """Everything that ``hambench hamburger measure`` prints."""

    model: str
    weights: str
    weights_sha256: str
    kernels: str
    answers_from: str
    """Name of the file with the answers."""
    answers: int
    tokens: int
    """Answer tokens of the first two passes."""
    base_again: float
    """Share of them that the base chooses again without the weights: what weights that change nothing would reach."""
    along: tuple[AlongAnswers, ...]
    next_token_at_m: Mapping[str, Estimate | None]
    """Next-token agreement after merged slots, by m: interpolated between the two nearest confidences; ``None`` where
    no confidence has a smaller m, or none has a larger one."""
    token_accuracy: Mapping[str, Estimate | None]
    """Share of right tokens by place in the macro-step (from 2), teacher forced from unmerged features."""
    token_counts: tuple[TokenAccuracy, ...]
    """Counts of each answer behind ``token_accuracy`` and ``base_again``."""
    free_running: tuple[FreeRunning, ...]
    reliability_confidence: float | None

    @property
    def reliability(self) -> Reliability | None:
        """The reliability curve at :attr:`reliability_confidence`."""
        return next((a.reliability for a in self.along if a.confidence == self.reliability_confidence), None)


def judge_weights(
    target: TargetModel,
    answers: Sequence[Answer],
    *,
    checkpoint: str | None = None,
    confidences: Sequence[float] = CONFIDENCES,
    max_tokens: int = 64,
    kernels: str = "reference",
    answers_from: str = "answers",
    say: Callable[[str], None] = lambda _: None,
) -> WeightsJudgement:
    """Judges weights on a target.

    Args:
        target: The base, on the engine to measure with.
        answers: Held-out greedy answers of the base.
        checkpoint: Folder of weights; by default those shipped for the model.
        confidences: Confidences to report. Others are added until two of them lie near :data:`AT_M` on both sides.
        max_tokens: Tokens of each answer to use, and most tokens of a free-running answer.
        kernels: Name of the target's engine, for the record.
        answers_from: Name of the file with the answers, for the record.
        say: Receives a line before each pass.

    Raises:
        DataError: If there is no answer, or one does not fit the context or has a token that the target lacks.
        ModelError: If the weights can't be used with this target.
    """
    if not answers:
        raise DataError("there is no answer to measure along: give a file with at least one")
    answers = [(list(ids[: prompt + max_tokens]), prompt) for ids, prompt in answers]
    _check(answers, target, max_tokens)
    folder = find_weights(checkpoint, target.name)
    method = build(HamburgerConfig(checkpoint=checkpoint), target)
    say(f"decoding along {len(answers)} answers")
    walks = _walks(method, answers, sorted(set(confidences)))
    say("asking the micro-step decoder at every token")
    accuracies = token_accuracy(method, load(folder), answers)
    say(f"decoding freely from {len(answers)} prompts")
    free = _free_running(method, target, [list(ids[:p]) for ids, p in answers], confidences, max_tokens)
    along = [_along(parts) for parts in walks]
    curves = [a.confidence for a in along if a.reliability is not None]
    places = range(len(accuracies[0].right))
    return WeightsJudgement(
        model=target.name,
        weights=checkpoint or "shipped",
        weights_sha256=digest(folder),
        kernels=kernels,
        answers_from=answers_from,
        answers=len(answers),
        tokens=sum(each.tokens for each in accuracies),
        base_again=sum(a.same_of_base for a in accuracies) / sum(a.tokens for a in accuracies),
        along=tuple(along),
        next_token_at_m={f"{m:g}": next_token_at(walks, m) for m in AT_M},
        token_accuracy={
            str(place + 2): rate([a.right[place] for a in accuracies], [a.asked[place] for a in accuracies])
            for place in places
        },
        token_counts=tuple(accuracies),
        free_running=tuple(free),
        reliability_confidence=min(curves, key=lambda c: abs(c - RELIABILITY_AT), default=None),
    )


def _check(answers: Sequence[Answer], target: TargetModel, max_tokens: int) -> None:
    num_ids = target.llama.shape.vocab_size
    for number, (ids, prompt) in enumerate(answers, 1):
        unknown = next((token for token in ids if not 0 <= token < num_ids), None)
        if unknown is not None:
            raise DataError(
                f"answer {number} has token id {unknown}, {target.name} has 0..{num_ids - 1}; give answers of "
                "this model"
            )
        # teacher forcing may emit a macro-step past the answer's end
        longest = prompt + max_tokens + 4
        if longest > target.context_length:
            raise DataError(
                f"answer {number}: a prompt with {max_tokens} tokens takes {longest} positions, {target.name} has "
                f"{target.context_length}; lower --tokens or leave the answer out"
            )


def _walks(
    method: Hamburger, answers: Sequence[Answer], confidences: Sequence[float]
) -> list[list[Agreement]]:
    """Walks along the answers at these confidences, and at more until m lies on both sides of what is asked."""
    walks = dict(zip(confidences, measure(method, answers, confidences), strict=True))
    for m in AT_M:
        for _ in range(_MOST_FURTHER):
            further = _between({confidence: joined(walk) for confidence, walk in walks.items()}, m)
            if further is None or further in walks:
                break
            walks |= {further: measure(method, answers, [further])[0]}
    return [walks[confidence] for confidence in sorted(walks)]


def _between(counted: Mapping[float, Agreement], m: float) -> float | None:
    """Returns a confidence between those next to ``m``; ``None`` where they are near enough to interpolate."""
    reaching = max((c for c, each in counted.items() if each.m >= m), default=None)
    missing = min((c for c, each in counted.items() if each.m < m), default=None)
    if (
        reaching is not None
        and missing is not None
        and counted[missing].firsts
        and counted[reaching].m - counted[missing].m <= _NEAR
    ):
        return None
    return ((reaching or 0.0) + min(1.0, 1.0 if missing is None else missing)) / 2


def _along(parts: Sequence[Agreement]) -> AlongAnswers:
    whole = joined(parts)
    same = rate([part.same for part in parts], [part.tokens for part in parts])
    assert same is not None
    return AlongAnswers(
        confidence=whole.confidence,
        m=ratio_of_sums([part.tokens for part in parts], [part.macro_steps for part in parts]),
        same=same,
        next_token=rate([part.same_firsts for part in parts], [part.firsts for part in parts]),
        grafted=whole.grafted_agreement,
        reliability=reliability(whole.decisions),
        counts=tuple(part.counts for part in parts),
    )


def rate(hits: Sequence[int], trials: Sequence[int]) -> Estimate | None:
    """Returns a share with its interval over answers; those without a trial don't count. ``None`` without any."""
    pairs = [(hit, trial) for hit, trial in zip(hits, trials, strict=True) if trial]
    if not pairs:
        return None
    value, low, high = (float(x) for x in clustered_rate(*np.asarray(pairs, dtype=float).T))
    if np.isnan(low):
        return Estimate(value=value, n=len(pairs))
    return Estimate(value=value, low=low, high=high, n=len(pairs))


def next_token_at(walks: Sequence[Sequence[Agreement]], m: float) -> Estimate | None:
    """Returns the next-token agreement after merged slots at ``m`` tokens per macro-step.

    It is interpolated linearly between the two confidences whose m is nearest below and above. The interval is that of
    the jackknife over answers, which repeats the whole interpolation without each.

    Args:
        walks: One list per confidence, with one entry per answer in the same order.
        m: Tokens per macro-step.
    """
    fields = ("tokens", "macro_steps", "same_firsts", "firsts")
    # [fields, confidences, answers]
    counts = np.array([[[getattr(part, f) for part in walk] for walk in walks] for f in fields], dtype=float)
    totals = counts.sum(axis=-1)
    value = _interpolated(totals, m)
    if value is None:
        return None
    num = counts.shape[-1]
    without = [_interpolated(totals - counts[..., i], m) for i in range(num)]
    if num < 3 or None in without:
        return Estimate(value=value, n=num)
    pseudo = num * value - (num - 1) * np.array(without, dtype=float)
    weights = counts[3].sum(axis=0) + 1.0
    interval = mean_interval(np.asarray(value), pseudo, weights)
    if interval.standard_error <= 1e-12:
        return Estimate(value=value, n=num)
    return Estimate(
        value=value, low=max(0.0, float(interval.low)), high=min(1.0, float(interval.high)), n=num
    )


def _interpolated(totals: np.ndarray[Any, Any], m: float) -> float | None:
    tokens, macro_steps, same, firsts = totals
    points = sorted((t / s, a / f) for t, s, a, f in zip(tokens, macro_steps, same, firsts, strict=True) if f)
    for (m0, a0), (m1, a1) in itertools.pairwise(points):
        if m0 <= m <= m1:
            return float(a0 if m1 == m0 else a0 + (a1 - a0) * (m - m0) / (m1 - m0))
    return None


def _free_running(
    method: Hamburger,
    target: TargetModel,
    prompts: Sequence[Sequence[int]],
    confidences: Sequence[float],
    max_tokens: int,
) -> list[FreeRunning]:
    params = SamplingParams(max_new_tokens=max_tokens)
    begin = [
        lambda prompt=prompt, confidence=confidence: _answer(
            dataclasses.replace(method, confidence=confidence), prompt, params, target.eos_ids
        )
        for prompt in prompts
        for confidence in confidences
    ]
    longest = max(map(len, prompts)) + max_tokens
    answered = run_side_by_side(begin, most=most_at_once(target.llama, longest))
    by_confidence: list[list[tuple[tuple[int, ...], int, Fidelity]]] = [[] for _ in confidences]
    for number, prompt in enumerate(prompts):
        own = answered[number * len(confidences) : (number + 1) * len(confidences)]
        distinct = list(dict.fromkeys(tokens for tokens, _ in own))
        readings = dict(zip(distinct, read_answers(target, prompt, distinct), strict=True))
        for place, (tokens, steps) in enumerate(own):
            reading = readings[tokens]
            judged = Fidelity(
                sample_id=str(number),
                answer=str(place),
                regrets=reading.regrets,
                logprobs=reading.logprobs,
                gaps=reading.gaps,
            )
            by_confidence[place].append((tokens, steps, judged))
    return [_of_answers(c, rows) for c, rows in zip(confidences, by_confidence, strict=True)]


def _of_answers(confidence: float, rows: Sequence[tuple[tuple[int, ...], int, Fidelity]]) -> FreeRunning:
    judged = [item for *_, item in rows]
    regret, agreement = fidelity.regret(judged), fidelity.agreement(judged)
    assert regret is not None
    assert agreement is not None
    return FreeRunning(
        confidence=confidence,
        m=ratio_of_sums([len(tokens) for tokens, *_ in rows], [steps for _, steps, _ in rows]),
        regret=regret,
        agreement=agreement,
        repetitive=sum(fidelity.repeats_itself(tokens) for tokens, *_ in rows),
        answers=len(rows),
        tokens=sum(len(tokens) for tokens, *_ in rows),
        counts=tuple(
            {"tokens": len(tokens), "macro_steps": steps, "agreed": item.num_agreed, "regret": item.regret}
            for tokens, steps, item in rows
        ),
    )


def _answer(
    method: Hamburger, prompt: Sequence[int], params: SamplingParams, eos_ids: frozenset[int]
) -> Asking[tuple[tuple[int, ...], int]]:
    """Returns an answer's tokens and its number of macro-steps."""
    session, ending = method.start(prompt, params), Ending(params, eos_ids)
    tokens: tuple[int, ...] = ()
    num_steps, finish = 0, None
    while finish is None:
        step = yield from (session.step() if num_steps else session.prefill())
        kept, finish = ending.trim(step.tokens)
        tokens, num_steps = tokens + kept, num_steps + 1
    return tokens, num_steps
