"""Rotary embedding of the references, and the checks that both attention ops share."""

from __future__ import annotations

import torch
from torch import Tensor

from hambench.kernels._args import FLOATS, check_flag, check_tensor


def rotate(rows: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates `[T, heads, Dh]` by `positions` [T] in float32; the two halves of a head form the pairs."""
    first, second = rows.float().chunk(2, dim=-1)
    c, s = cos[positions.long(), None], sin[positions.long(), None]
    return torch.cat([first * c - second * s, second * c + first * s], dim=-1)


def attend(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """Computes softmax attention in float32: `[T, H, Dh]` over keys and values `[KVH, S, Dh]`, `visible` [T, S]."""
    rows, heads, head_dim = queries.shape
    grouped = queries.view(rows, keys.shape[0], -1, head_dim)
    scores = torch.einsum("tkgd,ksd->tkgs", grouped, keys.float()) * head_dim**-0.5
    scores = scores.masked_fill(~visible[:, None, None], float("-inf"))
    mixed = torch.einsum("tkgs,ksd->tkgd", scores.softmax(-1), values.float())
    return mixed.reshape(rows, heads * head_dim)


def check_attention(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    num_heads: int,
    used: Tensor,
    used_name: str,
    done: Tensor | None,
) -> None:
    """Checks the arguments that both attention ops take; see the ops for the shapes.

    Raises:
        ValueError: If a shape, dtype, device or stride does not fit.
    """
    check_tensor("qkv", qkv, [None, None], dtypes=FLOATS)
    if qkv.shape[0] == 0:
        raise ValueError("qkv must have at least 1 row, got 0")
    dtypes, device = (qkv.dtype,), qkv.device
    shape = [None, None, None]
    check_tensor("k_cache", k_cache, shape, dtypes=dtypes, device=device, last_dim_only=True)
    check_tensor("v_cache", v_cache, list(k_cache.shape), dtypes=dtypes, device=device, last_dim_only=True)
    if v_cache.stride() != k_cache.stride():
        raise ValueError(
            f"v_cache must have the strides of k_cache {k_cache.stride()}, got {v_cache.stride()}"
        )
    num_kv_heads, _, head_dim = k_cache.shape
    if num_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(f"num_heads must be a multiple of the cache's {num_kv_heads} heads, got {num_heads}")
    wanted = (num_heads + 2 * num_kv_heads) * head_dim
    if qkv.shape[1] != wanted:
        raise ValueError(
            f"qkv must have {wanted} columns ({num_heads} query and 2 x {num_kv_heads} key and value heads of "
            f"{head_dim}), got {qkv.shape[1]}"
        )
    if head_dim % 2:
        raise ValueError(f"k_cache must have an even head size, got {head_dim}")
    check_tensor("cos", cos, [None, head_dim // 2], dtypes=(torch.float32,), device=device)
    check_tensor("sin", sin, list(cos.shape), dtypes=(torch.float32,), device=device)
    check_flag(used_name, used, device)
    check_flag("done", done, device)


def unsupported(rows: int, head_dim: int, most_rows: int) -> str | None:
    """Returns why the fused attention kernels can't take these sizes, or `None` if they can."""
    if rows > most_rows:
        return f"at most {most_rows} rows, got {rows}"
    if head_dim & (head_dim - 1):
        return f"the head size must be a power of two, got {head_dim}"
    return None
