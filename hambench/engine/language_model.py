"""The calls that every decoding method makes on a model, on any engine.

:class:`hambench.engine.llama.Llama` is the reference. The CUDA model has a ``Llama`` and runs its short forwards with
kernels; the transformers adapter runs architectures that ``Llama`` does not. Letters in shapes: T rows, D hidden size,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from hambench.engine.llama import Llama
    from hambench.engine.output import ForwardOutput
    from hambench.engine.requests.rows import ChainStop, Ids, Rows
    from hambench.engine.shape import LlamaShape
    from hambench.errors import NotFiniteError


class LanguageModel(Protocol):
    """A causal language model on one device.

    A ``cache`` argument must come from :meth:`new_cache` of the same model.
    """

    @property
    def shape(self) -> LlamaShape:
        """Sizes of the model."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one decode step reads."""

    @property
    def reference(self) -> Llama | None:
        """Reference model with the same weights; ``None`` if the engine's own forward can't run this architecture."""

    @property
    def prefill_chunk(self) -> int | None:
        """Rows of the pieces in which prompts are read; ``None`` is the engine's own number. It can be set."""

    @prefill_chunk.setter
    def prefill_chunk(self, num_rows: int | None) -> None: ...

    def with_same_backend(self, other: Llama) -> LanguageModel:
        """Returns another model that runs the way this one does: with the same kernels and launches."""

    def new_cache(self, capacity: int) -> Any:
        """Returns an empty KV cache of at least ``capacity`` slots."""

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Looks up the embeddings ``[T, D]`` of ids ``[T]``."""

    def lm_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Computes logits ``[R, V]`` in float32 from normed hidden states ``[R, D]``."""

    def forward(
        self,
        inputs: torch.Tensor,
        cache: Any,
        *,
        positions: torch.Tensor | None = None,
        num_logits: int | None = 1,
        feature_layers: tuple[int, ...] = (),
    ) -> ForwardOutput:
        """Runs T rows through the model and appends T slots to the cache.

        Args:
            inputs: Ids ``[T]`` (int64) or embeddings ``[T, D]``.
            cache: Grows by T slots.
            positions: Rotary positions ``[T]``; by default they continue from ``cache.next_position``.
            num_logits: Logits for this many last rows; ``None`` for all.
            feature_layers: Layers (0-based) whose hidden state to return.

        Raises:
            ContextOverflowError: If the cache has no room for T more slots.
        """

    def prefill(
        self, ids: torch.Tensor, cache: Any, *, feature_layers: tuple[int, ...] = ()
    ) -> ForwardOutput:
        """Runs a prompt ``[T]``; returns logits, hidden state and features of the last row only."""

    def prefill_pieces(
        self, ids: torch.Tensor, cache: Any, *, feature_layers: tuple[int, ...] = ()
    ) -> Iterator[ForwardOutput | None]:
        """Runs :meth:`prefill` in pieces; yields after each, after the last one the output."""

    def greedy(self, tokens: Sequence[int], cache: Any, *, num_tokens: int = 1) -> list[int]:
        """Runs T ``tokens`` and returns the greedy next token after each of the last ``num_tokens`` of them.

        Ties go to the lowest id. The cache grows by T slots.

        Raises:
            ContextOverflowError: If the cache has no room for these slots.
        """

    def decode_greedily(
        self, tokens: Sequence[int], cache: Any, num_tokens: int, *, stop: ChainStop | None = None
    ) -> list[int]:
        """Returns the next ``num_tokens`` greedy tokens after ``tokens``, feeding each to the next forward.

        With a ``stop`` they may be fewer, but at least one. The cache grows by T slots and one for each token returned
        but the newest, which has no slot yet.

        Raises:
            ContextOverflowError: If the cache has no room for these slots.
        """

    def forward_together(
        self, sequences: Sequence[Rows], *, feature_layers: tuple[int, ...] = ()
    ) -> list[ForwardOutput]:
        """Runs :meth:`forward` for several sequences, with one pass over the weights where the engine can.

        There is no padding: rows of all sequences lie one after the other, and attention is each one's own.
        """

    def greedy_together(self, sequences: Sequence[Ids]) -> list[list[int] | NotFiniteError]:
        """Runs :meth:`greedy` for several sequences; an error stands for what it would raise for one of them."""

    def decode_greedily_together(self, sequences: Sequence[Ids]) -> list[list[int] | NotFiniteError]:
        """Runs :meth:`decode_greedily` for several sequences, whose chains may have different lengths."""

    def prepare_greedy(self, cache: Any, *, rows: Sequence[int] = (), chain: int = 0) -> None:
        """Captures graphs for greedy calls over an empty cache, so that no timed call pays for it.

        Args:
            cache: An empty cache.
            rows: Lengths of :meth:`greedy` calls that ask for every row.
            chain: Most tokens of a :meth:`decode_greedily` call that starts from one or two tokens.
        """

    def prepare_forward(
        self,
        cache: Any,
        *,
        rows: Sequence[int],
        num_logits: int | None = None,
        embedded: bool = False,
        feature_layers: tuple[int, ...] = (),
    ) -> None:
        """Captures graphs for :meth:`forward` calls over an empty cache, so that no timed call pays for it.

        Args:
            cache: An empty cache.
            rows: Numbers of rows T of these calls.
            num_logits: Number of last rows whose logits they request; ``None`` for all.
            embedded: True if their inputs are embeddings.
            feature_layers: Layers whose hidden state they request.
        """
