"""The native kernels over an int8 cache: torch's rows and numbers, and a row's bits whatever rows are next to it."""

import dataclasses

import pytest
import torch
from fakes import TINY_SHAPE, random_weights

from hambench.engine.cpu.native_llama import NativeLlama
from hambench.engine.kvcache import Int8KVCache
from hambench.engine.llama import Llama
from hambench.engine.requests.rows import Rows
from hambench.kernels.cpu.model import CachePart

SETS = ["portable", "avx2", "avx512"]
SHAPES = {
    "llama": TINY_SHAPE,
    "nothing divides 16": dataclasses.replace(
        TINY_SHAPE,
        hidden_size=34,
        intermediate_size=50,
        num_heads=3,
        num_kv_heads=1,
        head_dim=10,
        vocab_size=97,
    ),
}
shapes = pytest.mark.parametrize("name", SHAPES)


def plain(shape, dtype=torch.float32):
    return Llama(shape, random_weights(shape), dtype)


def native_of(llama, library, instruction_set=None):
    return NativeLlama(llama, library, instruction_set=instruction_set)


def ids_of(count, vocab=97, seed=1):
    return torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=SETS)
def instruction_set(request, library):
    if request.param not in library.instruction_sets():
        pytest.skip(f"this machine has no {request.param}")
    return request.param


def new_cache(llama, capacity):
    return llama.stack.new_cache(capacity, kind=Int8KVCache)


def rows_of(native, ids, sizes):
    cache = new_cache(native.reference, 400)
    cache.keys.zero_()
    cache.values.zero_()
    parts = [native.forward(part, cache, num_logits=None).logits for part in torch.split(ids, list(sizes))]
    return torch.cat(parts), cache


@shapes
def test_rows_and_logits_are_those_of_torch(name, instruction_set, library):
    llama = plain(SHAPES[name])
    native = native_of(llama, library, instruction_set)
    ids = ids_of(200)
    expected_cache, cache = new_cache(llama, 210), new_cache(llama, 210)
    for chunk in torch.split(ids, 25):
        expected = llama.forward(chunk, expected_cache, num_logits=None).logits
        ours = native.forward(chunk, cache, num_logits=None).logits
        # a code that falls on the other side of a half differs by one step
        torch.testing.assert_close(ours, expected, atol=0.02, rtol=0.02)
    codes, expected_codes = (
        c.rows_in_use[0][..., :-2].view(torch.int8).int() for c in (cache, expected_cache)
    )
    assert (codes - expected_codes).abs().max() <= 1
    assert (codes == expected_codes).float().mean() > 0.99
    scales, expected_scales = (
        c.rows_in_use[1][..., -2:].view(torch.bfloat16).float() for c in (cache, expected_cache)
    )
    torch.testing.assert_close(scales, expected_scales, rtol=2**-7, atol=0)


@shapes
@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_has_the_same_bits_whatever_rows_are_next_to_it(
    name, threads, instruction_set, library, monkeypatch
):
    monkeypatch.setattr(NativeLlama, "threads", threads)
    native = native_of(plain(SHAPES[name], torch.bfloat16), library, instruction_set)
    ids = ids_of(150)
    single, single_cache = rows_of(native, ids, [1] * len(ids))
    for size in (2, 5, 16, 64):
        sizes = [size] * (len(ids) // size) + ([len(ids) % size] if len(ids) % size else [])
        several, cache = rows_of(native, ids, sizes)
        assert torch.equal(several, single), f"{size} rows"
        assert torch.equal(cache.keys, single_cache.keys)
        assert torch.equal(cache.values, single_cache.values)


def test_sequences_with_caches_of_both_kinds_share_a_forward(instruction_set, library, monkeypatch):
    monkeypatch.setattr(NativeLlama, "threads", 2)
    native = native_of(plain(SHAPES["llama"], torch.bfloat16), library, instruction_set)
    makes = [lambda: new_cache(native.reference, 40), lambda: native.new_cache(40)] * 2
    ids = [ids_of(length, seed=length) for length in (3, 1, 2, 4)]

    def filled():
        caches = [make() for make in makes]
        for number, cache in enumerate(caches):
            native.forward(ids_of(9 + number, seed=number), cache)
        return caches

    alone = [native.forward(tokens, cache).logits for tokens, cache in zip(ids, filled(), strict=True)]
    shared = native.forward_together(
        [Rows(tokens, cache) for tokens, cache in zip(ids, filled(), strict=True)]
    )
    assert all(torch.equal(out.logits, single) for out, single in zip(shared, alone, strict=True))


def test_a_chain_over_an_int8_cache_equals_one_call_per_token(instruction_set, library):
    native = native_of(plain(SHAPES["llama"], torch.bfloat16), library, instruction_set)
    one, other = new_cache(native.reference, 60), new_cache(native.reference, 60)
    native.reference.prefill(ids_of(20), one)
    native.reference.prefill(ids_of(20), other)
    chained = native.decode_greedily([3], one, 12)
    single, token = [], 3
    for _ in range(12):
        (token,) = native.greedy([token], other)
        single.append(token)
    assert chained == single
    assert torch.equal(one.rows_in_use[0], other.rows_in_use[0][:, :, : one.slots])


def test_bytes_that_don_t_fit_are_refused(library):
    native = native_of(plain(SHAPES["llama"]), library)
    head_dim = native.shape.head_dim
    wrong = torch.zeros(native.shape.num_layers, native.shape.num_kv_heads, 8, head_dim, dtype=torch.uint8)
    with pytest.raises(ValueError, match="keys"):
        native.native.forward(
            torch.tensor([1]),
            [CachePart(wrong, wrong.clone(), 0, 1)],
            positions=[0],
            threads=1,
            instruction_set=native.instruction_set,
        )
