"""Fused :func:`hambench.kernels.norm_gateup_silu.norm_gateup_silu`: applies both weights in one pass over the row."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hambench.kernels import tuning
from hambench.kernels.fused._rows import cast, gemv_rows, row_pointers


@triton.jit
def norm_gateup_silu_kernel(
    p_x,
    p_norm,
    p_gate,
    p_up,
    p_gate_scale,
    p_up_scale,
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
    o_block = i_n.to(tl.int64) * BN * K
    b_acc, b_square = gemv_rows(
        row_pointers(p_x, None, K, M),
        p_norm,
        (p_gate + o_block, p_up + o_block),
        K,
        N - i_n * BN,
        K,
        M,
        2,
        N % BN == 0,
        BN,
        BK,
        UNROLL,
    )
    for m in tl.static_range(M):
        rstd = tl.rsqrt(tl.sum(b_square[m], axis=0) / K + eps)
        b_gate = tl.sum(b_acc[2 * m], axis=1) * rstd
        b_up = tl.sum(b_acc[2 * m + 1], axis=1) * rstd
        if p_gate_scale is not None:
            b_gate = b_gate * tl.load(p_gate_scale + o_n, mask=keep, other=0)
            b_up = b_up * tl.load(p_up_scale + o_n, mask=keep, other=0)
        b_y = b_gate / (1.0 + tl.exp(-b_gate)) * b_up
        tl.store(p_y + m * N + o_n, cast(b_y, p_y.dtype.element_ty), mask=keep)


def launch(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    norm_weight: Tensor,
    eps: float,
    gate_scale: Tensor | None,
    up_scale: Tensor | None,
    out: Tensor,
    done: Tensor | None,
) -> None:
    """Runs the kernel; the public op has checked the arguments."""
    num_outputs, num_inputs = gate.shape
    groups = tuning.row_groups(x.shape[0], gate.dtype, weights=2)
    if len(groups) > 1:
        for group in groups:
            launch(x[group], gate, up, norm_weight, eps, gate_scale, up_scale, out[group], done)
        return
    tile = tuning.tile_for("norm_gateup_silu", gate, rows=x.shape[0], weights=2)
    norm_gateup_silu_kernel[(triton.cdiv(num_outputs, tile.block_n),)](
        x,
        norm_weight,
        gate,
        up,
        gate_scale,
        up_scale,
        out,
        done,
        eps,
        N=num_outputs,
        K=num_inputs,
        M=x.shape[0],
        BN=tile.block_n,
        BK=tuning.block_k(gate.dtype),
        UNROLL=tile.unroll,
        num_warps=tuning.NUM_WARPS,
        enable_fp_fusion=False,
    )
