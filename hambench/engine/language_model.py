"""Greedy decoding as calls on a model, so that a faster engine can keep the tokens on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from hambench.engine.llama import Llama


def most_probable(logits: torch.Tensor) -> list[int]:
    """The most probable token of each row ``[R, V]``; ties go to the lowest id."""
    found: list[int] = logits.argmax(dim=-1).tolist()
    return found


class GreedyCalls:
    """What greedy methods ask of a model beside ``forward``; plain versions, for a class that has that."""

    device: torch.device

    def greedy(self, tokens: Sequence[int], cache: Any, *, num_tokens: int = 1) -> list[int]:
        """Runs T ``tokens`` and gives the greedy next token after each of the last ``num_tokens`` of them.

        Ties go to the lowest id. The cache grows by T slots.

        Raises:
            ContextOverflowError: If the cache has no room for them.
        """
        ids = torch.tensor(tokens, dtype=torch.int64, device=self.device)
        forward: Any = self.forward  # type: ignore[attr-defined]
        return most_probable(forward(ids, cache, num_logits=num_tokens).logits)

    def decode_greedily(self, tokens: Sequence[int], cache: Any, num_tokens: int) -> list[int]:
        """The next ``num_tokens`` greedy tokens after ``tokens``, each fed to the next forward.

        The cache grows by T slots and ``num_tokens - 1`` more: the newest token has none yet.

        Raises:
            ContextOverflowError: If the cache has no room for them.
        """
        found: list[int] = []
        for _ in range(num_tokens):
            tokens = self.greedy(tokens, cache)
            found += tokens
        return found

    def prepare_greedy(self, cache: Any, *, rows: Sequence[int] = (), chain: int = 0) -> None:
        """Does once what must not be timed before greedy calls over an empty cache (capturing graphs).

        Args:
            cache: Holds nothing yet.
            rows: Lengths of :meth:`greedy` calls that ask for every row.
            chain: Most tokens of a :meth:`decode_greedily` call after one or two.
        """

    def like(self, other: Llama) -> Llama:
        """Another model, run the way this one is."""
        return other
