"""Parts of the attention kernels: rotary embedding on load, appending to a cache, a query against a tile of keys."""

from __future__ import annotations

import triton
import triton.language as tl

from hambench.kernels.fused._rows import cast


@triton.jit
def load_rotated(p_head, position, p_cos, p_sin, HEAD_DIM: tl.constexpr):
    """Loads a head's row [Dh], rotated by its position; the two halves of the head form the pairs."""
    HALF: tl.constexpr = HEAD_DIM // 2
    o_d = tl.arange(0, HEAD_DIM)
    o_angle = position * HALF + o_d % HALF
    b_own = tl.load(p_head + o_d).to(tl.float32)
    b_other = tl.load(p_head + (o_d + HALF) % HEAD_DIM).to(tl.float32)
    b_sin = tl.load(p_sin + o_angle)
    return b_own * tl.load(p_cos + o_angle) + b_other * tl.where(o_d < HALF, -b_sin, b_sin)


@triton.jit
def append_row(p_key, p_value, p_k, p_v, position, inside, p_cos, p_sin, HEAD_DIM: tl.constexpr):
    """Writes a key [Dh] (rotated) and a value to the cache slot at `p_k` and `p_v` if `inside`."""
    o_d = tl.arange(0, HEAD_DIM)
    b_k = load_rotated(p_key, position, p_cos, p_sin, HEAD_DIM)
    keep = o_d < tl.where(inside, HEAD_DIM, 0)
    tl.store(p_k + o_d, cast(b_k, p_k.dtype.element_ty), mask=keep)
    tl.store(p_v + o_d, tl.load(p_value + o_d), mask=keep)


@triton.jit
def attend_tile(b_q, b_k, b_v, visible, scale):
    """Attends with a query [Dh] to keys and values [S, Dh]; returns the top score, Σ e^(s - top) and Σ e^(s - top) v.

    Products and sums use this row alone, and a masked key adds an exact zero. So the bits don't depend on how many rows
    the call has.
    """
    b_score = tl.where(visible, tl.sum(b_k * b_q[None, :], axis=1) * scale, -float("inf"))
    top = tl.max(b_score, axis=0)
    # a tile may hold no key that this row sees
    b_p = tl.where(visible, tl.exp(b_score - tl.where(top == -float("inf"), 0.0, top)), 0.0)
    return top, tl.sum(b_p, axis=0), tl.sum(b_p[:, None] * b_v, axis=0)
