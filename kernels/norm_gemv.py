"""RMSNorm and a matrix-vector product, as a layer's q, k and v projections need them."""

from __future__ import annotations

import torch
from torch import Tensor

from hambench.kernels import MAX_ROWS
from hambench.kernels._args import FLOATS, check_flag, check_tensor, check_weight, is_done, output
from hambench.kernels._dispatch import Impl, use_fused


def norm_gemv(
    x: Tensor,
    weight: Tensor,
    *,
    norm_weight: Tensor,
    eps: float,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    ids: Tensor | None = None,
    gathered: Tensor | None = None,
    out: Tensor | None = None,
    done: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Returns `rmsnorm(x) @ weight.T (* scale) (+ bias)`, shape [M, N], computed in float32 and rounded once.

    Args:
        x: Rows [M, K]; with `ids`, the embedding table [V, K] to gather rows from.
        weight: [N, K] in the dtype of `x`, or int8.
        norm_weight: RMSNorm weight [K].
        eps: Added to the mean of squares.
        scale: Float32 [N] for an int8 weight.
        bias: [N], or `None`.
        ids: Token ids [M], int32 or int64; not checked against V.
        gathered: Where to write the rows that `ids` name, [M, K]; they start the residual stream.
        out: Where to write, [M, N].
        done: Device flag; when set, nothing is written. Needs `out`.
        impl: See :mod:`hambench.kernels`.

    Raises:
        ValueError: If a shape, dtype, device or stride does not fit, or `impl="fused"` can't run here.
    """
    rows, num_outputs = _check(x, weight, norm_weight, scale, bias, ids, gathered, done)
    out = output(out, [rows, num_outputs], like=x, done=done)
    too_many = f"at most {MAX_ROWS} rows, got {rows}" if rows > MAX_ROWS else None
    if use_fused("norm_gemv", impl, x, unsupported=too_many):
        from hambench.kernels.fused.norm_gemv import launch

        launch(x, weight, norm_weight, eps, scale, bias, ids, gathered, out, done, rows=rows)
        return out
    if not is_done(done):
        rows_in = x if ids is None else x[ids.long()]
        if gathered is not None:
            gathered.copy_(rows_in)
        out.copy_(reference(rows_in, weight, norm_weight, eps, scale, bias))
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns `x / sqrt(mean(x^2) + eps) * weight` in float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def reference(
    x: Tensor, weight: Tensor, norm_weight: Tensor, eps: float, scale: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Computes the definition in float32."""
    y = rms_norm(x, norm_weight, eps) @ weight.float().T
    if scale is not None:
        y = y * scale
    if bias is not None:
        y = y + bias.float()
    return y


def _check(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    ids: Tensor | None,
    gathered: Tensor | None,
    done: Tensor | None,
) -> tuple[int, int]:
    check_tensor("x", x, [None, None], dtypes=FLOATS)
    rows, num_inputs = x.shape
    if ids is not None:
        check_tensor("ids", ids, [None], dtypes=(torch.int32, torch.int64), device=x.device)
        rows = ids.shape[0]
    if rows == 0:
        raise ValueError("x must have at least 1 row, got 0")
    check_weight("weight", weight, scale, [None, num_inputs], x)
    num_outputs = weight.shape[0]
    check_tensor("norm_weight", norm_weight, [num_inputs], dtypes=(x.dtype,), device=x.device)
    if bias is not None:
        check_tensor("bias", bias, [num_outputs], dtypes=(x.dtype,), device=x.device)
    if gathered is not None:
        if ids is None:
            raise ValueError("gathered must be None without ids: nothing is gathered")
        check_tensor("gathered", gathered, [rows, num_inputs], dtypes=(x.dtype,), device=x.device)
    check_flag("done", done, x.device)
    return rows, num_outputs
