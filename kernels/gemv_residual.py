"""A matrix-vector product added to the residual stream, as the output and down projections need it."""

from __future__ import annotations

from torch import Tensor

from hambench.kernels import MAX_ROWS
from hambench.kernels._args import FLOATS, check_flag, check_tensor, check_weight, is_done, output
from hambench.kernels._dispatch import Impl, use_fused


def gemv_residual(
    x: Tensor,
    weight: Tensor,
    residual: Tensor,
    *,
    scale: Tensor | None = None,
    out: Tensor | None = None,
    done: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Returns `residual + x @ weight.T (* scale)`, shape [M, N], added in float32 and rounded once.

    Args:
        x: Rows [M, K].
        weight: [N, K] in the dtype of `x`, or int8.
        residual: [M, N].
        scale: Float32 [N] for an int8 weight.
        out: Where to write, [M, N]; may be `residual` itself.
        done: Device flag; when set, nothing is written. Needs `out`.
        impl: See :mod:`hambench.kernels`.

    Raises:
        ValueError: If a shape, dtype, device or stride does not fit, or `impl="fused"` can't run here.
    """
    check_tensor("x", x, [None, None], dtypes=FLOATS)
    rows, num_inputs = x.shape
    if rows == 0:
        raise ValueError("x must have at least 1 row, got 0")
    check_weight("weight", weight, scale, [None, num_inputs], x)
    check_tensor("residual", residual, [rows, weight.shape[0]], dtypes=(x.dtype,), device=x.device)
    check_flag("done", done, x.device)
    out = output(out, residual.shape, like=x, done=done)
    too_many = f"at most {MAX_ROWS} rows, got {rows}" if rows > MAX_ROWS else None
    if use_fused("gemv_residual", impl, x, unsupported=too_many):
        from hambench.kernels.fused.gemv_residual import launch

        launch(x, weight, residual, scale, out, done)
    elif not is_done(done):
        out.copy_(reference(x, weight, residual, scale))
    return out


def reference(x: Tensor, weight: Tensor, residual: Tensor, scale: Tensor | None) -> Tensor:
    """Computes the definition in float32."""
    y = x.float() @ weight.float().T
    return residual.float() + (y if scale is None else y * scale)
