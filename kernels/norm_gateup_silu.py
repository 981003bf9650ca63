"""RMSNorm and the gated half of a feed-forward layer."""

from __future__ import annotations

import torch
from torch import Tensor

from hambench.kernels import MAX_ROWS
from hambench.kernels._args import FLOATS, check_flag, check_tensor, check_weight, is_done, output
from hambench.kernels._dispatch import Impl, use_fused
from hambench.kernels.norm_gemv import rms_norm


def norm_gateup_silu(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    *,
    norm_weight: Tensor,
    eps: float,
    gate_scale: Tensor | None = None,
    up_scale: Tensor | None = None,
    out: Tensor | None = None,
    done: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Returns `silu(n @ gate.T) * (n @ up.T)` for `n = rmsnorm(x)`, shape [M, N].

    Args:
        x: Rows [M, K].
        gate: [N, K] in the dtype of `x`, or int8.
        up: [N, K], like `gate`.
        norm_weight: RMSNorm weight [K].
        eps: Added to the mean of squares.
        gate_scale: Float32 [N] for an int8 `gate`.
        up_scale: Float32 [N] for an int8 `up`.
        out: Where to write, [M, N].
        done: Device flag; when set, nothing is written. Needs `out`.
        impl: See :mod:`hambench.kernels`.

    Raises:
        ValueError: If a shape, dtype, device or stride does not fit, or `impl="fused"` can't run here.
    """
    check_tensor("x", x, [None, None], dtypes=FLOATS)
    rows, num_inputs = x.shape
    if rows == 0:
        raise ValueError("x must have at least 1 row, got 0")
    check_weight("gate", gate, gate_scale, [None, num_inputs], x)
    check_weight("up", up, up_scale, list(gate.shape), x)
    if gate.dtype != up.dtype:
        raise ValueError(f"up must be {gate.dtype} like gate, got {up.dtype}")
    check_tensor("norm_weight", norm_weight, [num_inputs], dtypes=(x.dtype,), device=x.device)
    check_flag("done", done, x.device)
    out = output(out, [rows, gate.shape[0]], like=x, done=done)
    too_many = f"at most {MAX_ROWS} rows, got {rows}" if rows > MAX_ROWS else None
    if use_fused("norm_gateup_silu", impl, x, unsupported=too_many):
        from hambench.kernels.fused.norm_gateup_silu import launch

        launch(x, gate, up, norm_weight, eps, gate_scale, up_scale, out, done)
    elif not is_done(done):
        out.copy_(reference(x, gate, up, norm_weight, eps, gate_scale, up_scale))
    return out


def reference(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    norm_weight: Tensor,
    eps: float,
    gate_scale: Tensor | None,
    up_scale: Tensor | None,
) -> Tensor:
    """Computes the definition in float32."""
    normed = rms_norm(x, norm_weight, eps)
    b_gate, b_up = normed @ gate.float().T, normed @ up.float().T
    if gate_scale is not None:
        b_gate = b_gate * gate_scale
    if up_scale is not None:
        b_up = b_up * up_scale
    return torch.nn.functional.silu(b_gate) * b_up
