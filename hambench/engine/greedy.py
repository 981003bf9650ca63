"""Greedy decoding on top of ``forward``, for engines that do not keep these calls on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from hambench.engine.output import ForwardOutput
from hambench.engine.requests.rows import ChainStop, Ids, Rows
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


def highest_probability(logits: torch.Tensor) -> float:
    """Computes the probability of the most probable token from logits ``[1, V]``."""
    row = logits[-1].float()
    return float(torch.exp(row.max() - torch.logsumexp(row, dim=-1)))


class _Forwards(Protocol):
    """What a chain of forwards needs of a model."""

    @property
    def device(self) -> torch.device: ...

    def forward(self, inputs: torch.Tensor, cache: Any, *, num_logits: int | None = 1) -> ForwardOutput: ...


def decode_while_sure(
    model: _Forwards, tokens: Sequence[int], cache: Any, num_tokens: int, stop: ChainStop
) -> list[int]:
    """Decodes up to ``num_tokens`` greedy tokens with a forward each, which ``stop`` may end earlier.

    It is what :meth:`hambench.engine.language_model.LanguageModel.decode_greedily` does where an engine can't ask how
    sure the model is without the logits.
    """
    chain = _Chain(tokens, num_tokens, stop)
    while chain.goes_on:
        ids = torch.tensor(chain.inputs, dtype=torch.int64, device=model.device)
        chain.take(model.forward(ids, cache, num_logits=1).logits)
    return chain.decoded


@dataclass
class _Chain:
    """A greedy chain, which grows by a token per forward."""

    inputs: Sequence[int]
    """Tokens of the next forward."""
    num_tokens: int
    stop: ChainStop | None
    decoded: list[int] = field(default_factory=list)
    error: NotFiniteError | None = None
    _likely: float = 1.0

    @property
    def goes_on(self) -> bool:
        """Whether it wants another token."""
        is_sure = not self.decoded or self.stop is None or self.stop.goes_on(self._likely)
        return self.error is None and is_sure and len(self.decoded) < self.num_tokens

    def take(self, logits: torch.Tensor) -> None:
        """Takes the next token from logits ``[1, V]``.

        Raises:
            NotFiniteError: If they have no finite maximum.
        """
        self.inputs = most_probable(logits)
        self.decoded += self.inputs
        if self.stop is not None:
            self._likely = self.stop.likely(self._likely, highest_probability(logits))


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

    def decode_greedily(
        self, tokens: Sequence[int], cache: Any, num_tokens: int, *, stop: ChainStop | None = None
    ) -> list[int]:
        """See :meth:`hambench.engine.language_model.LanguageModel.decode_greedily`."""
        if stop is not None:
            return decode_while_sure(self, tokens, cache, num_tokens, stop)
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
        chains = [_Chain(ids.tokens, ids.num_tokens, ids.stop) for ids in sequences]
        while going := [index for index, chain in enumerate(chains) if chain.goes_on]:
            rows = [
                Rows(
                    torch.tensor(chains[index].inputs, dtype=torch.int64, device=self.device),
                    sequences[index].cache,
                )
                for index in going
            ]
            for index, out in zip(going, self.forward_together(rows), strict=True):
                try:
                    chains[index].take(out.logits)
                except NotFiniteError as error:
                    chains[index].error = error
        return [chain.error or chain.decoded for chain in chains]

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
