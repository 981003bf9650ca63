"""Fused :func:`hambench.kernels.norm_gemv.norm_gemv`: computes the norm's sum in the same pass over the weights."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hambench.kernels import tuning
from hambench.kernels.fused._rows import cast, gemv_rows, row_pointers


@triton.jit
def norm_gemv_kernel(
    p_x,
    p_ids,
    p_norm,
    p_w,
    p_scale,
    p_bias,
    p_gathered,
    p_y,
    p_done,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    if p_done is not None:
        if tl.load(p_done) != 0:
            return
    i_n = tl.program_id(0)
    o_n = i_n * BN + tl.arange(0, BN)
    keep = o_n < N
    p_rows = row_pointers(p_x, p_ids, K, M)
    b_acc, b_square = gemv_rows(
        p_rows,
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
        # the row's 1/rms is a common factor, so apply it after the product
        b_y = tl.sum(b_acc[m], axis=1) * tl.rsqrt(tl.sum(b_square[m], axis=0) / K + eps)
        if p_scale is not None:
            b_y = b_y * tl.load(p_scale + o_n, mask=keep, other=0)
        if p_bias is not None:
            b_y = b_y + tl.load(p_bias + o_n, mask=keep, other=0).to(tl.float32)
        tl.store(p_y + m * N + o_n, cast(b_y, p_y.dtype.element_ty), mask=keep)
    if p_gathered is not None:
        if i_n == 0:
            for k in range(0, K, BK):
                o_k = k + tl.arange(0, BK)
                for m in tl.static_range(M):
                    b_x = tl.load(p_rows[m] + o_k, mask=o_k < K, other=0)
                    tl.store(p_gathered + m * K + o_k, b_x, mask=o_k < K)


def launch(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    eps: float,
    scale: Tensor | None,
    bias: Tensor | None,
    ids: Tensor | None,
    gathered: Tensor | None,
    out: Tensor,
    done: Tensor | None,
    *,
    rows: int,
) -> None:
    """Runs the kernel; the public op has checked the arguments."""
    num_outputs, num_inputs = weight.shape
    groups = tuning.row_groups(rows, weight.dtype)
    if len(groups) > 1:
        for group in groups:
            launch(
                x if ids is not None else x[group],
                weight,
                norm_weight,
                eps,
                scale,
                bias,
                None if ids is None else ids[group],
                None if gathered is None else gathered[group],
                out[group],
                done,
                rows=group.stop - group.start,
            )
        return
    tile = tuning.tile_for("norm_gemv", weight, rows=rows)
    norm_gemv_kernel[(triton.cdiv(num_outputs, tile.block_n),)](
        x,
        ids,
        norm_weight,
        weight,
        scale,
        bias,
        gathered,
        out,
        done,
        eps,
        N=num_outputs,
        K=num_inputs,
        M=rows,
        BN=tile.block_n,
        BK=tuning.block_k(weight.dtype),
        UNROLL=tile.unroll,
        num_warps=tuning.NUM_WARPS,
        enable_fp_fusion=False,
    )
