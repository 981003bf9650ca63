"""A faster model that has a Llama: the calls that it leaves to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from hambench.engine.kvcache import KVCache
from hambench.engine.llama import Llama
from hambench.engine.output import ForwardOutput
from hambench.engine.requests.rows import Ids, Rows
from hambench.errors import NotFiniteError


class BackedByLlama:
    """Hands the calls that an engine does not speed up to the reference model with the same weights.

    Args:
        llama: The reference model.
    """

    def __init__(self, llama: Llama) -> None:
        self.reference = llama
        self.shape, self.dtype, self.device = llama.shape, llama.dtype, llama.device

    @property
    def weight_bytes(self) -> int:
        """See :class:`hambench.engine.language_model.LanguageModel`."""
        return self.reference.weight_bytes

    @property
    def prefill_chunk(self) -> int | None:
        """See :class:`hambench.engine.language_model.LanguageModel`: the reference model's, which reads the prompts."""
        return self.reference.prefill_chunk

    @prefill_chunk.setter
    def prefill_chunk(self, num_rows: int | None) -> None:
        self.reference.prefill_chunk = num_rows

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """See :class:`hambench.engine.language_model.LanguageModel`."""
        return self.reference.embed(ids)

    def lm_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """See :class:`hambench.engine.language_model.LanguageModel`."""
        return self.reference.lm_head(hidden)

    def prefill(
        self, ids: torch.Tensor, cache: KVCache, *, feature_layers: tuple[int, ...] = ()
    ) -> ForwardOutput:
        """See :class:`hambench.engine.language_model.LanguageModel`: on torch, whatever the prompt's length."""
        return self.reference.prefill(ids, cache, feature_layers=feature_layers)

    def forward_together(
        self, sequences: Sequence[Rows], *, feature_layers: tuple[int, ...] = ()
    ) -> list[ForwardOutput]:
        """See :class:`hambench.engine.language_model.LanguageModel`: on torch."""
        return self.reference.forward_together(sequences, feature_layers=feature_layers)

    def greedy_together(self, sequences: Sequence[Ids]) -> list[list[int] | NotFiniteError]:
        """See :class:`hambench.engine.language_model.LanguageModel`: on torch."""
        return self.reference.greedy_together(sequences)

    def decode_greedily_together(self, sequences: Sequence[Ids]) -> list[list[int] | NotFiniteError]:
        """See :class:`hambench.engine.language_model.LanguageModel`: on torch."""
        return self.reference.decode_greedily_together(sequences)

    def prefill_pieces(
        self, ids: torch.Tensor, cache: KVCache, *, feature_layers: tuple[int, ...] = ()
    ) -> Iterator[ForwardOutput | None]:
        """See :class:`hambench.engine.language_model.LanguageModel`: on torch."""
        return self.reference.prefill_pieces(ids, cache, feature_layers=feature_layers)
