"""HAMburger's grafts on a base model, as differentiable modules over a batch of macro-steps.

Letters in shapes: N macro-steps, S most tokens per macro-step, F feature vectors, D hidden size. Training runs these
modules; decoding runs the same weights through :mod:`.model`, one sequence at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hambench.engine.llama import rotate
from hambench.engine.shape import LlamaShape, rope_frequencies
from hambench.methods.hamburger.architecture import Architecture
from hambench.methods.hamburger.cpu_training import rms_norm, short_attention


class CompositionalEmbedder(nn.Module):
    """Merges the tokens of a macro-step into one input vector; a single token passes through unchanged.

    The mean embedding is the query of a cross-attention over [embedding ‖ learned position]. Its projected result is
    added to the residual (the mean, or the last token).
    """

    def __init__(self, hidden_size: int, architecture: Architecture) -> None:
        super().__init__()
        if hidden_size % architecture.merge_heads:
            raise ValueError(
                f"merge_heads must divide hidden_size ({hidden_size}), got {architecture.merge_heads}"
            )
        self.heads, self.residual = architecture.merge_heads, architecture.merge_residual
        keyed = hidden_size + hidden_size // 2
        self.pos = nn.Parameter(torch.empty(architecture.max_micro_steps, hidden_size // 2))
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(keyed, hidden_size)
        self.v_proj = nn.Linear(keyed, hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        nn.init.xavier_normal_(self.pos)

    def forward(self, embeddings: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Merges the first ``lengths`` ``[N]`` rows of ``[N, S, D]`` into ``[N, D]``."""
        num, steps, hidden = embeddings.shape
        real = torch.arange(steps, device=embeddings.device) < lengths[:, None]
        embeddings = embeddings * real[..., None]
        mean = embeddings.sum(1) / lengths[:, None].to(embeddings.dtype)
        last = embeddings[torch.arange(num, device=embeddings.device), lengths - 1]
        keyed = torch.cat([embeddings, self.pos[:steps].to(embeddings.dtype).expand(num, -1, -1)], dim=-1)
        split = (num, -1, self.heads, hidden // self.heads)
        q, k, v = (p(x).view(split).transpose(1, 2) for p, x in self._projections(mean, keyed))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None, :])
        merged = self.out_proj(attended.transpose(1, 2).reshape(num, hidden))
        merged = merged + (mean if self.residual == "mean" else last)
        return torch.where((lengths == 1)[:, None], last.to(merged.dtype), merged)

    def _projections(
        self, mean: torch.Tensor, keyed: torch.Tensor
    ) -> tuple[
        tuple[nn.Linear, torch.Tensor], tuple[nn.Linear, torch.Tensor], tuple[nn.Linear, torch.Tensor]
    ]:
        return (self.q_proj, mean[:, None]), (self.k_proj, keyed), (self.v_proj, keyed)


class _RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if self.training and rows.device.type == "cpu":
            return rms_norm(rows, self.weight, self.eps)
        return F.rms_norm(rows, self.weight.shape, self.weight.to(rows.dtype), self.eps)


class _Attention(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, queries, bias=shape.qkv_bias)
        self.k_proj = nn.Linear(shape.hidden_size, keys, bias=shape.qkv_bias)
        self.v_proj = nn.Linear(shape.hidden_size, keys, bias=shape.qkv_bias)
        self.o_proj = nn.Linear(queries, shape.hidden_size, bias=False)
        self.q_norm = _RMSNorm(shape.head_dim, shape.rms_norm_eps) if shape.qk_norm else nn.Identity()
        self.k_norm = _RMSNorm(shape.head_dim, shape.rms_norm_eps) if shape.qk_norm else nn.Identity()

    def forward(
        self, rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, first: int = 0
    ) -> torch.Tensor:
        """Attends from the rows from ``first`` on to all rows before them."""
        split = (-1, self.shape.head_dim)
        q = self.q_norm(self.q_proj(rows[:, first:]).unflatten(-1, split)).transpose(1, 2)
        k = self.k_norm(self.k_proj(rows).unflatten(-1, split)).transpose(1, 2)
        v = self.v_proj(rows).unflatten(-1, split).transpose(1, 2)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        q, k = rotate(q, cos[first:], sin[first:]), rotate(k, cos, sin)
        seen = torch.ones(rows.shape[1], rows.shape[1], dtype=torch.bool, device=rows.device).tril()
        if self.training and rows.device.type == "cpu":
            mixed = short_attention(q, k, v, seen[first:])
        else:
            # for a whole square, use the kernel's own causal form
            mixed = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=seen[first:] if first else None,
                is_causal=first == 0,
                enable_gqa=self.shape.num_heads != self.shape.num_kv_heads,
            )
        projected: torch.Tensor = self.o_proj(mixed.transpose(1, 2).flatten(-2))
        return projected


