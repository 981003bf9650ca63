"""The requests that methods make of a language model: its calls, as work that a batch can share.

Letters in shapes: T rows, D hidden size.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

from hambench.decoding import Request
from hambench.engine.requests.rows import ChainStop, Ids, Rows

if TYPE_CHECKING:
    import torch

    from hambench.engine.kvcache import KVCache
    from hambench.engine.language_model import LanguageModel
    from hambench.engine.output import ForwardOutput


class ModelRequest(Request):
    """A call of one model over one sequence's cache.

    Args:
        model: The model that runs.
        cache: The sequence's cache of that model.
    """

    __slots__ = ("cache", "model")

    def __init__(self, model: LanguageModel, cache: KVCache) -> None:
        self.model, self.cache = model, cache

    @property
    def together(self) -> Hashable | None:
        """See :class:`hambench.decoding.Request`."""
        return id(self.model)

    @property
    def cost(self) -> int:
        """See :class:`hambench.decoding.Request`."""
        return self.model.weight_bytes

    @property
    def first_used(self) -> frozenset[Hashable]:
        """See :class:`hambench.decoding.Request`."""
        return frozenset({(id(self.model), type(self.cache))})


class Prefill(ModelRequest):
    """:meth:`~hambench.engine.language_model.LanguageModel.prefill`; answered by a ``ForwardOutput``.

    Args:
        model: The model that reads the prompt.
        ids: The prompt ``[T]``.
        cache: An empty cache.
        feature_layers: Layers whose hidden state to return.
    """

    __slots__ = ("feature_layers", "ids")

    in_pieces = True

    def __init__(
        self,
        model: LanguageModel,
        ids: torch.Tensor,
        cache: KVCache,
        *,
        feature_layers: tuple[int, ...] = (),
    ) -> None:
        super().__init__(model, cache)
        self.ids, self.feature_layers = ids, feature_layers

    def answer(self) -> ForwardOutput:
        """Reads the whole prompt."""
        return self.model.prefill(self.ids, self.cache, feature_layers=self.feature_layers)

    def pieces(self) -> Iterator[ForwardOutput | None]:
        """Reads the prompt chunk by chunk."""
        return self.model.prefill_pieces(self.ids, self.cache, feature_layers=self.feature_layers)


class Forward(ModelRequest):
    """:meth:`~hambench.engine.language_model.LanguageModel.forward`; answered by a ``ForwardOutput``.

    Args:
        model: The model that runs.
        inputs: Ids ``[T]`` or embeddings ``[T, D]``.
        cache: Grows by T slots.
        positions: Rotary positions ``[T]``; by default they continue from ``cache.next_position``.
        num_logits: Logits for this many last rows; ``None`` for all.
        feature_layers: Layers whose hidden state to return.
    """

    __slots__ = ("feature_layers", "inputs", "num_logits", "positions")

    def __init__(
        self,
        model: LanguageModel,
        inputs: torch.Tensor,
        cache: KVCache,
        *,
        positions: torch.Tensor | None = None,
        num_logits: int | None = 1,
        feature_layers: tuple[int, ...] = (),
    ) -> None:
        super().__init__(model, cache)
        self.inputs, self.positions = inputs, positions
        self.num_logits, self.feature_layers = num_logits, feature_layers

    def answer(self) -> ForwardOutput:
        """Runs the rows."""
        return self.model.forward(
            self.inputs,
            self.cache,
            positions=self.positions,
            num_logits=self.num_logits,
            feature_layers=self.feature_layers,
        )

    @property
    def together(self) -> Hashable | None:
        """See :class:`hambench.decoding.Request`."""
        return id(self.model), self.feature_layers

    @classmethod
    def answer_together(cls, requests: Sequence[Self]) -> list[ForwardOutput]:
        """Runs the rows of all in one forward."""
        first = requests[0]
        return first.model.forward_together(
            [Rows(each.inputs, each.cache, each.positions, each.num_logits) for each in requests],
            feature_layers=first.feature_layers,
        )


class Greedy(ModelRequest):
    """:meth:`~hambench.engine.language_model.LanguageModel.greedy`; answered by a list of ids.

    Args:
        model: The model that runs.
        tokens: Ids of the T rows.
        cache: Grows by T slots.
        num_tokens: Tokens wanted: the next one after each of so many last rows.
    """

    __slots__ = ("num_tokens", "tokens")

    def __init__(
        self, model: LanguageModel, tokens: Sequence[int], cache: KVCache, *, num_tokens: int = 1
    ) -> None:
        super().__init__(model, cache)
        self.tokens, self.num_tokens = tokens, num_tokens

    def answer(self) -> list[int]:
        """Runs the rows."""
        return self.model.greedy(self.tokens, self.cache, num_tokens=self.num_tokens)

    @classmethod
    def answer_together(cls, requests: Sequence[Self]) -> list[Any]:
        """Runs the rows of all in one forward."""
        sequences = [Ids(each.tokens, each.cache, each.num_tokens) for each in requests]
        return list(requests[0].model.greedy_together(sequences))


class GreedyChain(ModelRequest):
    """:meth:`~hambench.engine.language_model.LanguageModel.decode_greedily`; answered by a list of ids.

    Args:
        model: The model that runs.
        tokens: Ids of the first forward's T rows.
        cache: Grows by T slots, and one for each token but the newest.
        num_tokens: Tokens wanted, each fed to the next forward.
        stop: What may end the chain earlier.
    """

    __slots__ = ("num_tokens", "stop", "tokens")

    def __init__(
        self,
        model: LanguageModel,
        tokens: Sequence[int],
        cache: KVCache,
        num_tokens: int,
        *,
        stop: ChainStop | None = None,
    ) -> None:
        super().__init__(model, cache)
        self.tokens, self.num_tokens, self.stop = tokens, num_tokens, stop

    def answer(self) -> list[int]:
        """Runs the chain."""
        return self.model.decode_greedily(self.tokens, self.cache, self.num_tokens, stop=self.stop)

    @classmethod
    def answer_together(cls, requests: Sequence[Self]) -> list[Any]:
        """Runs the chains of all side by side."""
        sequences = [Ids(each.tokens, each.cache, each.num_tokens, each.stop) for each in requests]
        return list(requests[0].model.decode_greedily_together(sequences))
