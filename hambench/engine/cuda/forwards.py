"""Forwards over buffers that stay where they are, as a graph needs them: layers, logits, greedy tokens."""

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
    """The decoder layers over one cache and over buffers that stay where they are; after :meth:`run` they are full.

    Args:
        llama: The model.
        cache: Rows go to its storage, at the slots that ``slots`` says.
        inputs: Ids ``[T]`` or embeddings ``[T, D]``.
        positions: Rotary positions ``[T]``, int64.
        slots: Slots in use before the rows ``[1]``, int32.
        feature_layers: Layers (0-based) whose residual stream to keep; the last one's is normed.
        features: Where, ``[F, T, D]``.
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
        kept = dict(zip(feature_layers, self.features, strict=True))
        self._normed_feature = kept.pop(shape.num_layers - 1, None)
        self._kept = kept

    @property
    def stream(self) -> torch.Tensor:
        """The residual stream behind the last layer, ``[T, D]``."""
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
            stream = layer.finish(stream, heads, buffers, out=self._kept.get(index))
        if self._normed_feature is not None:
            self._normed_feature.copy_(llama.norm(stream))


@dataclasses.dataclass
class Forward:
    """One forward over buffers that stay where they are: what a graph needs."""

    inputs: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    logits: torch.Tensor
    hidden: torch.Tensor
    features: torch.Tensor
    replay: Run

    def __call__(self, inputs: torch.Tensor, positions: torch.Tensor | None, slots: int) -> ForwardOutput:
        """Runs it on other inputs; what it returns is the caller's own."""
        self.inputs.copy_(inputs)
        self.slots.fill_(slots)
        if positions is None:
            torch.arange(slots, slots + self.positions.shape[0], out=self.positions)
        else:
            self.positions.copy_(positions)
        self.replay()
        # .float() copies half-precision logits; float32 ones are copied for the same reason
        logits = self.logits.to(torch.float32, copy=True)
        return ForwardOutput(logits=logits, hidden=self.hidden.clone(), features=self.features.clone())


def make_forward(
    llama: FusedLlama,
    inputs: torch.Tensor,
    cache: KVCache,
    wanted: int,
    feature_layers: tuple[int, ...],
) -> Forward:
    """Prepares a forward of as many rows as ``inputs`` over a cache."""
    num_rows, device, dtype = inputs.shape[0], llama.device, llama.dtype
    own = inputs.clone() if inputs.ndim == 1 else inputs.to(dtype, copy=True)
    positions = torch.zeros(num_rows, dtype=torch.int64, device=device)
    slots = torch.full((1,), cache.slots, dtype=torch.int32, device=device)
    trunk = Trunk(llama, cache, inputs=own, positions=positions, slots=slots, feature_layers=feature_layers)
    hidden = torch.empty(num_rows, llama.shape.hidden_size, dtype=dtype, device=device)
    logits = torch.empty(wanted, llama.shape.vocab_size, dtype=dtype, device=device)

    def run() -> None:
        trunk.run()
        hidden.copy_(llama.norm(trunk.stream))
        if wanted:
            llama.project(trunk.stream[num_rows - wanted :], logits)

    return Forward(own, positions, slots, logits, hidden, trunk.features, llama.launches.capture(run))


class GreedyForward:
    """One forward and its greedy tokens: a few integers in, a few out, both copies part of the work."""

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
        # written by the interpreter at each step: numpy's views take plain integers at once
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

        # preparing may run it: what that writes is what the first real run writes again
        self._place(cache.slots)
        self._fence = llama.launches.fence()
        self._replay = llama.launches.capture(run)

    def launch(self, tokens: Sequence[int] | None, slots: int) -> None:
        """Runs it over ``tokens``, or over the newest one that the device has, without waiting."""
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
        """Waits for the tokens.

        Raises:
            NotFiniteError: If a token was chosen from logits that are no numbers.
        """
        self._fence.wait()
        if not all(map(math.isfinite, self._got["logits"].tolist())):
            raise NotFiniteError
        found: list[int] = self._got["tokens"].tolist()
        return found


def chosen_buffer(num_tokens: int, device: torch.device) -> StagingBuffer:
    """Greedy tokens and their logits, in one buffer."""
    return StagingBuffer({"tokens": (torch.int64, num_tokens), "logits": (torch.float32, num_tokens)}, device)
