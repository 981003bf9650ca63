"""A lean forward pass for Llama-family models: one sequence, no batch dimension.

Letters in shapes: T query rows, D hidden size, H query heads, KVH key/value heads, Dh head size, V vocabulary,
S slots a query may see. Row ``t`` of a forward goes to slot ``cache.slots + t`` and sees every slot up to its own
(the lower right corner of the causal triangle), so prefill, one decode step and the verify pass of speculation are
the same call. Slots order the cache; ``positions`` turn queries and keys, and default to the slot numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F

from hambench.errors import ModelError
from hambench.kvcache import KVCache
from hambench.linear import Linear, make_linear

PREFILL_CHUNK = 512
"""Rows of one prefill forward: activations of this many rows stay in a CPU's cache."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """What of a Llama-family architecture decides the computation."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None = None
    """Parameters of ``linear`` or ``llama3`` RoPE scaling as the checkpoint's config has them."""
    max_positions: int
    tie_embeddings: bool
    qkv_bias: bool = False
    """Biases on q, k and v (Qwen2)."""
    qk_norm: bool = False
    """RMS norms on each query and key head (Qwen3)."""

    @classmethod
    def from_hf(cls, config: Any) -> Self:  # noqa: ANN401 - any transformers config
        """Reads a transformers config.

        Raises:
            ModelError: If the architecture needs something this forward pass does not do.
        """
        model_type = config.model_type
        if model_type not in ("llama", "mistral", "qwen2", "qwen3"):
            raise ModelError(f"architecture {model_type!r} is not a Llama-family model")
        layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
        sliding = getattr(config, "sliding_window", None) if model_type == "mistral" else None
        unsupported = {
            f"activation {config.hidden_act!r}": config.hidden_act != "silu",
            "sliding-window attention": bool(sliding) or layer_types != {"full_attention"},
            "an attention bias": model_type in ("llama", "qwen3")
            and bool(getattr(config, "attention_bias", False)),
            "an MLP bias": bool(getattr(config, "mlp_bias", False)),
        }
        for what, is_used in unsupported.items():
            if is_used:
                raise ModelError(f"the Llama-family forward pass has no {what}")
        rope = dict(getattr(config, "rope_parameters", None) or {})
        theta = float(rope.pop("rope_theta", None) or getattr(config, "rope_theta", 10000.0))
        kind = rope.get("rope_type", "default")
        if kind not in ("default", "linear", "llama3"):
            raise ModelError(f"the Llama-family forward pass has no RoPE scaling of type {kind!r}")
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=theta,
            rope_scaling=rope if kind != "default" else None,
            max_positions=config.max_position_embeddings,
            tie_embeddings=bool(config.tie_word_embeddings),
            qkv_bias=model_type == "qwen2",
            qk_norm=model_type == "qwen3",
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ForwardOutput:
    """What one forward gives."""

    logits: torch.Tensor
    """``[R, V]`` float32, for the last R rows asked for."""
    hidden: torch.Tensor
    """``[T, D]`` after the final norm (of :meth:`Llama.prefill`: the last row only)."""
    features: torch.Tensor
    """``[len(feature_layers), T, D]``: the residual stream after each layer asked for; after the final norm for the last."""


class _Layer:
    """One decoder layer, weights fused: q, k and v in one projection, gate and up in another."""

    def __init__(self, shape: LlamaShape, weights: Mapping[str, torch.Tensor]) -> None:
        attn = [f"self_attn.{name}_proj" for name in "qkv"]
        bias = torch.cat([weights[f"{name}.bias"] for name in attn]) if shape.qkv_bias else None
        self.qkv: Linear = make_linear(torch.cat([weights[f"{name}.weight"] for name in attn]), bias)
        self.out: Linear = make_linear(weights["self_attn.o_proj.weight"])
        self.gate_up: Linear = make_linear(
            torch.cat([weights["mlp.gate_proj.weight"], weights["mlp.up_proj.weight"]])
        )
        self.down: Linear = make_linear(weights["mlp.down_proj.weight"])
        self.input_norm = weights["input_layernorm.weight"]
        self.mlp_norm = weights["post_attention_layernorm.weight"]
        self.q_norm = weights["self_attn.q_norm.weight"] if shape.qk_norm else None
        self.k_norm = weights["self_attn.k_norm.weight"] if shape.qk_norm else None

    @property
    def weight_bytes(self) -> int:
        norms = (self.input_norm, self.mlp_norm, self.q_norm, self.k_norm)
        linears = (self.qkv, self.out, self.gate_up, self.down)
        return sum(linear.weight_bytes for linear in linears) + sum(n.nbytes for n in norms if n is not None)


