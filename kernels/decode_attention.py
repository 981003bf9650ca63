"""Attention of a decode step or a verification over the whole context, split into chunks of the context."""

from __future__ import annotations

import torch
from torch import Tensor

from hambench.kernels import MAX_ROWS
from hambench.kernels._args import check_tensor, is_done, output
from hambench.kernels._dispatch import Impl, use_fused
from hambench.kernels._rotary import check_attention, unsupported
from hambench.kernels.micro_attention import append_and_attend


def decode_attention(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    slots: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    tickets: Tensor | None = None,
    out: Tensor | None = None,
    done: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Appends the keys and values of T new rows to the cache and returns their causal attention [T, H * Dh].

    Row t goes to slot `slots + t` and sees every slot up to its own. It is rotated by `positions[t]`, which may differ
    from that slot (HAMburger merges several tokens into one slot).

    Args:
        qkv: Projections [T, (H + 2 KVH) * Dh]: query heads, then key heads, then value heads.
        k_cache: [KVH, S, Dh], rotated keys, possibly a strided view; written at slots `slots`.. only.
        v_cache: Like `k_cache`, with the same strides.
        slots: Slots in use before the call [1], int32, on the device; not changed. `slots + T` must not pass S.
        positions: Rotary index of each row [T], int64.
        cos: Cosines [positions, Dh / 2], float32.
        sin: Sines, likewise.
        num_heads: Query heads H, a multiple of KVH.
        tickets: Scratch [KVH], int32, zero before and after the call. Calls that may overlap must not share one. A
            graph passes its own; without one, the call allocates it and zeroes it with another launch.
        out: Where to write, [T, H * Dh].
        done: Device flag; when set, neither output nor cache is written. Needs `out`.
        impl: See :mod:`hambench.kernels`; fused needs a head size that is a power of two.

    Raises:
        ValueError: If a shape, dtype, device or stride does not fit, or `impl="fused"` can't run here.
    """
    check_attention(
        qkv, k_cache, v_cache, cos, sin, num_heads=num_heads, used=slots, used_name="slots", done=done
    )
    rows, (num_kv_heads, capacity, head_dim) = qkv.shape[0], k_cache.shape
    check_tensor("positions", positions, [rows], dtypes=(torch.int64,), device=qkv.device)
    if tickets is not None:
        check_tensor("tickets", tickets, [num_kv_heads], dtypes=(torch.int32,), device=qkv.device)
    if rows > capacity:
        raise ValueError(f"qkv must have at most the cache's {capacity} rows, got {rows}")
    out = output(out, [rows, num_heads * head_dim], like=qkv, done=done)
    if use_fused("decode_attention", impl, qkv, unsupported=unsupported(rows, head_dim, MAX_ROWS)):
        from hambench.kernels.fused.decode_attention import launch

        launch(qkv, k_cache, v_cache, slots, positions, cos, sin, num_heads, tickets, out, done)
    elif not is_done(done):
        first = int(slots.item())
        out.copy_(append_and_attend(qkv, k_cache, v_cache, first, positions, cos, sin, num_heads))
    return out
