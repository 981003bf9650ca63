"""A lean forward pass for Llama-family models: rows of one sequence or of several, no batch dimension.

Letters in shapes: T query rows, D hidden size, H query heads, KVH key/value heads, Dh head size, V vocabulary,
S slots that a query may see. Row ``t`` of a forward goes to slot ``cache.slots + t`` and sees every slot up to its own
(the lower right corner of the causal triangle), so prefill, one decode step and the verify pass of speculation are
the same call. Slots order the cache. ``positions`` rotate queries and keys; by default they count evicted slots too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F

from hambench.engine.attention import attend, causal_mask
from hambench.engine.greedy import GreedyDecoding
from hambench.engine.kvcache import KVCache
from hambench.engine.linear import GatedLinear, Linear, make_gated, make_linear
from hambench.engine.norm import RMSNorm
from hambench.engine.output import ForwardOutput
from hambench.engine.requests.rows import Rows
from hambench.engine.shape import LlamaShape, rope_frequencies
from hambench.errors import ModelError

PREFILL_CHUNK = 2048
"""Rows per prefill forward: enough to be bound by arithmetic, few enough to bound the memory of activations. In a
batch other sequences take a step between two of them."""


class DecoderLayer:
    """Weights of one layer: q, k and v joined in one projection, gate and up in another.

    Args:
        shape: Sizes of the model.
        weights: The layer's tensors by Hugging Face name without the ``model.layers.N.`` prefix.
    """

    def __init__(self, shape: LlamaShape, weights: Mapping[str, torch.Tensor]) -> None:
        q, k, v = (f"self_attn.{name}_proj" for name in "qkv")
        bias = torch.cat([weights[f"{name}.bias"] for name in (q, k, v)]) if shape.qkv_bias else None
        self.qkv: Linear = make_linear(torch.cat([weights[f"{name}.weight"] for name in (q, k, v)]), bias)
        self.out: Linear = make_linear(weights["self_attn.o_proj.weight"])
        self.gate_up: GatedLinear = make_gated(weights["mlp.gate_proj.weight"], weights["mlp.up_proj.weight"])
        self.down: Linear = make_linear(weights["mlp.down_proj.weight"])
        eps = shape.rms_norm_eps
        self.input_norm = RMSNorm(weights["input_layernorm.weight"], eps)
        self.mlp_norm = RMSNorm(weights["post_attention_layernorm.weight"], eps)
        self.q_norm = RMSNorm(weights["self_attn.q_norm.weight"], eps) if shape.qk_norm else None
        self.k_norm = RMSNorm(weights["self_attn.k_norm.weight"], eps) if shape.qk_norm else None

    @property
    def weight_bytes(self) -> int:
        """Bytes that one forward of the layer reads."""
        parts = (self.qkv, self.out, self.gate_up, self.down)
        norms = (self.input_norm, self.mlp_norm, self.q_norm, self.k_norm)
        return sum(part.weight_bytes for part in (*parts, *norms) if part is not None)


class DecoderStack:
    """Decoder layers without embedding, final norm or head: of a whole model, or of a small decoder grafted onto one.

    Args:
        shape: Sizes; ``num_layers`` is taken from ``layer_weights`` instead.
        layer_weights: Tensors per layer, by Hugging Face name without the ``model.layers.N.`` prefix.
        dtype: Type of weights and activations.
        device: Where they live.
    """

    def __init__(
        self,
        shape: LlamaShape,
        layer_weights: Sequence[Mapping[str, torch.Tensor]],
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.shape = dataclasses.replace(shape, num_layers=len(layer_weights))
        self.dtype, self.device = dtype, torch.device(device)
        self.layers: list[DecoderLayer] = []
        for index, weights in enumerate(layer_weights):
            moved = {name: tensor.to(device, dtype) for name, tensor in weights.items()}
            try:
                self.layers.append(DecoderLayer(shape, moved))
            except KeyError as error:
                raise ModelError(
                    f"layer {index} of the checkpoint has no tensor {error.args[0]!r}"
                ) from error
        self._frequencies = rope_frequencies(shape).to(device)

    @property
    def weight_bytes(self) -> int:
        """Bytes that one forward reads."""
        return sum(layer.weight_bytes for layer in self.layers)

    def new_cache(self, capacity: int, *, kind: type[KVCache] = KVCache) -> KVCache:
        """Returns an empty cache of ``capacity`` slots for these layers."""
        return kind(
            num_layers=self.shape.num_layers,
            num_kv_heads=self.shape.num_kv_heads,
            head_dim=self.shape.head_dim,
            capacity=capacity,
            dtype=self.dtype,
            device=self.device,
        )

    @torch.inference_mode()
    def forward(
        self,
        hidden: torch.Tensor,
        cache: KVCache,
        *,
        positions: torch.Tensor | None = None,
        feature_layers: tuple[int, ...] = (),
        keep: int | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Runs the layers over ``[T, D]``; returns the hidden states after the last layer and after ``feature_layers``.

        Args:
            hidden: Inputs of the first layer.
            cache: Grows by T slots.
            positions: Rotary positions ``[T]``; by default they continue from ``cache.next_position``.
            feature_layers: Layers (0-based) whose hidden states to return.
            keep: Return only this many last rows; all by default. The last layer computes only these: of a prompt's
                other rows only the keys and values are needed.

        Raises:
            ContextOverflowError: If the cache has no room for T more slots.
        """
        own = Rows(hidden, cache, positions)
        return self.forward_together(hidden, [own], feature_layers=feature_layers, keep=keep)

    @torch.inference_mode()
    def forward_together(
        self,
        hidden: torch.Tensor,
        sequences: Sequence[Rows],
        *,
        feature_layers: tuple[int, ...] = (),
        keep: int | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Runs the layers over the rows of several sequences, one after the other; see :meth:`forward`.

        Args:
            hidden: Inputs of the first layer.
            sequences: Whose rows they are, in order.
            feature_layers: Layers (0-based) whose hidden states to return.
            keep: Return only this many last rows, of one sequence alone.

        Raises:
            ContextOverflowError: If a cache has no room for its rows.
        """
        lengths = [rows.inputs.shape[0] for rows in sequences]
        rotations, masks = [], []
        for rows, num_rows in zip(sequences, lengths, strict=True):
            rows.cache.require(num_rows)
            rotations.append(self._rotation(num_rows, rows.cache.next_position, rows.positions))
            masks.append(causal_mask(num_rows, rows.cache.slots, self.dtype, self.device))
        cosines, signed_sines = zip(*rotations, strict=True)
        rotation = torch.cat(cosines), torch.cat(signed_sines)
        first = 0 if keep is None else hidden.shape[0] - keep
        features: dict[int, torch.Tensor] = {}
        for index, layer in enumerate(self.layers):
            last = index == len(self.layers) - 1
            qk, v = self._projected(layer, hidden, rotation)
            heads = [
                self._attend(index, own_qk, own_v, rows.cache, mask, first if last else 0)
                for own_qk, own_v, rows, mask in zip(
                    torch.split(qk, lengths), torch.split(v, lengths), sequences, masks, strict=True
                )
            ]
            mixed = heads[0] if len(heads) == 1 else torch.cat(heads)
            hidden = layer.out.add_to(hidden[first:] if last else hidden, mixed)
            hidden = layer.down.add_to(hidden, layer.gate_up(layer.mlp_norm(hidden)))
            if index in feature_layers:
                features[index] = hidden if last else hidden[first:]
        for rows, num_rows in zip(sequences, lengths, strict=True):
            rows.cache.advance(num_rows)
        return hidden, [features[index] for index in feature_layers]

    def queries(self, index: int, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Computes the rotated queries ``[H, T, Dh]`` of a layer from its inputs ``[T, D]`` at positions ``[T]``."""
        rotation = self._rotation(hidden.shape[0], 0, positions)
        qk, _ = self._projected(self.layers[index], hidden, rotation)
        return qk[:, : self.shape.num_heads].transpose(0, 1)

    def _projected(
        self, layer: DecoderLayer, hidden: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes rotated queries and keys ``[T, H + KVH, Dh]``, and values ``[T, KVH, Dh]``."""
        shape, num_rows = self.shape, hidden.shape[0]
        num_heads, num_kv_heads = shape.num_heads, shape.num_kv_heads
        qkv = layer.qkv(layer.input_norm(hidden))
        qkv = qkv.view(num_rows, num_heads + 2 * num_kv_heads, shape.head_dim)
        qk, v = qkv[:, : num_heads + num_kv_heads], qkv[:, num_heads + num_kv_heads :]
        if layer.q_norm is not None and layer.k_norm is not None:
            qk = torch.cat([layer.q_norm(qk[:, :num_heads]), layer.k_norm(qk[:, num_heads:])], dim=1)
        cos, signed_sin = rotation
        return torch.addcmul(qk * cos, qk.roll(shape.head_dim // 2, -1), signed_sin), v

    def _attend(
        self,
        index: int,
        qk: torch.Tensor,
        v: torch.Tensor,
        cache: KVCache,
        mask: torch.Tensor | None,
        first: int,
    ) -> torch.Tensor:
        """Stores keys and values of one sequence; computes the heads of its rows from ``first`` on."""
        shape, num_rows, num_heads = self.shape, qk.shape[0], self.shape.num_heads
        keys, values = cache.write(index, qk[:, num_heads:].transpose(0, 1), v.transpose(0, 1))
        queries = qk[first:, :num_heads].transpose(0, 1)
        if first:
            # where all rows needed no mask, by causality alone or in another form, several kept ones do
            size = num_rows - first, keys.shape[1] - num_rows + first
            mask = causal_mask(*size, self.dtype, self.device) if mask is None else mask[first:]
        mixed = attend(queries, keys, values, mask)
        return mixed.transpose(0, 1).reshape(num_rows - first, num_heads * shape.head_dim)

    def _rotation(
        self, num_rows: int, first: int, positions: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes cosines and signed sines ``[T, 1, Dh]``, with angles in float32 for every model type.

        With the halves of a head swapped, RoPE is ``head * cos + swapped * sin`` if the sines of the first half are
        negative.
        """
        if positions is None:
            positions = torch.arange(first, first + num_rows, device=self.device)
        angles = positions.to(self._frequencies.dtype)[:, None, None] * self._frequencies
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


class Llama(GreedyDecoding):
    """A Llama-family causal LM on one device.

    Args:
        shape: Sizes of the model.
        weights: Tensors by Hugging Face name (``model.embed_tokens.weight``, ``model.layers.0. ...``).
        dtype: Type of weights and activations.
        device: Where they live.

    Raises:
        ModelError: If a tensor is missing.
    """

    def __init__(
        self,
        shape: LlamaShape,
        weights: Mapping[str, torch.Tensor],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shape, self.dtype, self.device = shape, dtype, torch.device(device)
        self.prefill_chunk: int | None = None  # PREFILL_CHUNK
        try:
            self.embedding = weights["model.embed_tokens.weight"].to(device, dtype)
            self.norm = RMSNorm(weights["model.norm.weight"].to(device, dtype), shape.rms_norm_eps)
            head = self.embedding if shape.tie_embeddings else weights["lm_head.weight"].to(device, dtype)
            self.stack = DecoderStack(
                shape, _split_layers(weights, shape.num_layers), dtype=dtype, device=device
            )
        except KeyError as error:
            raise ModelError(f"the checkpoint has no tensor {error.args[0]!r}") from error
        self.head: Linear = make_linear(head)

    @property
    def weight_bytes(self) -> int:
        """Bytes that one decode step reads: layers, final norm and head (it reads only a row of the embedding)."""
        return self.stack.weight_bytes + self.norm.weight_bytes + self.head.weight_bytes

    @property
    def reference(self) -> Llama:
        """See :class:`hambench.engine.language_model.LanguageModel`. This model is its own reference."""
        return self

    def with_same_backend(self, other: Llama) -> Llama:
        """See :class:`hambench.engine.language_model.LanguageModel`. Returns ``other``, which already runs this way."""
        return other

    def new_cache(self, capacity: int) -> KVCache:
        """Returns an empty cache of ``capacity`` slots."""
        return self.stack.new_cache(capacity)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Looks up the embeddings ``[T, D]`` of ids ``[T]``."""
        return F.embedding(ids, self.embedding)

    @torch.inference_mode()
    def lm_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Computes logits ``[R, V]`` in float32 from normed hidden states ``[R, D]``."""
        if hidden.shape[0] == 0:
            return hidden.new_empty(0, self.shape.vocab_size, dtype=torch.float32)
        return self.head(hidden).float()

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
        hidden = self.embed(inputs) if inputs.ndim == 1 else inputs.to(self.dtype)
        hidden, features = self.stack.forward(
            hidden, cache, positions=positions, feature_layers=feature_layers
        )
        return self._output(hidden, features, feature_layers, num_logits)

    @torch.inference_mode()
    def forward_together(
        self, sequences: Sequence[Rows], *, feature_layers: tuple[int, ...] = ()
    ) -> list[ForwardOutput]:
        """See :meth:`hambench.engine.language_model.LanguageModel.forward_together`."""
        inputs = [
            self.embed(rows.inputs) if rows.inputs.ndim == 1 else rows.inputs.to(self.dtype)
            for rows in sequences
        ]
        lengths = [each.shape[0] for each in inputs]
        hidden, features = self.stack.forward_together(
            torch.cat(inputs), sequences, feature_layers=feature_layers
        )
        normed, layer_features = self._normed(hidden, features, feature_layers)
        wanted = [
            num_rows if rows.num_logits is None else min(rows.num_logits, num_rows)
            for rows, num_rows in zip(sequences, lengths, strict=True)
        ]
        own = torch.split(normed, lengths)
        logits = self.lm_head(
            torch.cat([each[len(each) - num :] for each, num in zip(own, wanted, strict=True)])
        )
        return [
            ForwardOutput(logits=each, hidden=rows, features=feature)
            for each, rows, feature in zip(
                torch.split(logits, wanted), own, torch.split(layer_features, lengths, dim=1), strict=True
            )
        ]

    def _output(
        self,
        hidden: torch.Tensor,
        features: Sequence[torch.Tensor],
        feature_layers: tuple[int, ...],
        num_logits: int | None,
    ) -> ForwardOutput:
        """Applies the final norm to hidden states and the last layer's features, and the head to the last rows."""
        normed, layer_features = self._normed(hidden, features, feature_layers)
        first = 0 if num_logits is None else max(0, normed.shape[0] - num_logits)
        return ForwardOutput(logits=self.lm_head(normed[first:]), hidden=normed, features=layer_features)

    def _normed(
        self, hidden: torch.Tensor, features: Sequence[torch.Tensor], feature_layers: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Applies the final norm to ``[T, D]`` and to the last layer's features; stacks these to ``[F, T, D]``."""
        normed = self.norm(hidden)
        last = self.shape.num_layers - 1
        layer_features = [
            normed if layer == last else f for layer, f in zip(feature_layers, features, strict=True)
        ]
        stacked = torch.stack(layer_features) if layer_features else normed.new_empty(0, *normed.shape)
        return normed, stacked

    def prefill_pieces(
        self, ids: torch.Tensor, cache: KVCache, *, feature_layers: tuple[int, ...] = ()
    ) -> Iterator[ForwardOutput | None]:
        """Runs a prompt ``[T]`` chunk by chunk; yields ``None`` after each but the last, which has the output."""
        if ids.shape[0] == 0:
            raise ValueError("ids must hold at least one token, got none")
        cache.expect(ids.shape[0])
        *chunks, last = torch.split(ids, self.prefill_chunk or PREFILL_CHUNK)
        for chunk in chunks:
            self.stack.forward(self.embed(chunk), cache, keep=0)
            yield None
        hidden, features = self.stack.forward(self.embed(last), cache, feature_layers=feature_layers, keep=1)
        yield self._output(hidden, features, feature_layers, num_logits=1)


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates ``[..., T, Dh]`` by the angles of ``[T, Dh]``: the formula of RoPE in the split-halves convention."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin


def _split_layers(weights: Mapping[str, torch.Tensor], num_layers: int) -> list[dict[str, torch.Tensor]]:
    layers: list[dict[str, torch.Tensor]] = [{} for _ in range(num_layers)]
    prefix = "model.layers."
    for name, tensor in weights.items():
        if name.startswith(prefix):
            number, rest = name.removeprefix(prefix).split(".", 1)
            if int(number) < num_layers:
                layers[int(number)][rest] = tensor
    return layers
