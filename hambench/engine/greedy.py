"""Greedy decoding on top of ``forward``, for engines that do not keep these calls on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hambench.engine.output import ForwardOutput
from hambench.engine.requests.rows import Ids, Rows
from hambench.errors import NotFiniteError


def most_probable(logits: torch.Tensor) -> list[int]:
    """Returns the most probable token of each row ``[R, V]``; ties go to the lowest id.

    Raises:
        NotFiniteError: If a row has no finite maximum: it holds NaN or infinity, or only minus infinity.
    """
    best = logits.argmax(dim=-1, keepdim=True)
    # argmax treats a NaN as the largest, so the winner tells about the whole row; one copy brings both
    ids: list[int] = torch.where(logits.gather(-1, best).isfinite(), best, -1)[:, 0].tolist()
    if -1 in ids:
        raise NotFiniteError
    return ids


def _most_probable_or_error(logits: torch.Tensor) -> list[int] | NotFiniteError:
    try:
        return most_probable(logits)
    except NotFiniteError as error:
        return error


class GreedyDecoding(ABC):
    """Adds the greedy calls of a language model to a class that has ``forward`` and ``device``."""

    device: torch.device

    @abstractmethod
    def forward(
        self,
        inputs: torch.Tensor,
        cache: Any,
        *,
        positions: torch.Tensor | None = None,
        num_logits: int | None = 1,
        feature_layers: tuple[int, ...] = (),
    ) -> ForwardOutput:
        """Runs T rows; see :meth:`hambench.engine.language_model.LanguageModel.forward`."""

    @abstractmethod
    def prefill_pieces(
        self, ids: torch.Tensor, cache: Any, *, feature_layers: tuple[int, ...] = ()
    ) -> Iterator[ForwardOutput | None]:
        """Runs a prompt in pieces; see :meth:`hambench.engine.language_model.LanguageModel.prefill_pieces`."""

    def prefill(
        self, ids: torch.Tensor, cache: Any, *, feature_layers: tuple[int, ...] = ()
    ) -> ForwardOutput:
        """Runs a prompt ``[T]`` in chunks; returns logits, hidden state and features of the last row only."""
        *_, output = self.prefill_pieces(ids, cache, feature_layers=feature_layers)
        assert output is not None
        return output

    def greedy(self, tokens: Sequence[int], cache: Any, *, num_tokens: int = 1) -> list[int]:
        """See :meth:`hambench.engine.language_model.LanguageModel.greedy`."""
        ids = torch.tensor(tokens, dtype=torch.int64, device=self.device)
        return most_probable(self.forward(ids, cache, num_logits=num_tokens).logits)

    def decode_greedily(self, tokens: Sequence[int], cache: Any, num_tokens: int) -> list[int]:
        """See :meth:`hambench.engine.language_model.LanguageModel.decode_greedily`."""
        decoded: list[int] = []
        for _ in range(num_tokens):
            tokens = self.greedy(tokens, cache)
            decoded += tokens
        return decoded

    def forward_together(
        self, sequences: Sequence[Rows], *, feature_layers: tuple[int, ...] = ()
    ) -> list[ForwardOutput]:
        """Runs the sequences one after the other: an engine that can do better overrides it."""
        return [
            self.forward(
                rows.inputs,
                rows.cache,
                positions=rows.positions,
                num_logits=rows.num_logits,
                feature_layers=feature_layers,
            )
            for rows in sequences
        ]

    def greedy_together(self, sequences: Sequence[Ids]) -> list[list[int] | NotFiniteError]:
        """See :meth:`hambench.engine.language_model.LanguageModel.greedy_together`."""
        rows = [
            Rows(
                torch.tensor(ids.tokens, dtype=torch.int64, device=self.device),
                ids.cache,
                num_logits=ids.num_tokens,
            )
            for ids in sequences
        ]
        return [_most_probable_or_error(out.logits) for out in self.forward_together(rows)]

    def decode_greedily_together(self, sequences: Sequence[Ids]) -> list[list[int] | NotFiniteError]:
        """See :meth:`hambench.engine.language_model.LanguageModel.decode_greedily_together`."""
        decoded: list[list[int] | NotFiniteError] = [[] for _ in sequences]
        inputs = [ids.tokens for ids in sequences]
        for number in range(max(ids.num_tokens for ids in sequences)):
            going = [
                index
                for index, ids in enumerate(sequences)
                if number < ids.num_tokens and isinstance(decoded[index], list)
            ]
            if not going:
                break
            newest = self.greedy_together([Ids(inputs[i], sequences[i].cache, 1) for i in going])
            for index, tokens in zip(going, newest, strict=True):
                so_far = decoded[index]
                if isinstance(tokens, NotFiniteError) or isinstance(so_far, NotFiniteError):
                    decoded[index] = tokens
                else:
                    so_far += tokens
                    inputs[index] = tokens
        return decoded

    def prepare_greedy(  # noqa: B027 - the default for engines without graphs, not a forgotten override
        self, cache: Any, *, rows: Sequence[int] = (), chain: int = 0
    ) -> None:
        """Does nothing: a forward without graphs needs no preparation."""

    def prepare_forward(  # noqa: B027 - as above
        self,
        cache: Any,
        *,
        rows: Sequence[int],
        num_logits: int | None = None,
        embedded: bool = False,
        feature_layers: tuple[int, ...] = (),
    ) -> None:
        """Does nothing: a forward without graphs needs no preparation."""
