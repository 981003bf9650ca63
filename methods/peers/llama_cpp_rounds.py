"""llama-server's own route: it sends a round of drafting token by token, with running counts that say where it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hambench.decoding import SamplingParams
    from hambench.serving.events import Chunk


def llama_cpp_body(
    ids: Sequence[int], params: SamplingParams, *, cached: bool, ignore_eos: bool
) -> dict[str, Any]:
    """The body of a request to ``/completion``: the same sampling as everywhere, and nothing of its own.

    Args:
        ids: The prompt.
        params: Limit and sampling.
        cached: Whether the server may use what it cached of earlier prompts.
        ignore_eos: Whether it decodes to the limit.
    """
    return {
        "prompt": list(ids),
        "n_predict": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "seed": params.seed,
        "top_k": 0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "return_tokens": True,
        "timings_per_token": True,
        "cache_prompt": cached,
        "ignore_eos": ignore_eos,
    }


class Rounds:
    """Puts the tokens of a round together: one forward of the target gives a token and the drafted ones it accepts."""

    def __init__(self) -> None:
        self._waiting: list[int] = []
        self._seen = (0, 0)
        self._drafted = self._accepted = 0
        self.counts: Mapping[str, int | None] = {}
        """Of the round taken last."""

    def add(self, ids: Sequence[int], chunk: Chunk) -> None:
        """Adds the tokens of an event, and what its counts say of a round that begins with it."""
        self._waiting += ids
        if chunk.totals is not None:
            now = (chunk.totals.drafted or 0, chunk.totals.accepted or 0)
            self._drafted += max(0, now[0] - self._seen[0])
            self._accepted += max(0, now[1] - self._seen[1])
            self._seen = now

    def taken(self, *, ended: bool) -> tuple[int, ...]:
        """The tokens of a round that is complete, else none; at the end of the answer, all there are."""
        if not self._waiting or (len(self._waiting) <= self._accepted and not ended):
            return ()
        # the token that the target gives itself comes last
        ids = tuple(self._waiting)
        self.counts = {
            "target_forwards": 1,
            "draft_forwards": None,
            "drafted": self._drafted,
            "accepted": min(self._accepted, len(ids)),
        }
        self._waiting, self._drafted, self._accepted = [], 0, 0
        return ids
