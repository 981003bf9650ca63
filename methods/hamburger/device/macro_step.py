"""The interface of a greedy macro-step that an engine runs as a whole."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from hambench.decoding import Alone, Request

ALWAYS, NEVER = 0.0, 2.0
"""Thresholds that every P(continue) reaches, and that none does."""


class Emitted(NamedTuple):
    """One macro-step's result on the host."""

    tokens: tuple[int, ...]
    continue_probs: tuple[float, ...]
    """After each token that the stop head was asked about."""


class MacroStep(abc.ABC):
    """Macro-steps over one cache of the base.

    Letters in shapes: F feature vectors, D hidden size.

    Args:
        most_tokens: Maximum number of tokens per macro-step.
        micro_slot_bytes: Bytes that the micro-steps keep of one row, keys and values of every micro layer.
    """

    def __init__(self, *, most_tokens: int, micro_slot_bytes: int) -> None:
        self.most_tokens, self.micro_slot_bytes = most_tokens, micro_slot_bytes
        self._last_count = 1

    @abc.abstractmethod
    def begin(
        self,
        features: Tensor,
        token: Tensor,
        logit: Tensor,
        *,
        slots: int,
        position: int,
        confidence: float,
    ) -> None:
        """Prepares the macro-step after a prompt, without waiting for a device.

        Args:
            features: Features of the prompt's last row ``[F, D]``.
            token: Token 1 ``[1]``, int64.
            logit: Its logit ``[1]``, float32.
            slots: Number of cache slots in use.
            position: Position of the next slot if this macro-step had no tokens.
            confidence: Least P(continue) to continue.
        """

    @abc.abstractmethod
    def first(self) -> Emitted:
        """Emits the macro-step that :meth:`begin` prepared."""

    @abc.abstractmethod
    def next(self) -> Emitted:
        """Stores the last macro-step's tokens in one slot, which the cache must have free, and emits the next one."""

    def asks_first(self) -> Request:
        """The request that :meth:`first` answers."""
        return Alone(self.first)

    def asks_next(self) -> Request:
        """The request that :meth:`next` answers."""
        return Alone(self.next)

    def force(self, num_tokens: int) -> None:
        """Forces the length of the next macro-steps, overruling the stop head (for benchmarks).

        Raises:
            ValueError: If a macro-step can't have so many tokens.
        """
        if not 1 <= num_tokens <= self.most_tokens:
            raise ValueError(f"num_tokens must be 1..{self.most_tokens}, got {num_tokens}")
        self._set_length(num_tokens)

    def replace_last(self, tokens: Sequence[int]) -> None:
        """Replaces the last macro-step's tokens before they get their slot (teacher forcing).

        Args:
            tokens: As many as were emitted, or fewer, as if the stop head had ended the macro-step there.

        Raises:
            ValueError: If there are none of them, or more than were emitted.
        """
        if not 1 <= len(tokens) <= self._last_count:
            raise ValueError(
                f"tokens must be 1..{self._last_count}, at most as many as were emitted, got {len(tokens)}"
            )
        self._last_count = len(tokens)
        self._set_last(tokens)

    @abc.abstractmethod
    def _set_length(self, num_tokens: int) -> None: ...

    @abc.abstractmethod
    def _set_last(self, tokens: Sequence[int]) -> None: ...
