"""Fused :func:`hambench.kernels.gemv_residual.gemv_residual`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hambench.kernels import tuning
from hambench.kernels.fused._rows import cast, gemv_rows, row_pointers


@triton.jit
def gemv_residual_kernel(
    p_x,
    p_w,
    p_scale,
    p_residual,
    p_y,
    p_done,
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
    b_acc, _ = gemv_rows(
        row_pointers(p_x, None, K, M),
        None,
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
        b_y = tl.sum(b_acc[m], axis=1)
        if p_scale is not None:
            b_y = b_y * tl.load(p_scale + o_n, mask=keep, other=0)
        b_y = b_y + tl.load(p_residual + m * N + o_n, mask=keep, other=0).to(tl.float32)
        tl.store(p_y + m * N + o_n, cast(b_y, p_y.dtype.element_ty), mask=keep)


def launch(
    x: Tensor, weight: Tensor, residual: Tensor, scale: Tensor | None, out: Tensor, done: Tensor | None
) -> None:
    """Runs the kernel; the public op has checked the arguments."""
    num_outputs, num_inputs = weight.shape
    groups = tuning.row_groups(x.shape[0], weight.dtype)
    if len(groups) > 1:
        for group in groups:
            launch(x[group], weight, residual[group], scale, out[group], done)
        return
    tile = tuning.tile_for("gemv_residual", weight, rows=x.shape[0])
    gemv_residual_kernel[(triton.cdiv(num_outputs, tile.block_n),)](
        x,
        weight,
        scale,
        residual,
        out,
        done,
        N=num_outputs,
        K=num_inputs,
        M=x.shape[0],
        BN=tile.block_n,
        BK=tuning.block_k(weight.dtype),
        UNROLL=tile.unroll,
        num_warps=tuning.NUM_WARPS,
        enable_fp_fusion=False,
    )
