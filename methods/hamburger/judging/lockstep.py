"""Runs many sequences side by side, so that requests that one forward can serve share it.

Unlike :class:`hambench.engine.requests.batch.Batch`, a sequence here is one generator from its prompt to its end, which
may change what its session stores between two steps, and nothing is timed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import torch

from hambench.decoding import Asking, Request
from hambench.engine.requests.forwards import Prefill
from hambench.engine.requests.shared_prefill import ReadPrompts

if TYPE_CHECKING:
    from hambench.engine.language_model import LanguageModel

T = TypeVar("T")

MOST_AT_ONCE = 48
"""Sequences whose caches exist at the same time: four native calls of a dozen."""
CACHE_BYTES = 3 * 2**30
"""Bytes of these caches up to which that many are held."""


def most_at_once(base: LanguageModel, slots: int) -> int:
    """Returns how many sequences of up to so many slots to run side by side, by the memory of their caches."""
    each: int = slots * base.new_cache(1).bytes_per_slot
    return max(1, min(MOST_AT_ONCE, CACHE_BYTES // each))


@torch.inference_mode()
def run_side_by_side(begin: Iterable[Callable[[], Asking[T]]], *, most: int = MOST_AT_ONCE) -> list[T]:
    """Runs generators to their ends and returns their results in order.

    A prompt that the sequence before has just read is copied, so sequences of one prompt belong next to each other.

    Args:
        begin: Makes the generator of each sequence; called when there is room for it.
        most: Most sequences at the same time.
    """
    waiting = deque(enumerate(begin))
    prompts = ReadPrompts()
    results: dict[int, T] = {}
    running: dict[int, tuple[Asking[T], Request]] = {}

    def go_on(index: int, asking: Asking[T], answer: object) -> None:
        running.pop(index, None)
        try:
            request = next(asking) if answer is None else asking.send(answer)
            while isinstance(request, Prefill):
                request = asking.send(prompts.answer(request))
        except StopIteration as end:
            results[index] = end.value
        else:
            running[index] = (asking, request)

    while waiting or running:
        while waiting and len(running) < most:
            index, make = waiting.popleft()
            go_on(index, make(), None)
        groups: dict[object, list[int]] = {}
        for index, (_, request) in running.items():
            key = index if request.together is None else (type(request), request.together)
            groups.setdefault(key, []).append(index)
        if not groups:
            continue
        # the largest group first: the sequences of a small one may be joined by others
        chosen = max(groups.values(), key=len)
        requests = [running[index][1] for index in chosen]
        answers = (
            [requests[0].answer()] if len(requests) == 1 else type(requests[0]).answer_together(requests)
        )
        for index, answer in zip(chosen, answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            go_on(index, running[index][0], answer)
    return [results[index] for index in sorted(results)]
