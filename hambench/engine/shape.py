"""Sizes and switches of a Llama-family architecture, read from a transformers config."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

import torch

from hambench.errors import ModelError

FAMILY = ("llama", "mistral", "qwen2", "qwen3")
"""Values of ``model_type`` that the lean forward pass supports."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """Sizes and switches of a Llama-family model."""

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
    """Parameters of ``linear`` or ``llama3`` RoPE scaling, as in the checkpoint's config."""
    max_positions: int
    tie_embeddings: bool
    qkv_bias: bool = False
    """Biases on q, k and v (Qwen2)."""
    qk_norm: bool = False
    """RMS norms on each query and key head (Qwen3)."""

    @classmethod
    def from_hf(cls, config: Any) -> Self:
        """Reads a transformers config.

        Raises:
            ModelError: If the architecture needs a feature that the lean forward pass lacks.
        """
        kind = config.model_type
        if kind not in FAMILY:
            raise ModelError(f"architecture {kind!r} is not of the Llama family ({', '.join(FAMILY)})")
        rope = dict(getattr(config, "rope_parameters", None) or {})
        theta = float(rope.pop("rope_theta", None) or getattr(config, "rope_theta", None) or 10000.0)
        scaling = rope.get("rope_type", "default")
        # mistral configs have a window that is None for full attention; qwen's give it per layer
        window = kind == "mistral" and getattr(config, "sliding_window", None) is not None
        layer_types = set(getattr(config, "layer_types", None) or ())
        unsupported = {
            f"activation {config.hidden_act!r}": config.hidden_act != "silu",
            "sliding-window attention": window or not layer_types <= {"full_attention"},
            "attention bias": kind in ("llama", "qwen3") and bool(getattr(config, "attention_bias", False)),
            "MLP bias": bool(getattr(config, "mlp_bias", False)),
            f"RoPE scaling {scaling!r}": scaling not in ("default", "linear", "llama3"),
        }
        for what, is_needed in unsupported.items():
            if is_needed:
                raise ModelError(f"the lean forward pass has no {what}")
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
            rope_scaling=None if scaling == "default" else rope,
            max_positions=config.max_position_embeddings,
            tie_embeddings=bool(config.tie_word_embeddings),
            qkv_bias=kind == "qwen2",
            qk_norm=kind == "qwen3",
        )


def rope_frequencies(shape: LlamaShape) -> torch.Tensor:
    """Returns the radians per position of each pair of elements, ``[Dh / 2]`` in float32.

    Raises:
        ModelError: If the kind of scaling is neither ``linear`` nor ``llama3``.
    """
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.int64).float() / shape.head_dim
    frequencies: torch.Tensor = torch.pow(shape.rope_theta, exponents).reciprocal()
    scaling = shape.rope_scaling
    if scaling is None:
        return frequencies
    if scaling["rope_type"] == "linear":
        return frequencies / float(scaling["factor"])
    if scaling["rope_type"] != "llama3":
        raise ModelError(f"unknown RoPE scaling {scaling['rope_type']!r}; known: linear, llama3")
    # Llama 3.1: short waves stay, waves longer than the first training length are stretched by the factor,
    # and waves between are interpolated by their number of turns in that length
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    unstretched: torch.Tensor = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * unstretched + frequencies / float(scaling["factor"]) * (1 - unstretched)
