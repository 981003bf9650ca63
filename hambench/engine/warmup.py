"""Warm-up: decodes short answers until their time settles, so that no measured sample includes first-time costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch

from hambench.decoding import DecodingMethod, Request, SamplingParams, SessionEndedError, Step, answered

SETTLED_WITHIN = 0.02
"""Largest spread of three consecutive passes, relative to the fastest, that counts as settled."""
MAX_PASSES = 6
NUM_PROMPT_TOKENS, NUM_STEPS = 64, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """Readings of one method's warm-up: stored, but left out of every statistic."""

    cold_s: float
    """Seconds of the method's own warm-up and the first pass: the cost of a cold start."""
    passes_s: tuple[float, ...]
    """Seconds of each pass, including the first."""
    settled: bool
    """True if three consecutive passes agreed before the bound was reached."""


def warm_up(
    method: DecodingMethod,
    context_length: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    is_warm: Callable[[frozenset[Hashable]], bool] = lambda used: False,
) -> WarmUp:
    """Runs passes of a short prompt and a few steps until three in a row agree within 2 %, at most six passes.

    Args:
        method: The method to warm up.
        context_length: Number of positions that the model has.
        temperature: Temperature of the answers to come; sampled and greedy steps take different paths.
        top_p: Nucleus of the answers to come.
        is_warm: Asked once with what the first pass used by :attr:`hambench.decoding.Request.first_used`: if true, that
            pass is all.
    """
    used: set[Hashable] = set()

    def answer(request: Request) -> object:
        used.update(request.first_used)
        return request.answer()

    num_prompt = min(NUM_PROMPT_TOKENS, context_length // 2)
    limit = min(8 * NUM_STEPS, context_length - num_prompt)
    params = SamplingParams(max_new_tokens=limit, temperature=temperature, top_p=top_p)
    began = time.perf_counter()
    method.warmup()
    passes: list[float] = [_one_pass(method, num_prompt, params, answer)]
    cold_s = time.perf_counter() - began
    if is_warm(frozenset(used)):
        return WarmUp(cold_s=cold_s, passes_s=tuple(passes), settled=False)
    while len(passes) < MAX_PASSES and not _settled(passes):
        passes.append(_one_pass(method, num_prompt, params))
    return WarmUp(cold_s=cold_s, passes_s=tuple(passes), settled=_settled(passes))


def made_up_steps(
    method: DecodingMethod,
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    num_steps: int,
    answer: Callable[[Request], object] = lambda request: request.answer(),
) -> Iterator[Step]:
    """Decodes a made-up prompt; yields the prefill, then up to ``num_steps`` steps.

    It ends early if the answer reaches the length that ``params`` allow, which a few long drafts do at once, or if a
    peer's session ends by itself. A session has no room for steps past its limit. ``answer`` does the work of requests.
    """
    session = method.start(prompt, params)
    step = answered(session.prefill(), answer)
    num_tokens = len(step.tokens)
    yield step
    for _ in range(num_steps):
        if num_tokens >= params.max_new_tokens:
            return
        try:
            step = answered(session.step(), answer)
        except SessionEndedError:
            return
        num_tokens += len(step.tokens)
        yield step


def _one_pass(
    method: DecodingMethod,
    num_prompt: int,
    params: SamplingParams,
    answer: Callable[[Request], object] = lambda request: request.answer(),
) -> float:
    prompt = [1 + index % 7 for index in range(num_prompt)]
    with torch.inference_mode():
        began = time.perf_counter()
        for _ in made_up_steps(method, prompt, params, num_steps=NUM_STEPS, answer=answer):
            pass
        return time.perf_counter() - began


def _settled(passes: list[float]) -> bool:
    last = passes[-3:]
    return len(last) == 3 and max(last) <= min(last) * (1 + SETTLED_WITHIN)
