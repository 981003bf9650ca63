"""Fused :func:`hambench.kernels.micro_attention.micro_attention`: runs one program per key head."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hambench.kernels.fused._attention import append_row, attend_tile, load_rotated
from hambench.kernels.fused._rows import cast


@triton.jit
def micro_attention_kernel(
    p_qkv,
    p_k,
    p_v,
    p_length,
    p_cos,
    p_sin,
    p_out,
    p_done,
    scale,
    STRIDE_H: tl.constexpr,
    STRIDE_S: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    KVH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CAPACITY: tl.constexpr,
    BS: tl.constexpr,
):
    if p_done is not None:
        if tl.load(p_done) != 0:
            return
    H: tl.constexpr = KVH * GROUP
    ROW: tl.constexpr = (H + 2 * KVH) * HEAD_DIM
    i_h = tl.program_id(0)
    length = tl.load(p_length)
    p_k = p_k + i_h * STRIDE_H
    p_v = p_v + i_h * STRIDE_H
    for t in range(ROWS):
        p_key = p_qkv + t * ROW + (H + i_h) * HEAD_DIM
        o_slot = (length + t) * STRIDE_S
        inside = length + t < CAPACITY
        append_row(
            p_key,
            p_key + KVH * HEAD_DIM,
            p_k + o_slot,
            p_v + o_slot,
            length + t,
            inside,
            p_cos,
            p_sin,
            HEAD_DIM,
        )
    # other threads read back the rows just written
    tl.debug_barrier()
    o_s = tl.arange(0, BS)
    o_d = tl.arange(0, HEAD_DIM)
    filled = (o_s < length + ROWS) & (o_s < CAPACITY)
    o_tile = o_s[:, None] * STRIDE_S + o_d[None, :]
    b_k = tl.load(p_k + o_tile, mask=filled[:, None], other=0).to(tl.float32)
    b_v = tl.load(p_v + o_tile, mask=filled[:, None], other=0).to(tl.float32)
    for r in range(ROWS * GROUP):
        t = r // GROUP
        i_q = i_h * GROUP + r % GROUP
        b_q = load_rotated(p_qkv + t * ROW + i_q * HEAD_DIM, length + t, p_cos, p_sin, HEAD_DIM)
        _, total, b_out = attend_tile(b_q, b_k, b_v, o_s <= length + t, scale)
        p_row = p_out + t * H * HEAD_DIM + i_q * HEAD_DIM + o_d
        tl.store(p_row, cast(b_out / total, p_out.dtype.element_ty))


def launch(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    length: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    out: Tensor,
    done: Tensor | None,
) -> None:
    """Runs the kernel; the public op has checked the arguments."""
    num_kv_heads, capacity, head_dim = k_cache.shape
    micro_attention_kernel[(num_kv_heads,)](
        qkv,
        k_cache,
        v_cache,
        length,
        cos,
        sin,
        out,
        done,
        head_dim**-0.5,
        STRIDE_H=k_cache.stride(0),
        STRIDE_S=k_cache.stride(1),
        ROWS=qkv.shape[0],
        GROUP=num_heads // num_kv_heads,
        KVH=num_kv_heads,
        HEAD_DIM=head_dim,
        CAPACITY=capacity,
        BS=triton.next_power_of_2(capacity),
        num_warps=1,
        enable_fp_fusion=False,
    )
