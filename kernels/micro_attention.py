"""Attention of HAMburger's micro-step decoder: a cache of at most 8 keys, one program per key head."""

from __future__ import annotations

import torch
from torch import Tensor

from hambench.kernels import MAX_ROWS
from hambench.kernels._args import is_done, output
from hambench.kernels._dispatch import Impl, use_fused
from hambench.kernels._rotary import attend, check_attention, rotate, unsupported

MAX_KEYS = 8
"""Capacity: four feature vectors and the tokens already emitted in the macro-step, rounded up."""


def micro_attention(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    length: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    out: Tensor | None = None,
    done: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Appends the keys and values of T new rows to the cache and returns their causal attention [T, H * Dh].

    Row t goes to slot `length + t`, which is also its position; unlike in the base, the two are always equal.

    Args:
        qkv: Projections [T, (H + 2 KVH) * Dh]: query heads, then key heads, then value heads.
        k_cache: [KVH, S, Dh] with S <= 8, rotated keys; written at slots `length`.. only.
        v_cache: Like `k_cache`.
        length: Slots in use before the call [1], int32; not changed. `length + T` must not pass S.
        cos: Cosines [positions, Dh / 2], float32.
        sin: Sines, likewise.
        num_heads: Query heads H, a multiple of KVH.
        out: Where to write, [T, H * Dh].
        done: Device flag; when set, neither output nor cache is written. Needs `out`.
        impl: See :mod:`hambench.kernels`; fused needs a head size that is a power of two.

    Raises:
        ValueError: If a shape, dtype, device or stride does not fit, or `impl="fused"` can't run here.
    """
    check_attention(
        qkv, k_cache, v_cache, cos, sin, num_heads=num_heads, used=length, used_name="length", done=done
    )
    rows, (_, capacity, head_dim) = qkv.shape[0], k_cache.shape
    if capacity > MAX_KEYS:
        raise ValueError(f"k_cache must have at most {MAX_KEYS} slots, got {capacity}; use decode_attention")
    if rows > capacity:
        raise ValueError(f"qkv must have at most the cache's {capacity} rows, got {rows}")
    out = output(out, [rows, num_heads * head_dim], like=qkv, done=done)
    if use_fused("micro_attention", impl, qkv, unsupported=unsupported(rows, head_dim, MAX_ROWS)):
        from hambench.kernels.fused.micro_attention import launch

        launch(qkv, k_cache, v_cache, length, cos, sin, num_heads, out, done)
    elif not is_done(done):
        first = int(length.item())
        positions = torch.arange(first, first + rows, device=qkv.device)
        out.copy_(append_and_attend(qkv, k_cache, v_cache, first, positions, cos, sin, num_heads))
    return out


def append_and_attend(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    first: int,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
) -> Tensor:
    """Computes the definition in float32: appends rows from slot `first` on, then attends up to each row's own slot.

    It reads keys and values as the cache stores them, rounded to the cache's dtype.
    """
    rows, (num_kv_heads, capacity, head_dim) = qkv.shape[0], k_cache.shape
    end = first + rows
    if end > capacity:
        raise ValueError(f"k_cache must have room for {end} slots, got {capacity}")
    heads = qkv.view(rows, -1, head_dim)
    q, k, v = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
    k_cache[:, first:end] = rotate(k, positions, cos, sin).transpose(0, 1).to(k_cache.dtype)
    v_cache[:, first:end] = v.transpose(0, 1)
    slots = torch.arange(end, device=qkv.device)
    visible = slots[None, :] <= slots[first:, None]
    return attend(rotate(q, positions, cos, sin), k_cache[:, :end], v_cache[:, :end], visible)
