from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, RELATIVE_ERROR, draw, flag

from hambench.kernels.decode_attention import decode_attention

HEADS, KV_HEADS, HEAD_DIM = 6, 2, 64
WIDTH = (HEADS + 2 * KV_HEADS) * HEAD_DIM


def tables(num_positions: int, device: torch.device) -> dict[str, torch.Tensor]:
    angles = torch.arange(num_positions)[:, None] * 1e4 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    return {"cos": angles.cos().to(device), "sin": angles.sin().to(device), "num_heads": HEADS}


def caches(context: int, capacity: int, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    """Filled up to the context, NaN behind it."""
    made = {}
    for name in ("k_cache", "v_cache"):
        made[name] = torch.empty(KV_HEADS, capacity, HEAD_DIM, dtype=dtype, device=device)
        made[name][:, :context] = draw(KV_HEADS, context, HEAD_DIM, dtype=dtype, device=device)
    return made


def copied(cache: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in cache.items()}


# a chunk holds 128 keys of this head size: contexts just below, at and above its edges
@pytest.mark.parametrize(
    ("context", "rows"), [(0, 1), (1, 2), (63, 3), (126, 3), (128, 1), (300, 5), (385, 8)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_attention(context, rows, dtype, device):
    rope = tables(1024, device)
    cache = caches(context, 400, dtype, device)
    plain = {name: tensor.float() for name, tensor in cache.items()}
    qkv = draw(rows, WIDTH, dtype=dtype, device=device)
    # a HAMburger step: positions run ahead of slots
    positions = torch.randint(0, 1024, (rows,), device=device)
    tickets = torch.zeros(KV_HEADS, dtype=torch.int32, device=device)
    slots = flag(context, device)
    got = decode_attention(
        qkv, **cache, slots=slots, positions=positions, **rope, tickets=tickets, impl="fused"
    )
    want = decode_attention(qkv.float(), **plain, slots=slots, positions=positions, **rope, impl="reference")
    # keys are attended as stored, one more rounding than the output's
    error = (got.double() - want.double()).norm() / want.double().norm()
    assert error <= 3 * RELATIVE_ERROR[dtype]
    end = context + rows
    written = (cache["k_cache"][:, :end].double() - plain["k_cache"][:, :end].double()).norm()
    assert written <= RELATIVE_ERROR[dtype] * plain["k_cache"][:, :end].double().norm()
    assert torch.equal(cache["v_cache"][:, :end].float(), plain["v_cache"][:, :end])
    assert cache["k_cache"][:, end:].isnan().all(), "slots past the rows stay unwritten"
    assert slots.item() == context
    assert (tickets == 0).all(), "tickets are left as they were found"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("context", [40, 125])
def test_decode_attention_of_a_verification_is_that_of_single_steps(dtype, context, device):
    rope, rows = tables(512, device), 5
    together = caches(context, 260, dtype, device)
    stepwise = copied(together)
    qkv = draw(rows, WIDTH, dtype=dtype, device=device)
    positions = torch.arange(rows, device=device) + context
    want = decode_attention(
        qkv, **together, slots=flag(context, device), positions=positions, **rope, impl="fused"
    )
    for i in range(rows):
        got = decode_attention(
            qkv[i : i + 1],
            **stepwise,
            slots=flag(context + i, device),
            positions=positions[i : i + 1],
            **rope,
            impl="fused",
        )
        assert torch.equal(got, want[i : i + 1]), f"row {i}"
    end = context + rows
    assert torch.equal(stepwise["k_cache"][:, :end], together["k_cache"][:, :end])


def test_decode_attention_takes_one_layer_of_a_larger_cache(device):
    rope = tables(64, device)
    whole = torch.zeros(3, KV_HEADS, 40, HEAD_DIM, device=device)
    slot_major = torch.zeros(40, KV_HEADS, HEAD_DIM, device=device).transpose(0, 1)
    qkv = draw(2, WIDTH, dtype=torch.float32, device=device)
    arguments = {
        "slots": flag(0, device),
        "positions": torch.arange(2, device=device),
        **rope,
        "impl": "fused",
    }
    one = decode_attention(qkv, whole[1], whole[1].clone(), **arguments)
    other = decode_attention(
        qkv, slot_major, slot_major.clone().transpose(0, 1).contiguous().transpose(0, 1), **arguments
    )
    assert torch.equal(one, other)
    assert not whole[[0, 2]].any()
    assert torch.equal(whole[1], slot_major)


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_decode_attention_writes_nothing_when_done(impl, device):
    cache = caches(3, 20, torch.float32, device)
    out = torch.full((1, HEADS * HEAD_DIM), 7.0, device=device)
    decode_attention(
        torch.ones(1, WIDTH, device=device),
        **cache,
        slots=flag(3, device),
        positions=torch.zeros(1, dtype=torch.int64, device=device),
        **tables(8, device),
        out=out,
        done=flag(1, device),
        impl=impl,
    )
    assert (out == 7.0).all()
    assert cache["k_cache"][:, 3:].isnan().all()


def test_decode_attention_refuses_what_it_cannot_do(device):
    cache = caches(3, 20, torch.float32, device)
    arguments = {"slots": flag(3, device), "positions": torch.zeros(1, dtype=torch.int64, device=device)}
    qkv = torch.ones(1, WIDTH, device=device)
    with pytest.raises(ValueError, match=r"positions must have shape \[1\], got \[2\]"):
        decode_attention(
            qkv,
            **cache,
            **tables(8, device),
            slots=flag(3, device),
            positions=torch.zeros(2, dtype=torch.int64, device=device),
        )
    strided = cache["v_cache"].transpose(0, 1).contiguous().transpose(0, 1)
    with pytest.raises(ValueError, match=r"v_cache must have the strides of k_cache"):
        decode_attention(qkv, cache["k_cache"], strided, **arguments, **tables(8, device))
    nine = torch.ones(9, WIDTH, device=device)
    with pytest.raises(ValueError, match="at most 8 rows, got 9"):
        decode_attention(
            nine,
            **cache,
            slots=flag(3, device),
            positions=torch.arange(9, device=device),
            **tables(16, device),
            impl="fused",
        )
