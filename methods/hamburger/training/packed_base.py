"""The base's forward on a CPU over rows of several sequences end to end: no padding, no mask, and no idle adapters.

The modules and their weights are those of transformers; only the order of the work differs. A weight is read once for
all rows, attention is each sequence's own, and low-rank changes are computed for the rows that they apply to.

Letters in shapes: N rows of all sequences, D hidden size, H heads, Dh head size.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hambench.engine.llama import rotate
from hambench.methods.hamburger.cpu_training import rms_norm, short_attention

SHORT_ROWS = 256
"""Rows up to which plain products, with their gradients, are faster than torch's kernel; forward alone they are not."""


def packed_layers(
    model: Any,
    layers: Sequence[int],
    rows: Tensor,
    *,
    lengths: Sequence[int],
    positions: Tensor,
    changed: Tensor | None = None,
    fixed: Sequence[int] | None = None,
) -> list[Tensor]:
    """Returns hidden states ``[N, D]`` after ``layers``; those of the last layer are after the final norm.

    It runs no layer after the last one asked for.

    Args:
        model: A transformers causal LM of the Llama family, with or without low-rank adapters.
        layers: Ascending layers.
        rows: Input vectors ``[N, D]``.
        lengths: Number of rows of each sequence.
        positions: Position of each row ``[N]``.
        changed: Rows ``[C]`` at which low-rank changes apply; by default all.
        fixed: Leading rows of each sequence that nothing which is trained changes; they get no gradient, and their part
            of the work has no backward pass.
    """
    if fixed is None:
        return _through(model, layers, rows, lengths, positions, changed, None)[0]
    starts = itertools.accumulate(lengths, initial=0)
    spans = [
        (start, start + num, start + length)
        for start, num, length in zip(starts, fixed, lengths, strict=False)
    ]
    still = torch.cat([torch.arange(start, middle) for start, middle, _ in spans])
    live = torch.cat([torch.arange(middle, end) for _, middle, end in spans])
    places = torch.empty(len(rows), dtype=torch.long)
    places[torch.cat([still, live])] = torch.arange(len(rows))
    with torch.no_grad():
        before, past = _through(
            model,
            layers,
            rows[still],
            fixed,
            positions[still],
            still[:0] if changed is not None else None,
            None,
        )
    after, _ = _through(
        model,
        layers,
        rows[live],
        [end - middle for _, middle, end in spans],
        positions[live],
        None if changed is None else places[changed] - len(still),
        _Past(past, fixed),
    )
    return [torch.cat([one, two])[places] for one, two in zip(before, after, strict=True)]


class _Past(NamedTuple):
    """Keys and values ``[N, G, Dh]`` of each layer that the rows also attend to, and their number per sequence."""

    layers: list[tuple[Tensor, Tensor]]
    lengths: Sequence[int]


def _through(
    model: Any,
    layers: Sequence[int],
    rows: Tensor,
    lengths: Sequence[int],
    positions: Tensor,
    changed: Tensor | None,
    past: _Past | None,
) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """Returns hidden states as :func:`packed_layers`, and the keys and values of each layer."""
    decoder = model.get_decoder()
    cos, sin = (angles[0, :, None] for angles in decoder.rotary_emb(rows, positions[None]))
    streams: dict[int, Tensor] = {}
    own: list[tuple[Tensor, Tensor]] = []
    stream = rows
    for number, layer in enumerate(decoder.layers[: layers[-1] + 1]):
        attention, mlp = layer.self_attn, layer.mlp
        normed = _normed(layer.input_layernorm, stream)
        heads = _projected((attention.q_proj, attention.k_proj, attention.v_proj), normed, changed)
        q, k, v = (each.view(len(each), -1, attention.head_dim) for each in heads)
        if hasattr(attention, "q_norm"):
            q, k = _normed(attention.q_norm, q), _normed(attention.k_norm, k)
        k = _turned(k, cos, sin)
        own.append((k, v))
        keys = [torch.split(each, list(lengths)) for each in (k, v)]
        if past is not None:
            whole = zip(past.layers[number], keys, strict=True)
            keys = [_joined(torch.split(old, list(past.lengths)), new) for old, new in whole]
        mixed = _attended(torch.split(_turned(q, cos, sin), list(lengths)), *keys)
        (out,) = _projected((attention.o_proj,), mixed.flatten(1), changed)
        stream = stream + out
        gate, up = _projected(
            (mlp.gate_proj, mlp.up_proj), _normed(layer.post_attention_layernorm, stream), changed
        )
        (out,) = _projected((mlp.down_proj,), F.silu(gate) * up, changed)
        stream = stream + out
        if number in layers:
            streams[number] = stream
    last = len(decoder.layers) - 1
    if last in streams:
        streams[last] = _normed(decoder.norm, stream)
    return [streams[number] for number in layers], own


def _joined(old: Sequence[Tensor], new: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(pair) for pair in zip(old, new, strict=True))


def _normed(norm: Any, rows: Tensor) -> Tensor:
    return rms_norm(rows, norm.weight, norm.variance_epsilon)


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rotate(heads, cos.to(heads.dtype), sin.to(heads.dtype))


def _attended(q: Sequence[Tensor], k: Sequence[Tensor], v: Sequence[Tensor]) -> Tensor:
    """Returns the attention of each sequence's last rows over its rows up to themselves, ``[N, H, Dh]``."""
    mixed = []
    for parts in zip(q, k, v, strict=True):
        queries, keys, values = (part.transpose(0, 1)[None] for part in parts)
        rows, length = queries.shape[2], keys.shape[2]
        seen = torch.ones(rows, length, dtype=torch.bool).tril(length - rows)
        if queries.requires_grad and length <= SHORT_ROWS:
            attended = short_attention(queries, keys, values, seen)
        else:
            attended = F.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=None if rows == length else seen,
                is_causal=rows == length,
                enable_gqa=queries.shape[1] != keys.shape[1],
            )
        mixed.append(attended[0].transpose(0, 1))
    return torch.cat(mixed)


def _projected(modules: Sequence[Any], rows: Tensor, changed: Tensor | None) -> list[Tensor]:
    """Returns the rows through several linear layers, which read their changed rows once."""
    out = []
    picked: Tensor | None = None
    for module in modules:
        base: nn.Linear = getattr(module, "base_layer", module)
        projected = F.linear(rows, base.weight, base.bias)
        for name in _adapters(module):
            if picked is None:
                picked = rows if changed is None else rows[changed]
            a, b = (matrix[name].weight.to(picked.dtype) for matrix in (module.lora_A, module.lora_B))
            change = (F.linear(F.linear(picked, a), b) * module.scaling[name]).to(projected.dtype)
            projected = projected + change if changed is None else projected.index_add(0, changed, change)
        out.append(projected)
    return out


def _adapters(module: Any) -> list[str]:
    """Names of the low-rank changes of a linear layer that are switched on."""
    if not hasattr(module, "lora_A") or module.disable_adapters:
        return []
    return [name for name in module.active_adapters if name in module.lora_A]