class _MLP(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.down_proj(F.silu(self.gate_proj(rows)) * self.up_proj(rows))
        return projected


class _Layer(nn.Module):
    """A Llama decoder layer with Hugging Face's parameter names, so that weights can be copied both ways."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.self_attn = _Attention(shape)
        self.mlp = _MLP(shape)
        self.input_layernorm = _RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = _RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(
        self, stream: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, first: int = 0
    ) -> torch.Tensor:
        """Returns the hidden states after this layer from row ``first`` on; earlier rows are only attended to."""
        mixed = self.self_attn(self.input_layernorm(stream), cos, sin, first)
        stream = stream[:, first:] + mixed
        out: torch.Tensor = stream + self.mlp(self.post_attention_layernorm(stream))
        return out


class MicroStepDecoder(nn.Module):
    """Causal Llama layers over F feature vectors, followed by the tokens already emitted in this macro-step."""

    inverse_frequencies: torch.Tensor

    def __init__(self, shape: LlamaShape, architecture: Architecture) -> None:
        super().__init__()
        self.num_features = architecture.num_features
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(architecture.num_micro_layers))
        self.norm = _RMSNorm(shape.hidden_size, shape.rms_norm_eps) if architecture.micro_norm else None
        self.register_buffer("inverse_frequencies", rope_frequencies(shape), persistent=False)

    def forward(self, features: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Returns hidden states for the heads ``[N, S, D]``.

        Inputs are features ``[N, F, D]`` and emitted tokens ``[N, S - 1, D]``. State 0 is the last feature: the base's
        own, which gives token 1.
        """
        stream = torch.cat([features, embeddings.to(features.dtype)], dim=1)
        positions = torch.arange(stream.shape[1], device=stream.device, dtype=torch.float32)
        angles = positions[:, None] * self.inverse_frequencies
        angles = torch.cat([angles, angles], dim=-1)
        cos, sin = angles.cos(), angles.sin()
        for layer in self.layers[:-1]:
            stream = layer(stream, cos, sin)
        # nothing reads the features' rows after the last layer, so training skips them; evaluation keeps the published
        # order of operations, whose rounding the stop head makes visible
        first = self.num_features if self.training else 0
        written = self.layers[-1](stream, cos, sin, first)[:, self.num_features - first :]
        if self.norm is not None:
            written = self.norm(written)
        return torch.cat([features[:, -1:].to(written.dtype), written], dim=1)


class StopHead(nn.Module):
    """Computes the logit that the last emitted token ends the macro-step, from the hidden state the LM head reads."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Linear(hidden_size, hidden_size),
                nn.Linear(hidden_size, hidden_size),
                nn.Linear(hidden_size, 1),
            ]
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Maps hidden states ``[..., D]`` to stop logits ``[...]``."""
        for layer in self.layers[:-1]:
            hidden = F.silu(layer(hidden))
        logits: torch.Tensor = self.layers[-1](hidden)
        return logits.squeeze(-1)


class Grafts(nn.Module):
    """All modules that HAMburger adds to a base of ``shape``."""

    def __init__(self, shape: LlamaShape, architecture: Architecture) -> None:
        super().__init__()
        self.shape, self.architecture = shape, architecture
        self.embedder = CompositionalEmbedder(shape.hidden_size, architecture)
        self.micro = MicroStepDecoder(shape, architecture)
        self.stop_head = StopHead(shape.hidden_size)
