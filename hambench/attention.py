"""Attention of the last T slots to all slots of one layer, in the form each device does fastest.

Letters as in :mod:`hambench.llama`: T query rows, H query heads, KVH key/value heads, Dh head size, S slots.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

LEAST_ROWS_IN_TWO = 128
"""From here on a CPU is faster with two unmasked calls than with one masked."""


def attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Mixes ``[KVH, S, Dh]`` values for queries ``[H, T, Dh]`` of the last T slots; gives ``[H, T, Dh]``.

    Query t sees the slots up to ``S - T + t``: causal, from the lower right corner.

    Args:
        q: Queries of the last T slots.
        keys: Keys of all S slots.
        values: Values of all S slots.
        mask: What :func:`causal_mask` gives for T and S.
    """
    num_rows, past = q.shape[1], keys.shape[1] - q.shape[1]
    q, keys, values = q[None], keys[None], values[None]
    if _goes_in_two(num_rows, past, q.device):
        return _attend_in_two(q, keys, values, past)[0]
    return F.scaled_dot_product_attention(
        q,
        keys,
        values,
        attn_mask=mask,
        is_causal=past == 0 and num_rows > 1,
        enable_gqa=q.shape[1] != keys.shape[1],
    )[0]


def causal_mask(num_rows: int, past: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
    """What :func:`attend` adds to the scores ``[T, S]``; ``None`` where it needs no mask. Made once for all layers."""
    if num_rows == 1 or past == 0 or _goes_in_two(num_rows, past, device):
        return None
    return torch.full((num_rows, past + num_rows), -math.inf, dtype=dtype, device=device).triu_(past + 1)


def _goes_in_two(num_rows: int, past: int, device: torch.device) -> bool:
    return past > 0 and num_rows >= LEAST_ROWS_IN_TWO and device.type == "cpu"


def _attend_in_two(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, past: int) -> torch.Tensor:
    """Attends to the past, all of it seen, and to the T new slots, plainly causal, and mixes the two.

    torch's CPU kernel skips what causality hides but computes all of what a mask hides. Each part comes with the
    log of its softmax's denominator, which says how to weigh it.
    """
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    old, old_log = flash(q, keys[:, :, :past], values[:, :, :past])
    new, new_log = flash(q, keys[:, :, past:], values[:, :, past:], 0.0, True)
    share_of_old = torch.sigmoid(old_log - new_log)[..., None].to(q.dtype)
    mixed: torch.Tensor = torch.lerp(new, old, share_of_old)
    return mixed
