"""Warm-up: decode a little again and again until the time settles, so that no measured sample pays for a first time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from hambench.decoding import DecodingMethod, SamplingParams, SessionEndedError, Step

SETTLED_WITHIN = 0.02
"""Spread of three consecutive passes, relative to the fastest, that counts as settled."""
MAX_PASSES = 6
NUM_PROMPT_TOKENS, NUM_STEPS = 64, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """Readings of one method's warm-up: kept, and left out of every statistic."""

    cold_s: float
    """The method's own warm-up and the first pass: what a cold start costs."""
    passes_s: tuple[float, ...]
    """Seconds of each pass, the first included."""
    settled: bool
    """Whether three consecutive passes agreed before the bound was reached."""


def warm_up(
    method: DecodingMethod, context_length: int, *, temperature: float = 0.0, top_p: float = 1.0
) -> WarmUp:
    """Runs passes of a short prompt and a few steps until three in a row agree within 2 %, six at most.

    Args:
        method: What is warmed up.
        context_length: Positions that the model has.
        temperature: Of the answers to come: sampled and greedy steps take different paths.
        top_p: Of the answers to come.
    """
    num_prompt = min(NUM_PROMPT_TOKENS, context_length // 2)
    limit = min(8 * NUM_STEPS, context_length - num_prompt)
    params = SamplingParams(max_new_tokens=limit, temperature=temperature, top_p=top_p)
    began = time.perf_counter()
    method.warmup()
    passes: list[float] = [_one_pass(method, num_prompt, params)]
    cold_s = time.perf_counter() - began
    while len(passes) < MAX_PASSES and not _settled(passes):
        passes.append(_one_pass(method, num_prompt, params))
    return WarmUp(cold_s=cold_s, passes_s=tuple(passes), settled=_settled(passes))


def made_up_steps(
    method: DecodingMethod, prompt: Sequence[int], params: SamplingParams, *, num_steps: int
) -> Iterator[Step]:
    """Decodes a made-up prompt: gives the prefill, then up to ``num_steps`` steps.

    It ends early where the answer is as long as ``params`` allow, which a few long drafts reach at once, or where a
    peer's session ends by itself: a session has no room for steps past its limit.
    """
    session = method.start(prompt, params)
    step = session.prefill()
    num_tokens = len(step.tokens)
    yield step
    for _ in range(num_steps):
        if num_tokens >= params.max_new_tokens:
            return
        try:
            step = session.step()
        except SessionEndedError:
            return
        num_tokens += len(step.tokens)
        yield step


def _one_pass(method: DecodingMethod, num_prompt: int, params: SamplingParams) -> float:
    prompt = [1 + index % 7 for index in range(num_prompt)]
    with torch.inference_mode():
        began = time.perf_counter()
        for _ in made_up_steps(method, prompt, params, num_steps=NUM_STEPS):
            pass
        return time.perf_counter() - began


def _settled(passes: list[float]) -> bool:
    last = passes[-3:]
    return len(last) == 3 and max(last) <= min(last) * (1 + SETTLED_WITHIN)
