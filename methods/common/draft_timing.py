"""Times of drafting and verifying on this machine, for a draft length that weighs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from hambench.methods.common.draft_length import DraftCosts

if TYPE_CHECKING:
    from hambench.decoding import Target
    from hambench.engine.language_model import LanguageModel

NUM_CACHED = 32
"""Slots in use while it is timed, where the model has room for them."""
NUM_TURNS = 5
NUM_DRAFTED = 4


def measure_costs(target: Target, draft: LanguageModel, most: int) -> DraftCosts:
    """Times one draft forward and verifications of 1 to ``most`` + 1 rows, each the fastest of several turns.

    In a turn each is timed once, so that other load hits all alike. Widths between powers of two are interpolated.
    Verifications get no cheaper with more rows: a reading that says so is noise.
    """
    rows = sorted({1, most + 1, *(2**power for power in range(1, 12) if 2**power < most + 1)})
    *forwards, drafts = _fastest([*(_forward(target.llama, width) for width in rows), _draft(draft)])
    seconds = dict(zip(rows, forwards, strict=True))
    unit = seconds[1]
    verify = [1.0]
    for width in range(2, most + 2):
        below = max(other for other in rows if other < width)
        above = min(other for other in rows if other >= width)
        share = (width - below) / (above - below)
        cost = (seconds[below] + share * (seconds[above] - seconds[below])) / unit
        verify.append(max(cost, verify[-1]))
    return DraftCosts(drafts / NUM_DRAFTED / unit, tuple(verify))


@torch.inference_mode()
def _forward(model: LanguageModel, rows: int) -> Callable[[], None]:
    cache = model.new_cache(NUM_CACHED + rows)
    model.prepare_greedy(cache, rows=[rows])
    model.prefill(torch.ones(NUM_CACHED, dtype=torch.int64, device=model.device), cache)

    def once() -> None:
        model.greedy([1] * rows, cache, num_tokens=rows)
        cache.truncate(NUM_CACHED)

    return once


@torch.inference_mode()
def _draft(model: LanguageModel) -> Callable[[], None]:
    cache = model.new_cache(NUM_CACHED + NUM_DRAFTED)
    model.prepare_greedy(cache, chain=NUM_DRAFTED)
    model.prefill(torch.ones(NUM_CACHED, dtype=torch.int64, device=model.device), cache)

    def once() -> None:
        model.decode_greedily([1], cache, NUM_DRAFTED)
        cache.truncate(NUM_CACHED)

    return once


@torch.inference_mode()
def _fastest(works: Sequence[Callable[[], None]]) -> list[float]:
    readings: list[list[float]] = [[] for _ in works]
    for _ in range(1 + NUM_TURNS):
        for work, mine in zip(works, readings, strict=True):
            began = time.perf_counter()
            work()
            mine.append(time.perf_counter() - began)
    # the first turn may pay for packing and page-in
    return [min(mine[1:]) for mine in readings]
