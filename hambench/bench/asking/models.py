"""Models around a model: one notes the calls that a loop makes, one answers them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from hambench.engine.language_model import LanguageModel
from hambench.engine.output import ForwardOutput
from hambench.engine.requests.rows import ChainStop


class Call(NamedTuple):
    """One call of a model."""

    model: str
    """``target`` or ``draft``."""
    name: str
    """Method of :class:`~hambench.engine.language_model.LanguageModel`."""
    rows: int
    """Rows that go in."""
    slots: int
    """Slots of the cache before the call."""
    wanted: int | None
    """Tokens or rows of logits that come back; ``None`` for those of all rows."""

    @property
    def num_forwards(self) -> int:
        """Forwards of the call: one per token of a chain, else one."""
        return self.wanted or 0 if self.name == "decode_greedily" else 1


class NotedCalls:
    """A model that appends every call to a list and passes it on.

    Args:
        name: Stands in each :class:`Call`.
        model: Does the work.
        calls: The list.
    """

    def __init__(self, name: str, model: LanguageModel, calls: list[Call]) -> None:
        self._name, self._model, self._calls = name, model, calls

    def __getattr__(self, name: str) -> Any:
        """Everything but the calls is the model's own."""
        return getattr(self._model, name)

    def prefill(self, ids: torch.Tensor, cache: Any, **arguments: Any) -> ForwardOutput:
        """Notes and passes on."""
        self._note("prefill", len(ids), cache, 1)
        return self._model.prefill(ids, cache, **arguments)

    def forward(
        self, inputs: torch.Tensor, cache: Any, *, num_logits: int | None = 1, **arguments: Any
    ) -> ForwardOutput:
        """Notes and passes on."""
        self._note("forward", len(inputs), cache, num_logits)
        return self._model.forward(inputs, cache, num_logits=num_logits, **arguments)

    def greedy(self, tokens: Sequence[int], cache: Any, *, num_tokens: int = 1) -> list[int]:
        """Notes and passes on."""
        self._note("greedy", len(tokens), cache, num_tokens)
        return self._model.greedy(tokens, cache, num_tokens=num_tokens)

    def decode_greedily(
        self, tokens: Sequence[int], cache: Any, num_tokens: int, *, stop: ChainStop | None = None
    ) -> list[int]:
        """Notes and passes on."""
        slots = cache.slots
        decoded = self._model.decode_greedily(tokens, cache, num_tokens, stop=stop)
        # a chain may end early: noted are the tokens that came back
        self._calls.append(Call(self._name, "decode_greedily", len(tokens), slots, len(decoded)))
        return decoded

    def _note(self, name: str, rows: int, cache: Any, wanted: int | None) -> None:
        self._calls.append(Call(self._name, name, rows, cache.slots, wanted))


@dataclass
class SlotCount:
    """A cache of nothing but its number of slots."""

    slots: int = 0
    bytes_per_slot: int = 1

    @property
    def bytes_used(self) -> int:
        """As many as slots."""
        return self.slots * self.bytes_per_slot

    def truncate(self, slots: int) -> None:
        """Keeps the first ``slots``."""
        self.slots = slots


class AnswersAtOnce:
    """A model that answers every greedy call with id 0 without any work, so that only the loop around it takes time.

    Args:
        model: Its sizes and device are this model's.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        """Everything but caches and calls is the model's own."""
        return getattr(self._model, name)

    def new_cache(self, capacity: int) -> SlotCount:
        """Returns a counter."""
        return SlotCount()

    def prepare_greedy(self, cache: SlotCount, *, rows: Sequence[int] = (), chain: int = 0) -> None:
        """Does nothing."""

    def prefill(self, ids: torch.Tensor, cache: SlotCount, **_: Any) -> ForwardOutput:
        """Returns logits whose first id wins."""
        cache.slots += len(ids)
        row = torch.zeros(1, 1)
        return ForwardOutput(logits=row, hidden=row, features=row[None][:0])

    def greedy(self, tokens: Sequence[int], cache: SlotCount, *, num_tokens: int = 1) -> list[int]:
        """Returns zeros."""
        cache.slots += len(tokens)
        return [0] * num_tokens

    def decode_greedily(
        self, tokens: Sequence[int], cache: SlotCount, num_tokens: int, *, stop: ChainStop | None = None
    ) -> list[int]:
        """Returns zeros."""
        if num_tokens:
            cache.slots += len(tokens) + num_tokens - 1
        return [0] * num_tokens
