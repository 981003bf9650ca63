"""Fused :func:`hambench.kernels.decode_attention.decode_attention`: splits the context into chunks.

The last chunk to finish combines them all, in slot order. Chunks begin at fixed slots, whatever the context's length
and the number of rows, so a row's bits depend on its own keys only.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hambench.kernels.fused._attention import append_row, attend_tile, load_rotated
from hambench.kernels.fused._rows import cast

CHUNK_ELEMENTS = 128 * 64
"""Keys per chunk times the head size: two tiles of this many float32 values fit in 128 threads' registers."""


@triton.jit
def decode_attention_kernel(
    p_qkv,
    p_k,
    p_v,
    p_slots,
    p_positions,
    p_cos,
    p_sin,
    p_top,
    p_total,
    p_part,
    p_tickets,
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
    CHUNK: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    BC: tl.constexpr,
):
    if p_done is not None:
        if tl.load(p_done) != 0:
            return
    H: tl.constexpr = KVH * GROUP
    ROW: tl.constexpr = (H + 2 * KVH) * HEAD_DIM
    QUERIES: tl.constexpr = ROWS * GROUP
    i_h = tl.program_id(0)
    i_c = tl.program_id(1)
    slots = tl.load(p_slots)
    first = i_c * CHUNK
    end = tl.minimum(slots + ROWS, CAPACITY)
    if first >= end:
        return
    p_k = p_k + i_h.to(tl.int64) * STRIDE_H
    p_v = p_v + i_h.to(tl.int64) * STRIDE_H
    # the chunk that holds a new row's slot writes the row, and no other chunk reads it
    for t in range(ROWS):
        slot = slots + t
        inside = (slot >= first) & (slot < first + CHUNK) & (slot < CAPACITY)
        p_key = p_qkv + t * ROW + (H + i_h) * HEAD_DIM
        o_slot = slot.to(tl.int64) * STRIDE_S
        position = tl.load(p_positions + t)
        append_row(
            p_key,
            p_key + KVH * HEAD_DIM,
            p_k + o_slot,
            p_v + o_slot,
            position,
            inside,
            p_cos,
            p_sin,
            HEAD_DIM,
        )
    tl.debug_barrier()
    o_s = first + tl.arange(0, CHUNK)
    o_d = tl.arange(0, HEAD_DIM)
    o_tile = o_s[:, None].to(tl.int64) * STRIDE_S + o_d[None, :]
    filled = o_s < end
    b_k = tl.load(p_k + o_tile, mask=filled[:, None], other=0).to(tl.float32)
    b_v = tl.load(p_v + o_tile, mask=filled[:, None], other=0).to(tl.float32)
    for r in range(QUERIES):
        t = r // GROUP
        i_q = i_h * GROUP + r % GROUP
        b_q = load_rotated(p_qkv + t * ROW + i_q * HEAD_DIM, tl.load(p_positions + t), p_cos, p_sin, HEAD_DIM)
        top, total, b_part = attend_tile(b_q, b_k, b_v, o_s <= slots + t, scale)
        o_query = (i_h * QUERIES + r) * NUM_CHUNKS + i_c
        tl.store(p_top + o_query, top)
        tl.store(p_total + o_query, total)
        tl.store(p_part + o_query * HEAD_DIM + o_d, b_part)
    # every thread has stored its parts before the ticket says so
    tl.debug_barrier()
    num_active = tl.cdiv(end, CHUNK)
    if tl.atomic_add(p_tickets + i_h, 1) != num_active - 1:
        return
    for r in range(QUERIES):
        o_query = (i_h * QUERIES + r) * NUM_CHUNKS
        top = -float("inf")
        total = 0.0
        b_sum = tl.zeros([HEAD_DIM], tl.float32)
        start = 0
        while start < num_active:
            o_c = start + tl.arange(0, BC)
            active = o_c < num_active
            b_top = tl.load(p_top + o_query + o_c, mask=active, other=-float("inf"), cache_modifier=".cg")
            b_total = tl.load(p_total + o_query + o_c, mask=active, other=0, cache_modifier=".cg")
            p_parts = p_part + (o_query + o_c[:, None]) * HEAD_DIM + o_d[None, :]
            b_parts = tl.load(p_parts, mask=active[:, None], other=0, cache_modifier=".cg")
            new_top = tl.maximum(top, tl.max(b_top, axis=0))
            b_weight = tl.exp(b_top - new_top)
            keep = tl.exp(top - new_top)
            total = total * keep + tl.sum(b_total * b_weight, axis=0)
            b_sum = b_sum * keep + tl.sum(b_parts * b_weight[:, None], axis=0)
            top = new_top
            start += BC
        p_row = p_out + (r // GROUP) * H * HEAD_DIM + (i_h * GROUP + r % GROUP) * HEAD_DIM + o_d
        tl.store(p_row, cast(b_sum / total, p_out.dtype.element_ty))
    tl.store(p_tickets + i_h, 0)


def launch(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    tickets: Tensor | None,
    out: Tensor,
    done: Tensor | None,
) -> None:
    """Runs the kernel; the public op has checked the arguments."""
    num_kv_heads, capacity, head_dim = k_cache.shape
    rows, device = qkv.shape[0], qkv.device
    chunk = max(16, CHUNK_ELEMENTS // head_dim)
    num_chunks = triton.cdiv(capacity, chunk)
    queries = num_kv_heads * rows * (num_heads // num_kv_heads)
    tops = torch.empty((queries, num_chunks), dtype=torch.float32, device=device)
    totals = torch.empty_like(tops)
    parts = torch.empty((queries, num_chunks, head_dim), dtype=torch.float32, device=device)
    if tickets is None:
        tickets = torch.zeros(num_kv_heads, dtype=torch.int32, device=device)
    decode_attention_kernel[(num_kv_heads, num_chunks)](
        qkv,
        k_cache,
        v_cache,
        slots,
        positions,
        cos,
        sin,
        tops,
        totals,
        parts,
        tickets,
        out,
        done,
        head_dim**-0.5,
        STRIDE_H=k_cache.stride(0),
        STRIDE_S=k_cache.stride(1),
        ROWS=rows,
        GROUP=num_heads // num_kv_heads,
        KVH=num_kv_heads,
        HEAD_DIM=head_dim,
        CAPACITY=capacity,
        CHUNK=chunk,
        NUM_CHUNKS=num_chunks,
        BC=min(32, triton.next_power_of_2(num_chunks)),
        num_warps=4,
        enable_fp_fusion=False,
    )
