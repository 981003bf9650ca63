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


class Ids(NamedTuple):
    """Tokens of one sequence in ``greedy_together`` and ``decode_greedily_together``."""

    tokens: Sequence[int]
    cache: Any
    """Its own cache."""
    num_tokens: int
    """Tokens wanted."""
