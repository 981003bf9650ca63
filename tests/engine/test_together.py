"""Several sequences in one forward: on the native engine with the bits of single calls, on torch with their tokens."""

import pytest
import torch
from fakes import TINY_SHAPE, random_weights
from native_fixtures import library_under_test, need_compiler

from hambench.engine.cpu.native_llama import NativeLlama
from hambench.engine.int8 import quantize_int8
from hambench.engine.llama import Llama
from hambench.engine.requests.rows import Ids, Rows
from hambench.errors import NotFiniteError

LENGTHS = (1, 5, 2, 1, 8, 3)
"""Rows of the sequences: ragged."""
PASTS = (7, 130, 1, 300, 40, 129)
"""Slots in use before: within one chunk of attention and over several."""


def native(dtype=torch.bfloat16, instruction_set=None):
    need_compiler()
    return NativeLlama(reference(dtype), library_under_test(), instruction_set=instruction_set)


def reference(dtype=torch.float32):
    return Llama(TINY_SHAPE, random_weights(TINY_SHAPE), dtype)


def filled(model, past, seed):
    """A cache with so many slots of made-up keys and values, which are enough to attend to."""
    cache = model.new_cache(past + 64)
    ids = torch.randint(0, TINY_SHAPE.vocab_size, (past,), generator=torch.Generator().manual_seed(seed))
    model.prefill(ids, cache)
    return cache


def sequences(model):
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randint(0, TINY_SHAPE.vocab_size, (length,), generator=generator), filled(model, past, seed))
        for seed, (length, past) in enumerate(zip(LENGTHS, PASTS, strict=True))
    ]


@pytest.fixture(params=["portable", "avx2", "avx512"])
def instruction_set(request):
    need_compiler()
    if request.param not in library_under_test().instruction_sets():
        pytest.skip(f"this machine does not run {request.param}")
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_shared_native_forward_has_the_bits_of_single_ones(dtype, instruction_set, threads, monkeypatch):
    model = native(dtype, instruction_set)
    monkeypatch.setattr(NativeLlama, "threads", threads)
    alone = [
        model.forward(ids, cache, num_logits=2, feature_layers=(0, 1)) for ids, cache in sequences(model)
    ]
    pairs = sequences(model)
    shared = model.forward_together(
        [Rows(ids, cache, num_logits=2) for ids, cache in pairs], feature_layers=(0, 1)
    )
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert torch.equal(one.hidden, other.hidden)
        assert torch.equal(one.features, other.features)
    again = sequences(model)
    for (ids, cache), (_, used) in zip(again, pairs, strict=True):
        model.forward(ids, cache)
        assert cache.slots == used.slots
        assert torch.equal(cache.keys[:, :, : cache.slots], used.keys[:, :, : cache.slots])
        assert torch.equal(cache.values[:, :, : cache.slots], used.values[:, :, : cache.slots])


@pytest.mark.parametrize("threads", [1, 2])
def test_shared_native_greedy_calls_and_chains_are_those_of_single_ones(
    instruction_set, threads, monkeypatch
):
    target = native(torch.bfloat16, instruction_set)
    monkeypatch.setattr(NativeLlama, "threads", threads)
    for model in (target, quantize_int8(target)):
        alone = [model.greedy(ids.tolist(), cache, num_tokens=len(ids)) for ids, cache in sequences(model)]
        pairs = sequences(model)
        assert alone == model.greedy_together([Ids(ids.tolist(), cache, len(ids)) for ids, cache in pairs])
        # chains of other lengths, one of them of nothing
        chains = (3, 0, 7, 1, 2, 3)
        single = [
            model.decode_greedily(ids.tolist(), cache, num)
            for (ids, cache), num in zip(sequences(model), chains, strict=True)
        ]
        pairs = sequences(model)
        shared = model.decode_greedily_together(
            [Ids(ids.tolist(), cache, num) for (ids, cache), num in zip(pairs, chains, strict=True)]
        )
        assert [list(tokens) for tokens in shared] == single
        for (ids, cache), past, num in zip(pairs, PASTS, chains, strict=True):
            assert cache.slots == (past + len(ids) + num - 1 if num else past)


def test_more_rows_than_a_native_call_takes_are_several_calls_with_the_same_bits():
    model = native()
    lengths = (40, 30, 1, 80, 20)
    ids = [torch.arange(length) * 7 % TINY_SHAPE.vocab_size for length in lengths]
    big = [[model.new_cache(200) for _ in lengths] for _ in range(2)]
    alone = [model.forward(each, cache, num_logits=1) for each, cache in zip(ids, big[0], strict=True)]
    shared = model.forward_together([Rows(each, cache) for each, cache in zip(ids, big[1], strict=True)])
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.logits, other.logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_shared_forward_on_torch_is_each_sequences_own(dtype):
    model = reference(dtype)
    alone = [
        model.forward(ids, cache, num_logits=None, feature_layers=(1,)) for ids, cache in sequences(model)
    ]
    shared = model.forward_together(
        [Rows(ids, cache, num_logits=None) for ids, cache in sequences(model)], feature_layers=(1,)
    )
    near = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 5e-2, "atol": 5e-2}
    for one, other in zip(alone, shared, strict=True):
        torch.testing.assert_close(one.logits, other.logits, **near)
        torch.testing.assert_close(one.hidden, other.hidden, **near)
        torch.testing.assert_close(one.features, other.features, **near)


def test_shared_chains_on_torch_have_the_tokens_of_single_ones():
    model = reference()
    chains = (3, 0, 7, 1, 2, 3)
    single = [
        model.decode_greedily(ids.tolist(), cache, num)
        for (ids, cache), num in zip(sequences(model), chains, strict=True)
    ]
    shared = model.decode_greedily_together(
        [Ids(ids.tolist(), cache, num) for (ids, cache), num in zip(sequences(model), chains, strict=True)]
    )
    assert shared == single


@pytest.mark.parametrize("make", [native, reference], ids=["native", "reference"])
def test_positions_of_a_sequence_are_its_own(make):
    model = make()
    wanted = torch.tensor([90, 200])
    own = [model.forward(torch.tensor([3, 4]), filled(model, 9, 1), positions=wanted)]
    own.append(model.forward(torch.tensor([5]), filled(model, 2, 2)))
    shared = model.forward_together(
        [
            Rows(torch.tensor([3, 4]), filled(model, 9, 1), positions=wanted),
            Rows(torch.tensor([5]), filled(model, 2, 2)),
        ]
    )
    for one, other in zip(own, shared, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [native, reference], ids=["native", "reference"])
def test_a_sequence_whose_logits_are_no_numbers_is_the_only_one_that_fails(make):
    model = make()
    caches = [filled(model, 5, seed) for seed in range(3)]
    caches[1].values[:, :, 0] = torch.nan
    good = [model.greedy([1], filled(model, 5, seed)) for seed in (0, 2)]
    first, broken, last = model.greedy_together([Ids([1], cache, 1) for cache in caches])
    assert [first, last] == good
    assert isinstance(broken, NotFiniteError)
    caches = [filled(model, 5, seed) for seed in range(3)]
    caches[1].values[:, :, 0] = torch.nan
    chains = model.decode_greedily_together([Ids([1], cache, 4) for cache in caches])
    assert isinstance(chains[1], NotFiniteError)
    assert chains[0] == model.decode_greedily([1], filled(model, 5, 0), 4)
