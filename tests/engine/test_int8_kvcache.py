"""The int8 cache: rounding bounds, bytes, and decoding over it as over a plain cache that holds the rounded rows."""

import pytest
import torch
from fakes import TINY_SHAPE, tiny_target

from hambench.engine.kvcache import Int8KVCache, KVCache, dequantize_rows, quantize_rows

SIZES = {"num_layers": 2, "num_kv_heads": 3, "head_dim": 4, "capacity": 8, "device": "cpu"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-6, 1.0, 300.0])
def test_an_element_is_off_by_at_most_half_a_step_and_a_bit_of_the_scale(dtype, size):
    rows = (torch.randn(50, 64, generator=torch.Generator().manual_seed(1)) * size).to(dtype)
    back = dequantize_rows(quantize_rows(rows), torch.float32)
    step = rows.float().abs().amax(-1, keepdim=True) / 127
    # the scale is rounded to eight bits: the largest elements may be cut by that
    assert ((back - rows.float()).abs() <= step * (0.5 + 127 * 2**-8)).all()
    assert ((back - rows.float()).abs().mean(-1, keepdim=True) <= step * 0.3).all()


def test_zeros_stay_zeros_and_signs_stay():
    rows = torch.tensor([[0.0, 0.0, 0.0, 0.0], [-1.0, 1.0, 0.5, -0.25]])
    back = dequantize_rows(quantize_rows(rows), torch.float32)
    assert torch.equal(back[0], rows[0])
    assert torch.equal(back[1].sign(), rows[1].sign())


def test_bytes_are_those_of_codes_and_scales():
    int8 = Int8KVCache(**SIZES, dtype=torch.bfloat16)
    plain = KVCache(**SIZES, dtype=torch.bfloat16)
    assert int8.bytes_per_slot / plain.bytes_per_slot == (4 + 2) / (2 * 4)
    assert int8.storage_bytes == 8 * int8.bytes_per_slot
    assert not int8.is_plain
    assert plain.is_plain


def test_rows_are_rounded_once_and_kept_by_an_eviction():
    cache = Int8KVCache(**SIZES, dtype=torch.float32)
    rows = torch.randn(3, 5, 4)
    for layer in range(2):
        keys, values = cache.write(layer, rows, -rows)
    cache.advance(5)
    assert torch.equal(keys, dequantize_rows(quantize_rows(rows), torch.float32))
    assert torch.equal(values, -keys)
    cache.evict(torch.tensor([1, 4]).expand(2, 3, 2), spare=1)
    assert torch.equal(cache.in_use[0][1], keys[:, [1, 4]])
    assert cache.bytes_used == 2 * cache.bytes_per_slot


def test_a_model_reads_the_rounded_rows():
    """A forward over the int8 cache is one over a plain cache into which the rounded keys and values were put."""
    llama = tiny_target().llama
    ids = torch.tensor([5, 9, 200, 31, 31, 7])
    int8 = Int8KVCache(
        num_layers=TINY_SHAPE.num_layers,
        num_kv_heads=TINY_SHAPE.num_kv_heads,
        head_dim=TINY_SHAPE.head_dim,
        capacity=8,
        dtype=torch.float32,
        device="cpu",
    )
    llama.prefill(ids, int8)
    plain = llama.new_cache(8)
    llama.prefill(ids, plain)
    for part, rounded in zip(plain.in_use, int8.in_use, strict=True):
        part.copy_(rounded)
    ours = llama.forward(torch.tensor([3]), int8).logits
    # the new row itself is rounded as well, which the plain cache can't show: close, not equal
    torch.testing.assert_close(ours, llama.forward(torch.tensor([3]), plain).logits, atol=0.05, rtol=0.02)
    assert not torch.equal(ours, llama.forward(torch.tensor([3]), llama.new_cache(8)).logits)
