"""Times of drafting and verifying on this machine, for a draft length that weighs them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from hambench.methods.common.draft_length import DraftCosts

if TYPE_CHECKING:
    from hambench.decoding import Target
    from hambench.engine.language_model import LanguageModel

NUM_CACHED = 32
"""Slots in use while it is timed, where the model has room for them."""
NUM_TURNS = 3
NUM_DRAFTED = 4


def measure_costs(target: Target, draft: LanguageModel, most: int) -> DraftCosts:
    """Times one draft forward and verifications of 1 to ``most`` + 1 rows, each the fastest of three.

    Widths between powers of two are interpolated. Verifications get no cheaper with more rows: a reading that says so
    is noise.
    """
    rows = sorted({1, most + 1, *(2**power for power in range(1, 12) if 2**power < most + 1)})
    seconds = {width: _forward_seconds(target.llama, width) for width in rows}
    unit = seconds[1]
    verify = [1.0]
    for width in range(2, most + 2):
        below = max(other for other in rows if other < width)
        above = min(other for other in rows if other >= width)
        share = (width - below) / (above - below)
        cost = (seconds[below] + share * (seconds[above] - seconds[below])) / unit
        verify.append(max(cost, verify[-1]))
    return DraftCosts(_draft_seconds(draft) / unit, tuple(verify))


@torch.inference_mode()
def _forward_seconds(model: LanguageModel, rows: int) -> float:
    cache = model.new_cache(NUM_CACHED + rows)
    model.prepare_greedy(cache, rows=[rows])
    model.prefill(torch.ones(NUM_CACHED, dtype=torch.int64, device=model.device), cache)

    def once() -> None:
        model.greedy([1] * rows, cache, num_tokens=rows)
        cache.truncate(NUM_CACHED)

    return _fastest(once)


@torch.inference_mode()
def _draft_seconds(model: LanguageModel) -> float:
    cache = model.new_cache(NUM_CACHED + NUM_DRAFTED)
    model.prepare_greedy(cache, chain=NUM_DRAFTED)
    model.prefill(torch.ones(NUM_CACHED, dtype=torch.int64, device=model.device), cache)

    def once() -> None:
        model.decode_greedily([1], cache, NUM_DRAFTED)
        cache.truncate(NUM_CACHED)

    return _fastest(once) / NUM_DRAFTED


def _fastest(once: Callable[[], None]) -> float:
    readings = []
    for _ in range(1 + NUM_TURNS):
        began = time.perf_counter()
        once()
        readings.append(time.perf_counter() - began)
    # the first turn may pay for packing and page-in
    return min(readings[1:])
