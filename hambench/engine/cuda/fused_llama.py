"""A Llama on the fused kernels, with its short forwards replayed from CUDA graphs.

Two costs bound decoding on a GPU: reading weights and launching kernels. The fused kernels read each weight once with
little work between them; a graph replays a whole forward with one launch. Both serve every method, because a method
makes the same calls as on :class:`hambench.engine.llama.Llama`: vanilla's one row, a draft's one or two, a
verification's k + 1, HAMburger's macro-step with its features. The kernels also find the greedy tokens, so a step moves
only a few integers each way between host and device, inside its graph. Longer forwards (prefill) run on the ``Llama``.

Tests check it on a CPU with the kernels' references, and with the kernels themselves under Triton's interpreter.
docs/results/README.md lists what has run on a GPU.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from hambench.engine.backed import BackedByLlama
from hambench.engine.cuda.forwards import Forward, GreedyForward, chosen_buffer, make_forward
from hambench.engine.cuda.fused_layer import FusedLayer, Impl, Weight
from hambench.engine.cuda.graphs import EagerLauncher, GraphLauncher, Launcher
from hambench.engine.cuda.staging import StagingBuffer
from hambench.engine.greedy import decode_while_sure
from hambench.engine.kvcache import KVCache
from hambench.engine.language_model import LanguageModel
from hambench.engine.llama import Llama
from hambench.engine.output import ForwardOutput
from hambench.engine.requests.rows import ChainStop
from hambench.engine.shape import rope_frequencies
from hambench.errors import ModelError
from hambench.kernels import MAX_ROWS
from hambench.kernels.lm_head_argmax import lm_head_argmax
from hambench.kernels.norm_gemv import norm_gemv
from hambench.kernels.results import HeadOutput

T = TypeVar("T")

SMALLEST_CACHE = 256
"""Slots of the smallest cache. Caches have powers of two from here, so that few sizes need graphs of their own."""


class FusedLlama(BackedByLlama):
    """A language model that runs forwards of up to 8 rows on the fused kernels and longer ones on its Llama.

    It satisfies :class:`hambench.engine.language_model.LanguageModel`.

    Args:
        llama: The model. Its weights are shared, not copied (packed weights on a CPU are unpacked).
        impl: Kernels to use; ``reference`` is slow, for comparison.
        launches: Launcher of forwards over fixed buffers; by default each is launched directly.

    Raises:
        ModelError: If the kernels lack a feature that the architecture needs.
    """

    def __init__(self, llama: Llama, *, impl: Impl = "auto", launches: Launcher | None = None) -> None:
        head_dim = llama.shape.head_dim
        if impl == "fused" and head_dim & (head_dim - 1):
            raise ModelError(
                f"the fused kernels need a head size that is a power of two, got {head_dim}: use --kernels reference"
            )
        super().__init__(llama)
        self.impl = impl
        self.embedding, self.norm = llama.embedding, llama.norm
        self.launches: Launcher = launches or EagerLauncher(llama.device)
        self.layers = [FusedLayer(layer, impl) for layer in llama.stack.layers]
        """Decoder layers in the kernels' form."""
        self._head = Weight.of(llama.head)
        self._prepared: dict[tuple[object, ...], object] = {}
        self._free: dict[int, list[KVCache]] = {}
        self.rotary_tables = _rotary_tables(llama)
        """Cosines and sines of every position, ``[max_positions, Dh / 2]`` float32 each."""

    def with_same_backend(self, other: Llama) -> FusedLlama:
        """See :class:`hambench.engine.language_model.LanguageModel`."""
        return FusedLlama(other, impl=self.impl, launches=self.launches)

    def new_cache(self, capacity: int) -> KVCache:
        """Returns an empty cache of at least ``capacity`` slots.

        A graph identifies a cache by its storage, so the storage returns to a pool when its cache is no longer used.
        """
        size = max(SMALLEST_CACHE, 1 << (capacity - 1).bit_length())
        if not self.launches.captures or capacity < 1:
            return self.reference.new_cache(capacity)
        free = self._free.setdefault(size, [])
        whole = free.pop() if free else self.reference.new_cache(size)
        lent = copy.copy(whole)
        lent.owns_storage = False
        weakref.finalize(lent, free.append, whole)
        return lent

    def cached_for(self, cache: KVCache, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """Returns what ``make`` prepares over a cache's storage; with graphs, stored with the cache for later."""
        if not self.launches.captures:
            return make()
        key = (cache.keys.data_ptr(), cache.capacity, *key)
        if key not in self._prepared:
            self._prepared[key] = make()
        prepared: T = self._prepared[key]  # type: ignore[assignment]
        return prepared

    @torch.inference_mode()
    def forward(
        self,
        inputs: torch.Tensor,
        cache: KVCache,
        *,
        positions: torch.Tensor | None = None,
        num_logits: int | None = 1,
        feature_layers: tuple[int, ...] = (),
    ) -> ForwardOutput:
        """See :meth:`hambench.engine.language_model.LanguageModel.forward`."""
        num_rows = inputs.shape[0]
        if num_rows > MAX_ROWS or not cache.is_plain:
            return self.reference.forward(
                inputs, cache, positions=positions, num_logits=num_logits, feature_layers=feature_layers
            )
        cache.require(num_rows)
        out = self._graph_of(inputs, cache, num_logits, feature_layers)(inputs, positions, cache.slots)
        cache.advance(num_rows)
        return out

    @torch.inference_mode()
    def greedy(self, tokens: Sequence[int], cache: KVCache, *, num_tokens: int = 1) -> list[int]:
        """See :class:`hambench.engine.language_model.LanguageModel`. Copies only the tokens to the host, no logits."""
        if len(tokens) > MAX_ROWS or not cache.is_plain:
            return self.reference.greedy(tokens, cache, num_tokens=num_tokens)
        cache.require(len(tokens))
        forward = self._greedy_forward(cache, len(tokens), num_tokens, self._newest(cache))
        forward.launch(tokens, cache.slots)
        cache.advance(len(tokens))
        return forward.tokens()

    @torch.inference_mode()
    def decode_greedily(
        self, tokens: Sequence[int], cache: KVCache, num_tokens: int, *, stop: ChainStop | None = None
    ) -> list[int]:
        """See :class:`hambench.engine.language_model.LanguageModel`. Feeds tokens to the next forward on the device.

        With a ``stop`` each forward's logits are looked at before the next.
        """
        if stop is not None:
            return decode_while_sure(self, tokens, cache, num_tokens, stop)
        if num_tokens == 0 or len(tokens) > MAX_ROWS or not cache.is_plain:
            return self.reference.decode_greedily(tokens, cache, num_tokens)
        cache.require(len(tokens) + num_tokens - 1)
        newest = self._newest(cache)
        forwards = [self._greedy_forward(cache, len(tokens), 1, newest)]
        forwards += [self._greedy_forward(cache, 1, 1, newest, place) for place in range(1, num_tokens)]
        for place, forward in enumerate(forwards):
            forward.launch(None if place else tokens, cache.slots)
            cache.advance(1 if place else len(tokens))
        return [token for forward in forwards for token in forward.tokens()]

    @torch.inference_mode()
    def prepare_greedy(self, cache: KVCache, *, rows: Sequence[int] = (), chain: int = 0) -> None:
        """See :meth:`hambench.engine.language_model.LanguageModel.prepare_greedy`. Captures the forwards."""
        if not self.launches.captures:
            return
        newest = self._newest(cache)
        calls = [(length, length, 0) for length in rows]
        if chain:
            calls += [(1, 1, 0), (2, 1, 0), *((1, 1, place) for place in range(1, chain))]
        for num_rows, num_tokens, place in calls:
            if num_rows <= MAX_ROWS:
                self._greedy_forward(cache, num_rows, num_tokens, newest, place)

    @torch.inference_mode()
    def prepare_forward(
        self,
        cache: KVCache,
        *,
        rows: Sequence[int],
        num_logits: int | None = None,
        embedded: bool = False,
        feature_layers: tuple[int, ...] = (),
    ) -> None:
        """See :meth:`hambench.engine.language_model.LanguageModel.prepare_forward`. Captures the forwards."""
        if not self.launches.captures:
            return
        for num_rows in rows:
            if num_rows <= MAX_ROWS and cache.capacity >= num_rows:
                ids = torch.zeros(num_rows, dtype=torch.int64, device=self.device)
                inputs = self.embed(ids) if embedded else ids
                self._graph_of(inputs, cache, num_logits, feature_layers)

    def _graph_of(
        self, inputs: torch.Tensor, cache: KVCache, num_logits: int | None, feature_layers: tuple[int, ...]
    ) -> Forward:
        """Returns the forward over inputs of this form, captured over the cache if there are graphs."""
        num_rows = inputs.shape[0]
        num_selected = num_rows if num_logits is None else min(num_logits, num_rows)
        return self.cached_for(
            cache,
            ("forward", num_rows, inputs.ndim, num_selected, feature_layers),
            lambda: make_forward(self, inputs, cache, num_selected, feature_layers),
        )

    def _newest(self, cache: KVCache) -> StagingBuffer:
        """Returns the buffer with the newest greedy token over a cache and its logit, on the device."""
        return self.cached_for(cache, ("newest",), lambda: chosen_buffer(1, self.device))

    def _greedy_forward(
        self, cache: KVCache, num_rows: int, num_tokens: int, newest: StagingBuffer, place: int = 0
    ) -> GreedyForward:
        """Returns a forward with greedy tokens; from ``place`` 1 of a chain on, it reads the newest device token."""
        return self.cached_for(
            cache,
            ("greedy", num_rows, num_tokens, place),
            lambda: GreedyForward(self, cache, num_rows, num_tokens, newest, follows=place > 0),
        )

    def project(self, stream: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Computes logits ``[R, V]``, in the model's type, from a residual stream ``[R, D]`` before the final norm."""
        return norm_gemv(
            stream,
            self._head.matrix,
            norm_weight=self.norm.weight,
            eps=self.norm.eps,
            scale=self._head.scale,
            bias=self._head.bias,
            out=out,
            impl=self.impl,
        )

    def greedy_head(
        self, rows: torch.Tensor, out: HeadOutput, *, normed: bool = False, done: torch.Tensor | None = None
    ) -> None:
        """Finds the most probable token of each row ``[R, D]``, of the residual stream or ``normed`` already."""
        lm_head_argmax(
            rows,
            self._head.matrix,
            norm_weight=None if normed else self.norm.weight,
            eps=self.norm.eps,
            scale=self._head.scale,
            out=out,
            done=done,
            impl=self.impl,
        )


def _rotary_tables(llama: Llama) -> tuple[torch.Tensor, torch.Tensor]:
    places = torch.arange(llama.shape.max_positions, device=llama.device, dtype=torch.float32)
    angles = places[:, None] * rope_frequencies(llama.shape).to(llama.device, torch.float32)
    # rounded to the model's type, as the plain forward rounds them
    cos, sin = (table.to(llama.dtype).float().contiguous() for table in (angles.cos(), angles.sin()))
    return cos, sin


def accelerate(llama: LanguageModel, *, regime: str, kernels: str) -> LanguageModel:
    """Returns the model for a cell's regime (``eager``, ``graph``) and kernels (``fused``, ``reference``).

    ``reference`` means torch's own operations; in ``eager`` that is the model itself.

    Raises:
        ModelError: If this device or model does not support the combination.
    """
    if regime == "eager" and kernels == "reference":
        return llama
    if llama.device.type != "cuda":
        raise ModelError(
            f"regime {regime!r} with {kernels} kernels needs a CUDA device, the model is on {llama.device}: "
            "use --regime eager --kernels reference"
        )
    if kernels == "reference":
        raise ModelError("regime 'graph' runs on the fused kernels: use --kernels fused")
    if llama.reference is None:
        raise ModelError(
            "the fused kernels run Llama-family models only: use --regime eager --kernels reference"
        )
    return FusedLlama(llama.reference, impl="fused", launches=GraphLauncher() if regime == "graph" else None)
