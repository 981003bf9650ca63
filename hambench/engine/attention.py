"""Attention of the last T slots to all slots of one layer, in the fastest form for each device.

Letters as in :mod:`hambench.engine.llama`: T query rows, H query heads, KVH key/value heads, Dh head size, S slots.

torch's CPU kernel is the fastest for a few rows, but not for a prompt. It skips keys hidden by causality but not keys
hidden by a mask, and without a tile unit (AMX) its small matrix products run at a fifth of the machine's speed.
Measurements chose between the forms below: docs/adr/0005.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F

from hambench.engine.linear import must_widen

LEAST_LONG = 128
"""Number of rows from which a CPU has a faster form than one masked call."""
SCORES_BYTES = 16 * 2**20
"""Bytes of scores to hold at a time, so that they stay in the last-level cache between three passes."""
MOST_IN_BLOCK = 256
"""Rows per block. In the last block of a chunk, causality hides half of the scores."""
LARGEST_ROUNDED = 128.0
"""Scores that may exceed this are kept in float32. Below it, bfloat16 scores added 3 % to the error that a bfloat16
model's logits have anyway, on the one text tried (docs/adr/0005)."""


def attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Mixes ``[KVH, S, Dh]`` values for queries ``[H, T, Dh]`` of the last T slots; returns ``[H, T, Dh]``.

    Query t sees the slots up to ``S - T + t``: causal, aligned to the lower right corner.

    Args:
        q: Queries of the last T slots.
        keys: Keys of all S slots.
        values: Values of all S slots.
        mask: Result of :func:`causal_mask` for T and S.
    """
    num_rows, past = q.shape[1], keys.shape[1] - q.shape[1]
    if _is_long(num_rows, q.device):
        if must_widen(q):
            return attend_in_blocks(q.float(), keys.float(), values.float()).to(q.dtype)
        if q.dtype in (torch.bfloat16, torch.float32) and not (q.dtype == torch.bfloat16 and _has_tiles()):
            return attend_in_blocks(q, keys, values)
        if past > 0:
            return attend_in_two(q, keys, values)
    return F.scaled_dot_product_attention(
        q[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=past == 0 and num_rows > 1,
        enable_gqa=q.shape[0] != keys.shape[0],
    )[0]


def causal_mask(num_rows: int, past: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
    """Returns what to add to the scores ``[T, S]``, ``None`` if no mask is needed; one mask serves all layers."""
    if num_rows <= 1 or past == 0 or _is_long(num_rows, device):
        return None
    return torch.full((num_rows, past + num_rows), -math.inf, dtype=dtype, device=device).triu_(past + 1)


def attend_in_blocks(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Computes :func:`attend` as plain matrix products over blocks of queries.

    No block reads a key that none of its rows sees. Query heads that share a key head are rows of one product, which is
    then tall enough to run near the machine's speed.
    """
    num_heads, num_rows, head_dim = q.shape
    num_kv_heads, num_slots, _ = keys.shape
    shared, past = num_heads // num_kv_heads, num_slots - num_rows
    score_dtype = _score_dtype(q, keys)
    block = min(max(SCORES_BYTES // (score_dtype.itemsize * num_heads * num_slots), 16), MOST_IN_BLOCK)
    queries = (q.to(score_dtype) * head_dim**-0.5).view(num_kv_heads, shared, num_rows, head_dim)
    columns = keys.to(score_dtype).transpose(1, 2)
    mixed = torch.empty(num_kv_heads, shared, num_rows, head_dim, dtype=q.dtype)
    hidden = torch.full((block, block), -math.inf, dtype=score_dtype).triu_(1)
    # one allocation for all blocks: allocating each block costs more in page faults than the softmax
    room = torch.empty(num_heads * block * num_slots, dtype=score_dtype)
    rounded = room if score_dtype == q.dtype else torch.empty_like(room, dtype=q.dtype)
    for first in range(0, num_rows, block):
        rows, visible = min(block, num_rows - first), past + min(first + block, num_rows)
        size = (num_kv_heads, shared * rows, visible)
        scores, weights = room[: math.prod(size)].view(size), rounded[: math.prod(size)].view(size)
        torch.bmm(queries[:, :, first : first + rows].flatten(1, 2), columns[:, :, :visible], out=scores)
        scores.view(num_kv_heads, shared, rows, visible)[..., visible - rows :] += hidden[:rows, :rows]
        torch.softmax(scores, -1, out=scores)
        if score_dtype != q.dtype:
            weights.copy_(scores)
        part = torch.bmm(weights, values[:, :visible])
        mixed[:, :, first : first + rows] = part.view(num_kv_heads, shared, rows, head_dim)
    return mixed.view(num_heads, num_rows, head_dim)


def _score_dtype(q: torch.Tensor, keys: torch.Tensor) -> torch.dtype:
    """Returns the type to hold scores in: the model's own if that is safe, which halves the time of their product.

    By Cauchy-Schwarz no score exceeds the longest query times the longest key. Models with large key biases (Qwen2)
    exceed the limit, so their scores are float32.
    """
    longest = (rows.float().square().sum(-1).amax() for rows in (q, keys))
    largest = math.prod(math.sqrt(float(square)) for square in longest) * q.shape[-1] ** -0.5
    return q.dtype if largest <= LARGEST_ROUNDED else torch.float32


def attend_in_two(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Computes :func:`attend` in two calls of torch's kernel: unmasked over the past, causal over the T new slots.

    Each part returns the log of its softmax's denominator, which gives the part's weight.
    """
    past = keys.shape[1] - q.shape[1]
    q, keys, values = q[None], keys[None], values[None]
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    old, old_log = flash(q, keys[:, :, :past], values[:, :, :past])
    new, new_log = flash(q, keys[:, :, past:], values[:, :, past:], 0.0, True)
    share_of_old = torch.sigmoid(old_log - new_log)[..., None].to(q.dtype)
    mixed: torch.Tensor = torch.lerp(new, old, share_of_old)[0]
    return mixed


def _is_long(num_rows: int, device: torch.device) -> bool:
    return num_rows >= LEAST_LONG and device.type == "cpu"


@functools.cache
def _has_tiles() -> bool:
    """Returns True if the CPU has a bfloat16 tile unit (AMX), which torch's attention kernel uses."""
    return bool(torch.cpu._is_amx_tile_supported())
