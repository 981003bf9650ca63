"""Operations of a training step in the form that a CPU runs fastest; torch's own are made for other sizes.

A macro-step attends over seven rows, where torch's attention kernel spends most of its time on preparing each small
square, forward and more so backward. Its RMS norm is a chain of operations over the whole tensor, each with a result
and a gradient of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def short_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Computes attention over a few rows as two batched products; returns ``[N, H, Q, Dh]``.

    Query heads that share a key head are rows of one product.

    Args:
        q: Queries ``[N, H, Q, Dh]``.
        k: Keys ``[N, G, T, Dh]``; G divides H.
        v: Values ``[N, G, T, Dh]``.
        seen: ``[Q, T]``: true where a query sees a key.
    """
    groups, repeats = k.shape[1], q.shape[1] // k.shape[1]
    grouped = q.reshape(len(q), groups, -1, q.shape[-1])
    hidden = torch.zeros(seen.shape, device=q.device).masked_fill_(~seen, float("-inf")).repeat(repeats, 1)
    scores = torch.add(hidden, (grouped @ k.transpose(-1, -2)).float(), alpha=q.shape[-1] ** -0.5)
    mixed = torch.softmax(scores, -1).to(v.dtype) @ v
    return mixed.reshape(q.shape)


def rms_norm(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns ``F.rms_norm(rows, [D], weight, eps)`` ``[..., D]``, computed in float32 and rounded once."""
    out: Tensor = _RMSNorm.apply(rows, weight, eps)  # type: ignore[no-untyped-call]
    return out


class _RMSNorm(torch.autograd.Function):
    """RMS norm that stores its input and one number per row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = rows.to(torch.float32, copy=True)
        squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        inverse = squares.div_(rows.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(rows, weight, inverse)
        return wide.mul_(inverse).mul_(weight).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weight, inverse = ctx.saved_tensors
        normed = rows.to(torch.float32, copy=True).mul_(inverse)
        wide = gradient.to(torch.float32, copy=True)
        product = wide * normed
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, to_weight, None
        along = (product @ weight.float())[..., None].div_(-rows.shape[-1])
        to_rows = wide.mul_(weight).addcmul_(normed, along).mul_(inverse)
        return to_rows.to(rows.dtype), to_weight, None
