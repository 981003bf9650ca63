"""Fused :func:`hambench.kernels.lm_head_argmax.lm_head_argmax`: finds each block's winner, then reduces them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hambench.kernels import MAX_ROWS, tuning
from hambench.kernels.fused._rows import cast, gemv_rows, row_pointers
from hambench.kernels.results import HeadOutput

REDUCE_BLOCK = 8192


@triton.jit
def packed(b_value, o_index):
    """Packs value and index into an int64 that sorts by value, and among equal values puts the lowest index first."""
    # -0.0 and 0.0 are equal logits
    b_bits = tl.where(b_value == 0.0, 0.0, b_value).to(tl.int32, bitcast=True)
    b_order = tl.where(b_bits >= 0, b_bits, b_bits ^ 0x7FFFFFFF)
    return (b_order.to(tl.int64) << 32) | (0x7FFFFFFF - o_index).to(tl.int64)


@triton.jit
def lm_head_block_kernel(
    p_x,
    p_norm,
    p_w,
    p_scale,
    p_key,
    p_max,
    p_sum,
    p_done,
    eps,
    NUM_BLOCKS: tl.constexpr,
    ROUND: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Writes each block's best key, and its part of the log-sum-exp if `p_max` is given."""
    if p_done is not None:
        if tl.load(p_done) != 0:
            return
    i_n = tl.program_id(0)
    o_n = i_n * BN + tl.arange(0, BN)
    keep = o_n < N
    b_acc, b_square = gemv_rows(
        row_pointers(p_x, None, K, M),
        p_norm,
        (p_w + i_n.to(tl.int64) * BN * K,),
        K,
        N - i_n * BN,
        K,
        M,
        1,
        N % BN == 0,
        BN,
        BK,
        UNROLL,
    )
    for m in tl.static_range(M):
        b_logit = tl.sum(b_acc[m], axis=1)
        if p_norm is not None:
            b_logit = b_logit * tl.rsqrt(tl.sum(b_square[m], axis=0) / K + eps)
        if p_scale is not None:
            b_logit = b_logit * tl.load(p_scale + o_n, mask=keep, other=0)
        if ROUND:
            b_logit = cast(b_logit, p_x.dtype.element_ty).to(tl.float32)
        b_logit = tl.where(keep, b_logit, -float("inf"))
        tl.store(p_key + m * NUM_BLOCKS + i_n, tl.max(packed(b_logit, o_n), axis=0))
        if p_max is not None:
            top = tl.max(b_logit, axis=0)
            tl.store(p_max + m * NUM_BLOCKS + i_n, top)
            tl.store(p_sum + m * NUM_BLOCKS + i_n, tl.sum(tl.exp(b_logit - top), axis=0))


@triton.jit
def lm_head_reduce_kernel(
    p_key,
    p_max,
    p_sum,
    p_token,
    p_logit,
    p_lse,
    p_done,
    NUM_BLOCKS: tl.constexpr,
    B: tl.constexpr,
):
    """Reduces one row's blocks, in a fixed order."""
    if p_done is not None:
        if tl.load(p_done) != 0:
            return
    i_m = tl.program_id(0)
    o = tl.arange(0, B)
    b_key = tl.full([B], -(2**63), tl.int64)
    for start in range(0, NUM_BLOCKS, B):
        o_b = start + o
        b_new = tl.load(p_key + i_m * NUM_BLOCKS + o_b, mask=o_b < NUM_BLOCKS, other=-(2**63))
        b_key = tl.maximum(b_key, b_new)
    key = tl.max(b_key, axis=0)
    order = (key >> 32).to(tl.int32)
    bits = tl.where(order >= 0, order, order ^ 0x7FFFFFFF)
    top = bits.to(tl.float32, bitcast=True)
    tl.store(p_token + i_m, 0x7FFFFFFF - (key & 0x7FFFFFFF))
    tl.store(p_logit + i_m, top)
    if p_lse is not None:
        b_sum = tl.zeros([B], tl.float32)
        for start in range(0, NUM_BLOCKS, B):
            o_b = start + o
            inside = o_b < NUM_BLOCKS
            b_top = tl.load(p_max + i_m * NUM_BLOCKS + o_b, mask=inside, other=-float("inf"))
            b_part = tl.load(p_sum + i_m * NUM_BLOCKS + o_b, mask=inside, other=0)
            b_sum = b_sum + b_part * tl.exp(b_top - top)
        tl.store(p_lse + i_m, top + tl.log(tl.sum(b_sum, axis=0)))


def launch(
    hidden: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None,
    eps: float,
    scale: Tensor | None,
    round_logits: bool,
    out: HeadOutput,
    done: Tensor | None,
) -> None:
    """Runs both kernels; the public op has checked the arguments."""
    rows = hidden.shape[0]
    num_outputs, num_inputs = weight.shape
    groups = tuning.row_groups(rows, weight.dtype)
    if len(groups) > 1:
        for group in groups:
            lse = None if out.log_sum_exp is None else out.log_sum_exp[group]
            part = HeadOutput(out.tokens[group], out.logits[group], lse)
            launch(hidden[group], weight, norm_weight, eps, scale, round_logits, part, done)
        return
    with_lse = out.log_sum_exp is not None
    # a maximum does not depend on how the vocabulary is cut, a sum of exponentials does: always cut it alike
    most_rows = tuning.row_groups(MAX_ROWS, weight.dtype)[0].stop
    tile = tuning.tile_for("lm_head_argmax", weight, rows=most_rows if with_lse else rows)
    num_blocks = triton.cdiv(num_outputs, tile.block_n)
    keys = torch.empty((rows, num_blocks), dtype=torch.int64, device=hidden.device)
    tops = torch.empty((rows, num_blocks), dtype=torch.float32, device=hidden.device) if with_lse else None
    sums = torch.empty_like(tops) if tops is not None else None
    lm_head_block_kernel[(num_blocks,)](
        hidden,
        norm_weight,
        weight,
        scale,
        keys,
        tops,
        sums,
        done,
        eps,
        NUM_BLOCKS=num_blocks,
        ROUND=round_logits,
        N=num_outputs,
        K=num_inputs,
        M=rows,
        BN=tile.block_n,
        BK=tuning.block_k(weight.dtype),
        UNROLL=tile.unroll,
        num_warps=tuning.NUM_WARPS,
        enable_fp_fusion=False,
    )
    lm_head_reduce_kernel[(rows,)](
        keys,
        tops,
        sums,
        out.tokens,
        out.logits,
        out.log_sum_exp,
        done,
        NUM_BLOCKS=num_blocks,
        B=REDUCE_BLOCK,
        num_warps=32,
        enable_fp_fusion=False,
    )
