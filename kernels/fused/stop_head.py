"""Fused :func:`hambench.kernels.stop_head.stop_head`: two GEMVs with bias and SiLU, then one program that decides."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hambench.kernels import tuning
from hambench.kernels.fused._rows import gemv_rows, row_pointers
from hambench.kernels.results import MicroState, StopWeights


@triton.jit
def gemv_silu_kernel(
    p_x,
    p_w,
    p_bias,
    p_y,
    p_done,
    N: tl.constexpr,
    K: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Computes `silu(x @ W.T + b)` for one row, in float32 for the next layer."""
    if tl.load(p_done) != 0:
        return
    i_n = tl.program_id(0)
    o_n = i_n * BN + tl.arange(0, BN)
    keep = o_n < N
    b_acc, _ = gemv_rows(
        row_pointers(p_x, None, K, 1),
        None,
        (p_w + i_n.to(tl.int64) * BN * K,),
        K,
        N - i_n * BN,
        K,
        1,
        1,
        N % BN == 0,
        BN,
        BK,
        UNROLL,
    )
    b_y = tl.sum(b_acc[0], axis=1) + tl.load(p_bias + o_n, mask=keep, other=0).to(tl.float32)
    tl.store(p_y + o_n, b_y / (1.0 + tl.exp(-b_y)), mask=keep)


@triton.jit
def decide_kernel(
    p_x,
    p_w,
    p_bias,
    p_token,
    p_confidence,
    p_tokens,
    p_probs,
    p_count,
    p_done,
    LIMIT: tl.constexpr,
    K: tl.constexpr,
    BK: tl.constexpr,
):
    if tl.load(p_done) != 0:
        return
    count = tl.load(p_count)
    stop = count + 1 >= LIMIT
    if p_w is None:
        stop = count >= 0
    else:
        o_k = tl.arange(0, BK)
        b_x = tl.load(p_x + o_k, mask=o_k < K, other=0)
        b_w = tl.load(p_w + o_k, mask=o_k < K, other=0).to(tl.float32)
        logit = tl.sum(b_x * b_w, axis=0) + tl.load(p_bias).to(tl.float32)
        # 1 - sigmoid(z) = sigmoid(-z)
        probability = 1.0 / (1.0 + tl.exp(logit))
        tl.store(p_probs + count, probability)
        stop = stop | (probability < tl.load(p_confidence))
    tl.store(p_tokens + count, tl.load(p_token))
    tl.store(p_count, count + 1)
    tl.store(p_done, stop.to(tl.int32))


def launch(
    hidden: Tensor, token: Tensor, weights: StopWeights | None, state: MicroState, confidence: Tensor
) -> None:
    """Runs the three kernels, or only the last one if `weights` is None; the public op has checked the arguments."""
    layers = () if weights is None else ((weights.w1, weights.b1), (weights.w2, weights.b2))
    for weight, bias in layers:
        inner = torch.empty((1, weight.shape[0]), dtype=torch.float32, device=hidden.device)
        num_outputs, num_inputs = weight.shape
        tile = tuning.tile_for("stop_head", weight, rows=1)
        gemv_silu_kernel[(triton.cdiv(num_outputs, tile.block_n),)](
            hidden,
            weight,
            bias,
            inner,
            state.done,
            N=num_outputs,
            K=num_inputs,
            BN=tile.block_n,
            BK=tuning.block_k(weight.dtype),
            UNROLL=tile.unroll,
            num_warps=tuning.NUM_WARPS,
            enable_fp_fusion=False,
        )
        hidden = inner
    width = hidden.shape[1]
    decide_kernel[(1,)](
        hidden,
        None if weights is None else weights.w3,
        None if weights is None else weights.b3,
        token,
        confidence,
        state.tokens,
        state.continue_probs,
        state.num_tokens,
        state.done,
        LIMIT=state.tokens.shape[0],
        K=width,
        BK=triton.next_power_of_2(width),
        # only a sum has a barrier that orders the stores after every warp's loads; without one, use a single warp
        num_warps=1 if weights is None else 4,
        enable_fp_fusion=False,
    )
