"""What a native forward takes and gives, sequence by sequence.

Letters in shapes: T rows, D hidden size, KVH key/value heads, Dh head size, S slots reserved, V vocabulary, R rows that
go through the head, F layers whose hidden state is given.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from hambench.kernels.cpu.library import Stop

NO_MAXIMUM = "a row's logits have no finite maximum"


class NonFiniteLogitError(ArithmeticError):
    """Raised if a row's logits have no finite maximum: NaN or infinity anywhere, or minus infinity everywhere."""


SCALE_BYTES = 2
"""Bytes of the scale of an int8 row."""


class CachePart(NamedTuple):
    """One sequence's rows in a forward: ``num_rows`` new slots after the ``past`` slots of its cache."""

    keys: Tensor
    """``[layers, KVH, S, Dh]``, contiguous, in the model's cache type; or ``[layers, KVH, S, Dh + 2]`` bytes: rows of
    int8 codes with a bfloat16 scale behind them."""
    values: Tensor
    past: int
    num_rows: int


class Output(NamedTuple):
    """The requested outputs of a forward; ``None`` for others."""

    logits: Tensor | None
    """``[R, V]`` float32."""
    hidden: Tensor | None
    """``[T, D]`` float32, after the final norm."""
    features: Tensor | None
    """``[F, T, D]`` float32."""


class GreedyRows(NamedTuple):
    """What one sequence asks of a greedy forward over several."""

    tokens: Sequence[int]
    """Ids of its T rows."""
    part: CachePart
    """Its cache; ``part.num_rows`` is T."""
    positions: Sequence[int]
    """Rotary position of each row."""
    num_tokens: int
    """Tokens to give, 1 to T: the greedy next one after each of so many last rows."""
    chain: int = 0
    """As many more, each fed to a forward of its own at the next slot and position."""
    stop: tuple[float, bool] | None = None
    """Ends the chain after the first token of which the model is less sure: least probability, and whether the product
    of those of the last row's token and of its chain must reach it, or each by itself."""

    def check(self) -> None:
        """Checks what the kernels trust.

        Raises:
            ValueError: If the numbers don't fit one another or the cache.
        """
        num_rows = len(self.tokens)
        if not 1 <= self.num_tokens <= num_rows:
            raise ValueError(f"num_tokens must be in 1..{num_rows} (the rows given), got {self.num_tokens}")
        check_layout(self.part)
        capacity, behind = self.part.keys.shape[2], self.part.past + num_rows
        if self.chain < 0 or behind + self.chain > capacity:
            raise ValueError(
                f"chain must be >= 0 and fit the cache of {capacity} slots behind {behind}, got {self.chain}"
            )


def native_stops(sequences: Sequence[GreedyRows]) -> ctypes.Array[Stop] | None:
    """Returns the library's structures; ``None`` where nothing stops a chain, because asking costs a little."""
    if all(sequence.stop is None for sequence in sequences):
        return None
    # below every probability: the chain of a sequence without a stop goes on
    return (Stop * len(sequences))(*[Stop(*(sequence.stop or (-math.inf, False))) for sequence in sequences])


def check_layout(part: CachePart) -> None:
    """Refuses keys and values that don't have four dimensions."""
    for name, tensor in (("keys", part.keys), ("values", part.values)):
        if tensor.ndim != 4:
            raise ValueError(f"{name} must be [layers, KVH, S, Dh], got {list(tensor.shape)}")
