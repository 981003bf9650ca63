"""The LM head with the argmax inside: finds greedy tokens without writing logits."""

from __future__ import annotations

import torch
from torch import Tensor

from hambench.kernels import MAX_ROWS
from hambench.kernels._args import FLOATS, check_flag, check_tensor, check_weight, is_done
from hambench.kernels._dispatch import Impl, use_fused
from hambench.kernels.norm_gemv import rms_norm
from hambench.kernels.results import HeadOutput


def lm_head_argmax(
    hidden: Tensor,
    weight: Tensor,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    log_sum_exp: bool = False,
    round_logits: bool = True,
    out: HeadOutput | None = None,
    done: Tensor | None = None,
    impl: Impl = "auto",
) -> HeadOutput:
    """Returns the most probable token of each row, `argmax((norm?)(hidden) @ weight.T)`.

    Args:
        hidden: Rows [M, K].
        weight: Head [V, K] in the dtype of `hidden`, or int8.
        norm_weight: Final RMSNorm weight [K], or `None` if `hidden` is already normed.
        eps: Epsilon of the norm.
        scale: Float32 [V] for an int8 head.
        log_sum_exp: Also compute the normaliser of the softmax.
        round_logits: Round logits to the dtype of `hidden` before comparing, as torch's linear layer does. In bf16
            about one greedy step in 60 has an exact tie, and the tie's winner decides the token.
        out: Where to write; its `log_sum_exp` decides whether that is computed.
        done: Device flag; when set, nothing is written. Needs `out`.
        impl: See :mod:`hambench.kernels`.

    Raises:
        ValueError: If a shape, dtype, device or stride does not fit, or `impl="fused"` can't run here.
    """
    check_tensor("hidden", hidden, [None, None], dtypes=FLOATS)
    rows, num_inputs = hidden.shape
    if rows == 0:
        raise ValueError("hidden must have at least 1 row, got 0")
    check_weight("weight", weight, scale, [None, num_inputs], hidden)
    if norm_weight is not None:
        check_tensor("norm_weight", norm_weight, [num_inputs], dtypes=(hidden.dtype,), device=hidden.device)
    check_flag("done", done, hidden.device)
    if out is None:
        if done is not None:
            raise ValueError("out must be given with done: a skipped call leaves its output as it was")
        out = HeadOutput.empty(rows, hidden.device, log_sum_exp=log_sum_exp)
    check_tensor("out.tokens", out.tokens, [rows], dtypes=(torch.int64,), device=hidden.device)
    check_tensor("out.logits", out.logits, [rows], dtypes=(torch.float32,), device=hidden.device)
    if out.log_sum_exp is not None:
        check_tensor(
            "out.log_sum_exp", out.log_sum_exp, [rows], dtypes=(torch.float32,), device=hidden.device
        )
    too_many = f"at most {MAX_ROWS} rows, got {rows}" if rows > MAX_ROWS else None
    if use_fused("lm_head_argmax", impl, hidden, unsupported=too_many):
        from hambench.kernels.fused.lm_head_argmax import launch

        launch(hidden, weight, norm_weight, eps, scale, round_logits, out, done)
    elif not is_done(done):
        logits = reference(hidden, weight, norm_weight, eps, scale, round_logits=round_logits)
        # torch.argmax promises no order among equal values, so take the lowest index explicitly
        best = logits.max(dim=-1, keepdim=True).values
        out.tokens.copy_((logits == best).int().argmax(dim=-1))
        out.logits.copy_(best.squeeze(-1))
        if out.log_sum_exp is not None:
            out.log_sum_exp.copy_(logits.logsumexp(dim=-1))
    return out


def reference(
    hidden: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None,
    eps: float,
    scale: Tensor | None,
    *,
    round_logits: bool,
) -> Tensor:
    """Computes the logits [M, V] in float32."""
    rows = hidden.float() if norm_weight is None else rms_norm(hidden, norm_weight, eps)
    logits = rows @ weight.float().T
    if scale is not None:
        logits = logits * scale
    return logits.to(hidden.dtype).float() if round_logits else logits
