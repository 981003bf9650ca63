"""Fused :func:`hambench.kernels.merge_tokens.merge_tokens`: query, keys and values, attention, output projection."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hambench.kernels import tuning
from hambench.kernels.fused._rows import cast, gemv_rows, row_pointers
from hambench.kernels.results import MergeWeights, Residual


@triton.jit
def skipped(p_count, p_done):
    """Returns True if there is nothing to compute: the step is over, or its one token passes through."""
    skip = tl.load(p_count) <= 1
    if p_done is not None:
        skip = skip | (tl.load(p_done) != 0)
    return skip


@triton.jit
def query_kernel(
    p_ids,
    p_count,
    p_embedding,
    p_w,
    p_bias,
    p_query,
    p_done,
    D: tl.constexpr,
    S: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    if skipped(p_count, p_done):
        return
    i_n = tl.program_id(0)
    o_n = i_n * BN + tl.arange(0, BN)
    keep = o_n < D
    count = tl.load(p_count)
    b_acc, _ = gemv_rows(
        row_pointers(p_embedding, p_ids, D, S),
        None,
        (p_w + i_n.to(tl.int64) * BN * D,),
        D,
        D - i_n * BN,
        D,
        S,
        1,
        D % BN == 0,
        BN,
        BK,
        UNROLL,
    )
    # W mean(e) = mean(W e), so the rows share each weight block
    b_sum = tl.zeros([BN], tl.float32)
    for s in tl.static_range(S):
        b_sum = b_sum + tl.where(s < count, tl.sum(b_acc[s], axis=1), 0.0)
    b_query = b_sum / count + tl.load(p_bias + o_n, mask=keep, other=0).to(tl.float32)
    tl.store(p_query + o_n, b_query, mask=keep)


@triton.jit
def key_value_kernel(
    p_ids,
    p_count,
    p_embedding,
    p_positions,
    p_w,
    p_bias,
    p_kv,
    p_done,
    D: tl.constexpr,
    P: tl.constexpr,
    S: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    if skipped(p_count, p_done):
        return
    i_n = tl.program_id(0)
    o_n = i_n * BN + tl.arange(0, BN)
    keep = o_n < 2 * D
    p_block = p_w + i_n.to(tl.int64) * BN * (D + P)
    rows_left = 2 * D - i_n * BN
    EVEN_N: tl.constexpr = (2 * D) % BN == 0
    p_rows = row_pointers(p_embedding, p_ids, D, S)
    b_embedded, _ = gemv_rows(p_rows, None, (p_block,), D + P, rows_left, D, S, 1, EVEN_N, BN, BK, UNROLL)
    p_rows = row_pointers(p_positions, None, P, S)
    b_placed, _ = gemv_rows(p_rows, None, (p_block + D,), D + P, rows_left, P, S, 1, EVEN_N, BN, BK, UNROLL)
    b_bias = tl.load(p_bias + o_n, mask=keep, other=0).to(tl.float32)
    for s in tl.static_range(S):
        tl.store(p_kv + s * 2 * D + o_n, tl.sum(b_embedded[s] + b_placed[s], axis=1) + b_bias, mask=keep)


@triton.jit
def attend_kernel(
    p_query,
    p_kv,
    p_count,
    p_out,
    p_done,
    scale,
    D: tl.constexpr,
    S: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BS: tl.constexpr,
    BD: tl.constexpr,
):
    """Computes one head: softmax over the tokens that count."""
    if skipped(p_count, p_done):
        return
    o_d = tl.arange(0, BD)
    o_s = tl.arange(0, BS)
    o_column = tl.program_id(0) * HEAD_DIM + o_d
    inside = o_d < HEAD_DIM
    real = o_s < tl.load(p_count)
    keep = real[:, None] & inside[None, :]
    p_rows = p_kv + o_s[:, None] * 2 * D + o_column[None, :]
    b_q = tl.load(p_query + o_column, mask=inside, other=0)
    b_k = tl.load(p_rows, mask=keep, other=0)
    b_v = tl.load(p_rows + D, mask=keep, other=0)
    b_score = tl.where(real, tl.sum(b_k * b_q[None, :], axis=1) * scale, -float("inf"))
    b_p = tl.exp(b_score - tl.max(b_score, axis=0))
    b_out = tl.sum(b_p[:, None] * b_v, axis=0) / tl.sum(b_p, axis=0)
    tl.store(p_out + o_column, b_out, mask=inside)


@triton.jit
def project_kernel(
    p_ids,
    p_count,
    p_embedding,
    p_x,
    p_w,
    p_bias,
    p_out,
    p_done,
    D: tl.constexpr,
    S: tl.constexpr,
    LAST: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    if p_done is not None:
        if tl.load(p_done) != 0:
            return
    i_n = tl.program_id(0)
    o_n = i_n * BN + tl.arange(0, BN)
    keep = o_n < D
    count = tl.load(p_count)
    p_rows = row_pointers(p_embedding, p_ids, D, S)
    b_sum = tl.zeros([BN], tl.float32)
    b_last = tl.zeros([BN], tl.float32)
    for s in tl.static_range(S):
        b_e = tl.load(p_rows[s] + o_n, mask=keep, other=0).to(tl.float32)
        b_sum = b_sum + tl.where(s < count, b_e, 0.0)
        b_last = tl.where(s < count, b_e, b_last)
    if count <= 1:
        tl.store(p_out + o_n, cast(b_last, p_out.dtype.element_ty), mask=keep)
        return
    b_acc, _ = gemv_rows(
        row_pointers(p_x, None, D, 1),
        None,
        (p_w + i_n.to(tl.int64) * BN * D,),
        D,
        D - i_n * BN,
        D,
        1,
        1,
        D % BN == 0,
        BN,
        BK,
        UNROLL,
    )
    b_start = b_last if LAST else b_sum / count
    b_y = b_start + tl.sum(b_acc[0], axis=1) + tl.load(p_bias + o_n, mask=keep, other=0).to(tl.float32)
    tl.store(p_out + o_n, cast(b_y, p_out.dtype.element_ty), mask=keep)


def launch(
    ids: Tensor,
    count: Tensor,
    embedding: Tensor,
    weights: MergeWeights,
    num_heads: int,
    residual: Residual,
    out: Tensor,
    done: Tensor | None,
) -> None:
    """Runs the four kernels; the public op has checked the arguments."""
    steps, hidden, device = ids.shape[0], embedding.shape[1], embedding.device
    width = weights.positions.shape[1]
    head_dim = hidden // num_heads
    query = torch.empty(hidden, dtype=torch.float32, device=device)
    kv = torch.empty((steps, 2 * hidden), dtype=torch.float32, device=device)
    attended = torch.empty(hidden, dtype=torch.float32, device=device)
    query_tile = tuning.tile_for("merge_tokens", weights.wq, rows=steps)
    # two products are live at once, those of embeddings and of positions
    wide_tile = tuning.tile_for("merge_tokens", weights.wkv, rows=steps, weights=2)
    out_tile = tuning.tile_for("merge_tokens", weights.wo, rows=1)
    block_k = tuning.block_k(embedding.dtype)
    query_kernel[(triton.cdiv(hidden, query_tile.block_n),)](
        ids,
        count,
        embedding,
        weights.wq,
        weights.bq,
        query,
        done,
        D=hidden,
        S=steps,
        BN=query_tile.block_n,
        BK=block_k,
        UNROLL=query_tile.unroll,
        num_warps=tuning.NUM_WARPS,
        enable_fp_fusion=False,
    )
    key_value_kernel[(triton.cdiv(2 * hidden, wide_tile.block_n),)](
        ids,
        count,
        embedding,
        weights.positions,
        weights.wkv,
        weights.bkv,
        kv,
        done,
        D=hidden,
        P=width,
        S=steps,
        BN=wide_tile.block_n,
        BK=block_k,
        UNROLL=wide_tile.unroll,
        num_warps=tuning.NUM_WARPS,
        enable_fp_fusion=False,
    )
    attend_kernel[(num_heads,)](
        query,
        kv,
        count,
        attended,
        done,
        head_dim**-0.5,
        D=hidden,
        S=steps,
        HEAD_DIM=head_dim,
        BS=triton.next_power_of_2(steps),
        BD=triton.next_power_of_2(head_dim),
        num_warps=1,
        enable_fp_fusion=False,
    )
    project_kernel[(triton.cdiv(hidden, out_tile.block_n),)](
        ids,
        count,
        embedding,
        attended,
        weights.wo,
        weights.bo,
        out,
        done,
        D=hidden,
        S=steps,
        LAST=residual == "last",
        BN=out_tile.block_n,
        BK=block_k,
        UNROLL=out_tile.unroll,
        num_warps=tuning.NUM_WARPS,
        enable_fp_fusion=False,
    )
