"""Parts of the GEMV kernels: rows of activations against blocks of weight rows, and exact rounding."""

from __future__ import annotations

import triton
import triton.language as tl

# tuples grow by +, which Triton unrolls at compile time
# mypy: disable-error-code="assignment"


@triton.jit
def round_bf16(x):
    """Rounds float32 to the nearest bf16 value (ties to even), and keeps it as float32."""
    bits = x.to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    # a NaN's payload could carry into the exponent
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def cast(x, dtype: tl.constexpr):
    """Converts float32 to `dtype`, rounding to nearest; the interpreter's own bf16 conversion truncates."""
    if dtype == tl.bfloat16:
        x = round_bf16(x)
    return x.to(dtype)


@triton.jit
def row_pointers(p_x, p_ids, K: tl.constexpr, M: tl.constexpr):
    """Returns pointers to M rows of length K: consecutive rows, or the rows that the ids at `p_ids` name."""
    p_rows = ()
    for m in tl.static_range(M):
        if p_ids is None:
            p_rows = p_rows + (p_x + m * K,)
        else:
            p_rows = p_rows + (p_x + tl.load(p_ids + m).to(tl.int64) * K,)
    return p_rows


@triton.jit
def load_row(p_row, o_k, K: tl.constexpr, EVEN: tl.constexpr):
    """Loads a block of a row as float32, zero past the row's end."""
    if EVEN:
        b_x = tl.load(p_row + o_k)
    else:
        b_x = tl.load(p_row + o_k, mask=o_k < K, other=0)
    return b_x.to(tl.float32)


@triton.jit
def gemv_rows(
    p_rows,
    p_norm,
    p_weights,
    stride_n: tl.constexpr,
    rows_left,
    K: tl.constexpr,
    M: tl.constexpr,
    L: tl.constexpr,
    EVEN_N: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Multiplies M rows with L blocks of BN weight rows, and sums the squares of the rows.

    Adds products by explicit FMA into one accumulator per lane, in the order of K, and reduces once at the end. Nothing
    that depends on M is reassociated, so a row's bits don't depend on the other rows.

    Args:
        p_rows: Tuple of M row pointers.
        p_norm: Norm weight [K], multiplied in before the product, or None (the sums of squares then stay zero).
        p_weights: Tuple of L pointers, each at the block's first row.
        stride_n: Elements between weight rows.
        rows_left: Number of weight rows from the block's first one on.
        K: Length of a row.
        M: Number of rows.
        L: Number of weights.
        EVEN_N: True if every block is full.
        BN: Weight rows per block.
        BK: Columns per block.
        UNROLL: Blocks of columns loaded together.

    Returns:
        A tuple of M*L blocks [BN, BK] (row m, weight l at m*L + l) and a tuple of M blocks [BK]; the caller sums both
            over BK.
    """
    EVEN_K: tl.constexpr = K % (BK * UNROLL) == 0
    o_n = tl.arange(0, BN)
    b_acc = ()
    b_square = ()
    for _ in tl.static_range(M * L):
        b_acc = b_acc + (tl.zeros([BN, BK], tl.float32),)
    for _ in tl.static_range(M):
        b_square = b_square + (tl.zeros([BK], tl.float32),)
    for k in range(0, K, BK * UNROLL):
        for u in tl.static_range(UNROLL):
            o_k = k + u * BK + tl.arange(0, BK)
            b_w = ()
            for i in tl.static_range(L):
                p_block = p_weights[i] + o_n[:, None] * stride_n + o_k[None, :]
                if EVEN_K and EVEN_N:
                    b_w = b_w + (tl.load(p_block).to(tl.float32),)
                else:
                    keep = (o_n[:, None] < rows_left) & (o_k[None, :] < K)
                    b_w = b_w + (tl.load(p_block, mask=keep, other=0).to(tl.float32),)
            b_next = ()
            b_next_square = ()
            for m in tl.static_range(M):
                b_x = load_row(p_rows[m], o_k, K, EVEN_K)
                if p_norm is None:
                    b_next_square = b_next_square + (b_square[m],)
                else:
                    b_next_square = b_next_square + (tl.fma(b_x, b_x, b_square[m]),)
                    b_x = b_x * load_row(p_norm, o_k, K, EVEN_K)
                b_wide = tl.broadcast_to(b_x[None, :], [BN, BK])
                for i in tl.static_range(L):
                    b_next = b_next + (tl.fma(b_w[i], b_wide, b_acc[m * L + i]),)
            b_acc = b_next
            b_square = b_next_square
    return b_acc, b_square