class DecoderStack:
    """Decoder layers without embedding, final norm or head: of a whole model, or of a small decoder grafted on one.

    Args:
        shape: Sizes; its ``num_layers`` is ignored in favour of ``len(layer_weights)``.
        layer_weights: For each layer, its tensors by Hugging Face name without the ``model.layers.N.`` prefix.
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
        self.layers = [
            _Layer(shape, {name: tensor.to(device, dtype) for name, tensor in weights.items()})
            for weights in layer_weights
        ]
        self._inverse_frequencies, self._rope_gain = rope_frequencies(shape), 1.0
        self._inverse_frequencies = self._inverse_frequencies.to(device)

    @property
    def weight_bytes(self) -> int:
        """Bytes read by one forward."""
        return sum(layer.weight_bytes for layer in self.layers)

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for this stack."""
        return KVCache(
            num_layers=len(self.layers),
            num_kv_heads=self.shape.num_kv_heads,
            head_dim=self.shape.head_dim,
            capacity=capacity,
            dtype=self.dtype,
            device=self.device,
        )

    @torch.inference_mode()
    def forward(
        self,
        stream: torch.Tensor,
        cache: KVCache,
        *,
        positions: torch.Tensor | None = None,
        feature_layers: tuple[int, ...] = (),
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Runs the layers over ``[T, D]``; gives the residual stream after the last one and after ``feature_layers``."""
        num_rows = stream.shape[0]
        if positions is None:
            positions = torch.arange(cache.slots, cache.slots + num_rows, device=self.device)
        rotation = self._rotation(positions)
        mask = self._mask(num_rows, cache.slots)
        features: dict[int, torch.Tensor] = {}
        for index, layer in enumerate(self.layers):
            stream = stream + self._attention(layer, index, stream, cache, rotation, mask)
            stream = stream + self._mlp(layer, stream)
            if index in feature_layers:
                features[index] = stream
        cache.advance(num_rows)
        return stream, [features[index] for index in feature_layers]

    def _attention(
        self,
        layer: _Layer,
        index: int,
        stream: torch.Tensor,
        cache: KVCache,
        rotation: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        shape, num_rows = self.shape, stream.shape[0]
        heads, kv_heads = shape.num_heads, shape.num_kv_heads
        rows = rms_norm(stream, layer.input_norm, shape.rms_norm_eps)
        qkv = layer.qkv(rows).view(num_rows, heads + 2 * kv_heads, shape.head_dim).transpose(0, 1)
        q, k, v = qkv[:heads], qkv[heads : heads + kv_heads], qkv[heads + kv_heads :]
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = (
                rms_norm(q, layer.q_norm, shape.rms_norm_eps),
                rms_norm(k, layer.k_norm, shape.rms_norm_eps),
            )
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        keys, values = cache.write(index, k, v)
        mixed = F.scaled_dot_product_attention(
            q[None], keys[None], values[None], attn_mask=mask, enable_gqa=heads != kv_heads
        )
        return layer.out(mixed[0].transpose(0, 1).reshape(num_rows, heads * shape.head_dim))

    def _mlp(self, layer: _Layer, stream: torch.Tensor) -> torch.Tensor:
        rows = rms_norm(stream, layer.mlp_norm, self.shape.rms_norm_eps)
        gate, up = layer.gate_up(rows).chunk(2, dim=-1)
        return layer.down(F.silu(gate) * up)

    def _rotation(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = positions.to(torch.float32)[:, None] * self._inverse_frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def _mask(self, num_rows: int, past: int) -> torch.Tensor | None:
        if num_rows == 1:
            return None
        return torch.ones(num_rows, past + num_rows, dtype=torch.bool, device=self.device).tril(past)


class Llama:
    """A Llama-family causal LM on one device.

    Args:
        shape: Its sizes.
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
        try:
            self.embedding = weights["model.embed_tokens.weight"].to(device, dtype)
            self.norm = weights["model.norm.weight"].to(device, dtype)
            head = self.embedding if shape.tie_embeddings else weights["lm_head.weight"].to(device, dtype)
            self.stack = DecoderStack(
                shape, _split_layers(weights, shape.num_layers), dtype=dtype, device=device
            )
        except KeyError as error:
            raise ModelError(f"the checkpoint has no tensor {error.args[0]!r}") from error
        self.head: Linear = make_linear(head)

    @property
    def weight_bytes(self) -> int:
        """Bytes read by one decode step: layers, final norm and head (of the embedding only a row is read)."""
        return self.stack.weight_bytes + self.norm.nbytes + self.head.weight_bytes

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache of ``capacity`` slots."""
        return self.stack.new_cache(capacity)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings ``[T, D]`` of ids ``[T]``."""
        return F.embedding(ids, self.embedding)

    @torch.inference_mode()
    def lm_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits ``[R, V]`` in float32 of normed hidden states ``[R, D]``."""
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
        """Runs T rows through the model and appends T slots to the cache.

        Args:
            inputs: Ids ``[T]`` (int64) or embeddings ``[T, D]``.
            cache: Grows by T slots.
            positions: Rotary positions ``[T]``; by default they continue from ``cache.slots``.
            num_logits: Logits for this many last rows; ``None`` for all.
            feature_layers: Layers (0-based) whose residual stream to return.

        Raises:
            ContextOverflowError: If the cache has no room for T more slots.
        """
        stream = self.embed(inputs) if inputs.ndim == 1 else inputs.to(self.dtype)
        stream, features = self.stack.forward(
            stream, cache, positions=positions, feature_layers=feature_layers
        )
        hidden = rms_norm(stream, self.norm, self.shape.rms_norm_eps)
        num_rows = hidden.shape[0]
        wanted = num_rows if num_logits is None else min(num_logits, num_rows)
        last = self.shape.num_layers - 1
        kept = [hidden if layer == last else f for layer, f in zip(feature_layers, features, strict=True)]
        return ForwardOutput(
            logits=self.lm_head(hidden[num_rows - wanted :]),
            hidden=hidden,
            features=torch.stack(kept) if kept else hidden.new_empty(0, *hidden.shape),
        )

    def prefill(
        self, ids: torch.Tensor, cache: KVCache, *, feature_layers: tuple[int, ...] = ()
    ) -> ForwardOutput:
        """Runs a prompt ``[T]`` in chunks; logits, hidden state and features of the last row only."""
        if ids.shape[0] == 0:
            raise ValueError("ids must hold at least one token, got none")
        chunks = ids.split(PREFILL_CHUNK)
        for chunk in chunks[:-1]:
            self.forward(chunk, cache, num_logits=0)
        out = self.forward(chunks[-1], cache, feature_layers=feature_layers)
        return ForwardOutput(logits=out.logits, hidden=out.hidden[-1:], features=out.features[:, -1:])


def rms_norm(rows: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``rows / rms(rows) * weight`` over the last dimension, the mean square taken in float32."""
    return F.rms_norm(rows, weight.shape, weight, eps)


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns ``[..., T, Dh]`` by the angles of ``[T, Dh]`` (RoPE in the split-halves convention)."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin


def rope_frequencies(shape: LlamaShape) -> torch.Tensor:
    """Radians per position of each pair of elements, ``[Dh / 2]`` float32.

    Raises:
        ModelError: For a type of scaling that is neither ``linear`` nor ``llama3``.
    """
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.int64).float() / shape.head_dim
    frequencies = 1.0 / shape.rope_theta**exponents
    scaling = shape.rope_scaling
    if scaling is None:
        return frequencies
    if scaling["rope_type"] == "linear":
        return frequencies / scaling["factor"]
    if scaling["rope_type"] != "llama3":
        raise ModelError(f"unknown RoPE scaling {scaling['rope_type']!r}; known: linear, llama3")
    # Llama 3.1: long waves are stretched by the factor, short ones kept, those between interpolated
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * keep + frequencies / scaling["factor"] * (1 - keep)


def _split_layers(weights: Mapping[str, torch.Tensor], num_layers: int) -> list[dict[str, torch.Tensor]]:
    layers: list[dict[str, torch.Tensor]] = [{} for _ in range(num_layers)]
    prefix = "model.layers."
    for name, tensor in weights.items():
        if name.startswith(prefix):
            number, rest = name.removeprefix(prefix).split(".", 1)
            if int(number) < num_layers:
                layers[int(number)][rest] = tensor
    return layers
