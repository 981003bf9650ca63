from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import DTYPES, RELATIVE_ERROR, assert_close, draw, flag

from hambench.kernels.micro_attention import micro_attention


def tables(num_positions: int, head_dim: int, device: torch.device) -> dict[str, torch.Tensor]:
    angles = torch.arange(num_positions)[:, None] * 1e4 ** (-torch.arange(0, head_dim, 2) / head_dim)
    return {"cos": angles.cos().to(device), "sin": angles.sin().to(device)}


def caches(kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    return {
        name: torch.empty(kv_heads, 8, head_dim, dtype=dtype, device=device)
        for name in ("k_cache", "v_cache")
    }


# heads, key heads, head size: SmolLM2's three to one, Llama's four to one
SHAPES = [pytest.param(9, 3, 64, id="H9-KVH3"), pytest.param(8, 2, 32, id="H8-KVH2")]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_micro_attention_over_a_whole_macro_step(heads, kv_heads, head_dim, dtype, device):
    rope = tables(8, head_dim, device)
    fused, plain = (caches(kv_heads, head_dim, dtype, device) for _ in range(2))
    length = 0
    # four features with the first token, then a token at a time
    for rows in (5, 1, 1):
        qkv = draw(rows, (heads + 2 * kv_heads) * head_dim, dtype=dtype, device=device)
        got = micro_attention(
            qkv, **fused, length=flag(length, device), **rope, num_heads=heads, impl="fused"
        )
        want = micro_attention(
            qkv.float(),
            **{name: cache.float() for name, cache in plain.items()},
            length=flag(length, device),
            **rope,
            num_heads=heads,
            impl="reference",
        )
        micro_attention(qkv, **plain, length=flag(length, device), **rope, num_heads=heads, impl="reference")
        length += rows
        # keys are attended as stored, one more rounding than the output's
        error = (got.double() - want.double()).norm() / want.double().norm()
        assert error <= 3 * RELATIVE_ERROR[dtype]
        for name in ("k_cache", "v_cache"):
            assert_close(fused[name][:, :length], plain[name][:, :length])
            assert fused[name][:, length:].isnan().all(), "slots past the rows stay unwritten"


def test_micro_attention_is_torchs_attention(device):
    heads, kv_heads, head_dim = 4, 2, 32
    rope = tables(8, head_dim, device)
    qkv = draw(5, 8 * head_dim, dtype=torch.float32, device=device)
    got = micro_attention(
        qkv,
        **caches(kv_heads, head_dim, torch.float32, device),
        length=flag(0, device),
        **rope,
        num_heads=heads,
        impl="fused",
    )
    q, k, v = qkv.view(5, 8, head_dim).transpose(0, 1).split([heads, kv_heads, kv_heads])
    cos, sin = (torch.cat([table[:5], table[:5]], dim=-1) for table in rope.values())
    q, k = (x * cos + torch.cat([-x[..., 16:], x[..., :16]], dim=-1) * sin for x in (q, k))
    want = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)[0]
    assert_close(got, want.transpose(0, 1).reshape(5, -1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_micro_attention_of_five_rows_is_that_of_one_row_five_times(dtype, device):
    rope, shared = tables(8, 32, device), {"num_heads": 4, "impl": "fused"}
    qkv = draw(5, 8 * 32, dtype=dtype, device=device)
    together, stepwise = caches(2, 32, dtype, device), caches(2, 32, dtype, device)
    want = micro_attention(qkv, **together, length=flag(0, device), **rope, **shared)
    for i in range(5):
        got = micro_attention(qkv[i : i + 1], **stepwise, length=flag(i, device), **rope, **shared)
        assert torch.equal(got, want[i : i + 1])
    assert torch.equal(stepwise["k_cache"][:, :5], together["k_cache"][:, :5])


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_micro_attention_writes_nothing_when_done(impl, device):
    cache = caches(2, 32, torch.float32, device)
    out = torch.full((1, 128), 7.0, device=device)
    micro_attention(
        torch.ones(1, 256, device=device),
        **cache,
        length=flag(0, device),
        **tables(8, 32, device),
        num_heads=4,
        out=out,
        done=flag(1, device),
        impl=impl,
    )
    assert (out == 7.0).all()
    assert cache["k_cache"].isnan().all()


def test_micro_attention_refuses_what_it_cannot_do(device):
    def call(heads=4, head_dim=32, capacity=8, rows=1, **changes):
        qkv = torch.ones(rows, (heads + 4) * head_dim, device=device)
        cache = torch.zeros(2, capacity, head_dim, device=device)
        arguments = {"length": flag(0, device), **tables(8, head_dim, device), "num_heads": heads}
        return micro_attention(qkv, cache, cache.clone(), **{**arguments, **changes})

    with pytest.raises(ValueError, match="the head size must be a power of two, got 24"):
        call(head_dim=24, impl="fused")
    assert call(head_dim=24).shape == (1, 96), "auto takes the reference"
    with pytest.raises(ValueError, match="k_cache must have at most 8 slots, got 9; use decode_attention"):
        call(capacity=9)
    with pytest.raises(ValueError, match="num_heads must be a multiple of the cache's 2 heads, got 3"):
        call(heads=3)
    with pytest.raises(ValueError, match=r"qkv must have 256 columns \(4 query and 2 x 2 .*got 288"):
        call(heads=5, num_heads=4)
    with pytest.raises(ValueError, match="length must be int32, got int64"):
        call(length=torch.zeros(1, dtype=torch.int64, device=device))
