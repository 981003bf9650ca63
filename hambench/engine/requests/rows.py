"""What one sequence brings to a forward that several share. Letters in shapes: T rows, D hidden size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


class Rows(NamedTuple):
    """Rows of one sequence in :meth:`hambench.engine.language_model.LanguageModel.forward_together`."""

    inputs: torch.Tensor
    """Ids ``[T]`` or embeddings ``[T, D]``."""
    cache: Any
    """Its own cache; grows by T slots."""
    positions: torch.Tensor | None = None
    """Rotary positions ``[T]``; by default they continue from ``cache.next_position``."""
    num_logits: int | None = 1
    """Logits for this many last rows; ``None`` for all."""


class ChainStop(NamedTuple):
    """Ends a greedy chain after the first token of which the model was not sure enough.

    The token stays, whatever its probability: only whether another one follows depends on it.
    """

    least: float
    """Probability with which the chain goes on; a chain begins with 1."""
    is_product: bool
    """Whether the product of the probabilities of all its tokens must reach it, or each by itself."""

    def likely(self, before: float, highest: float) -> float:
        """How sure a chain is after another token, whose probability was the ``highest`` of its row."""
        return before * highest if self.is_product else highest

    def goes_on(self, likely: float) -> bool:
        """Whether a chain that is as sure as this has another token."""
        return likely >= self.least


class Ids(NamedTuple):
    """Tokens of one sequence in ``greedy_together`` and ``decode_greedily_together``."""

    tokens: Sequence[int]
    cache: Any
    """Its own cache."""
    num_tokens: int
    """Tokens wanted."""
    stop: ChainStop | None = None
    """What may end a chain earlier."""
