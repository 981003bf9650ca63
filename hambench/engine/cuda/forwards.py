"""Forwards over buffers with fixed addresses, as graphs need them: layers, logits, greedy tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hambench.engine.cuda.fused_layer import LayerBuffers
from hambench.engine.cuda.graphs import Run
from hambench.engine.cuda.staging import StagingBuffer

if TYPE_CHECKING:
    from hambench.engine.cuda.fused_llama import FusedLlama

from hambench.engine.kvcache import KVCache
from hambench.engine.output import ForwardOutput
from hambench.errors import NotFiniteError
from hambench.kernels.decode_attention import decode_attention
from hambench.kernels.results import HeadOutput


class Trunk:
    """The decoder layers over one cache and over buffers with fixed addresses; :meth:`run` fills the buffers.

    Args:
        llama: The model.
        cache: Cache whose storage receives the rows, from slot ``slots`` on.
        inputs: Ids ``[T]`` or embeddings ``[T, D]``.
        positions: Rotary positions ``[T]``, int64.
        slots: Slots in use before the rows ``[1]``, int32.
        feature_layers: Layers (0-based) whose hidden states to store; the last layer's are normed.
        features: Where to store them, ``[F, T, D]``.
    """

    def __init__(
        self,
        llama: FusedLlama,
        cache: KVCache,
        *,
        inputs: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        feature_layers: tuple[int, ...] = (),
        features: torch.Tensor | None = None,
    ) -> None:
        num_rows, shape = positions.shape[0], llama.shape
        self._llama, self._inputs, self._positions, self._slots = llama, inputs, positions, slots
        self._keys, self._values = cache.keys, cache.values
        self._buffers = LayerBuffers.empty(num_rows, shape, llama.dtype, llama.device)
        self._tickets = torch.zeros(shape.num_kv_heads, dtype=torch.int32, device=llama.device)
        self.features = (
            torch.empty(
                len(feature_layers), num_rows, shape.hidden_size, dtype=llama.dtype, device=llama.device
            )
            if features is None
            else features
        )
        by_layer = dict(zip(feature_layers, self.features, strict=True))
        self._normed_feature = by_layer.pop(shape.num_layers - 1, None)
        self._features_by_layer = by_layer

    @property
    def stream(self) -> torch.Tensor:
        """Residual stream after the last layer, ``[T, D]``."""
        return self._buffers.stream

    def run(self) -> None:
        """Runs the layers."""
        llama, buffers = self._llama, self._buffers
        cos, sin = llama.rotary_tables
        ids = self._inputs if self._inputs.ndim == 1 else None
        stream = self._inputs if ids is None else buffers.stream
        for index, layer in enumerate(llama.layers):
            if index == 0 and ids is not None:
                qkv = layer.project(llama.embedding, buffers, ids=ids)
            else:
                qkv = layer.project(stream, buffers)
            heads = decode_attention(
                qkv,
                self._keys[index],
                self._values[index],
                slots=self._slots,
                positions=self._positions,
                cos=cos,
                sin=sin,
                num_heads=llama.shape.num_heads,
                tickets=self._tickets,
                out=buffers.heads,
                impl=llama.impl,
            )
            stream = layer.finish(stream, heads, buffers, out=self._features_by_layer.get(index))
        if self._normed_feature is not None:
            self._normed_feature.copy_(llama.norm(stream))


@dataclasses.dataclass
class Forward:
    """One forward over buffers with fixed addresses, as a graph needs it."""

    inputs: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    logits: torch.Tensor
    hidden: torch.Tensor
    features: torch.Tensor
    replay: Run

    def __call__(self, inputs: torch.Tensor, positions: torch.Tensor | None, slots: int) -> ForwardOutput:
        """Runs the forward on other inputs; the caller owns the tensors it returns."""
        self.inputs.copy_(inputs)
        self.slots.fill_(slots)
        if positions is None:
            torch.arange(slots, slots + self.positions.shape[0], out=self.positions)
        else:
            self.positions.copy_(positions)
        self.replay()
        # .float() copies half-precision logits; copy float32 ones too, so that the caller owns them
        logits = self.logits.to(torch.float32, copy=True)
        return ForwardOutput(logits=logits, hidden=self.hidden.clone(), features=self.features.clone())


def make_forward(
    llama: FusedLlama,
    inputs: torch.Tensor,
    cache: KVCache,
    num_logits: int,
    feature_layers: tuple[int, ...],
) -> Forward:
    """Prepares a forward over a cache, with as many rows as ``inputs``."""
    num_rows, device, dtype = inputs.shape[0], llama.device, llama.dtype
    own = inputs.clone() if inputs.ndim == 1 else inputs.to(dtype, copy=True)
    positions = torch.zeros(num_rows, dtype=torch.int64, device=device)
    slots = torch.full((1,), cache.slots, dtype=torch.int32, device=device)
    trunk = Trunk(llama, cache, inputs=own, positions=positions, slots=slots, feature_layers=feature_layers)
    hidden = torch.empty(num_rows, llama.shape.hidden_size, dtype=dtype, device=device)
    logits = torch.empty(num_logits, llama.shape.vocab_size, dtype=dtype, device=device)

    def run() -> None:
        trunk.run()
        hidden.copy_(llama.norm(trunk.stream))
        if num_logits:
            llama.project(trunk.stream[num_rows - num_logits :], logits)

    return Forward(own, positions, slots, logits, hidden, trunk.features, llama.launches.capture(run))


class GreedyForward:
    """One forward and its greedy tokens; copies a few integers in and out as part of the work."""

    def __init__(
        self,
        llama: FusedLlama,
        cache: KVCache,
        num_rows: int,
        num_tokens: int,
        newest: StagingBuffer,
        *,
        follows: bool,
    ) -> None:
        device = llama.device
        fields = {
            "slots": (torch.int32, 1),
            "positions": (torch.int64, num_rows),
            "ids": (torch.int64, num_rows),
        }
        inbox = StagingBuffer(fields, device)
        chosen = newest if num_tokens == 1 else chosen_buffer(num_tokens, device)
        self._sent, self._got = inbox.host_copy(), chosen.host_copy()
        # python writes these at each step, and numpy's views accept plain integers directly
        self._fields = {name: self._sent[name].numpy() for name in fields}
        trunk = Trunk(
            llama,
            cache,
            inputs=newest["tokens"] if follows else inbox["ids"],
            positions=inbox["positions"],
            slots=inbox["slots"],
        )
        head = HeadOutput(chosen["tokens"], chosen["logits"], None)

        def run() -> None:
            inbox.copy_(self._sent)
            trunk.run()
            llama.greedy_head(trunk.stream[num_rows - num_tokens :], head)
            self._got.copy_(chosen)

        # preparing may run the forward; the first real run overwrites what that writes
        self._place(cache.slots)
        self._fence = llama.launches.fence()
        self._replay = llama.launches.capture(run)

    def launch(self, tokens: Sequence[int] | None, slots: int) -> None:
        """Launches the forward over ``tokens``, or over the newest token on the device, without waiting."""
        self._place(slots)
        if tokens is not None:
            self._fields["ids"][:] = tokens
        self._replay()
        self._fence.record()

    def _place(self, slots: int) -> None:
        positions = self._fields["positions"]
        self._fields["slots"][0] = slots
        positions[:] = range(slots, slots + len(positions))

    def tokens(self) -> list[int]:
        """Waits for the forward and returns its tokens.

        Raises:
            NotFiniteError: If a token was chosen from logits that are not finite.
        """
        self._fence.wait()
        if not all(map(math.isfinite, self._got["logits"].tolist())):
            raise NotFiniteError
        token_ids: list[int] = self._got["tokens"].tolist()
        return token_ids


def chosen_buffer(num_tokens: int, device: torch.device) -> StagingBuffer:
    """Allocates one buffer for greedy tokens and their logits."""
    return StagingBuffer({"tokens": (torch.int64, num_tokens), "logits": (torch.float32, num_tokens)}, device)
