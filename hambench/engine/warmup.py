"""Warm-up: decode a little again and again until the time settles, so that no measured sample pays for a first time."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

import torch

from hambench.decoding import DecodingMethod, SamplingParams, SessionEndedError

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


def warm_up(method: DecodingMethod, context_length: int) -> WarmUp:
    """Runs passes of a short prompt and a few steps until three in a row agree within 2 %, six at most."""
    num_prompt = min(NUM_PROMPT_TOKENS, context_length // 2)
    began = time.perf_counter()
    method.warmup()
    passes: list[float] = [_one_pass(method, num_prompt)]
    cold_s = time.perf_counter() - began
    while len(passes) < MAX_PASSES and not _settled(passes):
        passes.append(_one_pass(method, num_prompt))
    return WarmUp(cold_s=cold_s, passes_s=tuple(passes), settled=_settled(passes))


def _one_pass(method: DecodingMethod, num_prompt: int) -> float:
    prompt = [1 + index % 7 for index in range(num_prompt)]
    with torch.inference_mode():
        began = time.perf_counter()
        session = method.start(prompt, SamplingParams(max_new_tokens=8 * NUM_STEPS))
        session.prefill()
        # a peer's session ends at its limit, or where the peer says so
        with contextlib.suppress(SessionEndedError):
            for _ in range(NUM_STEPS):
                session.step()
        return time.perf_counter() - began


def _settled(passes: list[float]) -> bool:
    last = passes[-3:]
    return len(last) == 3 and max(last) <= min(last) * (1 + SETTLED_WITHIN)
