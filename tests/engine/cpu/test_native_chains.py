"""Native chains that end where the model is no longer sure: one call, the tokens and lengths of a forward per token."""

import dataclasses
import math

import pytest
import torch
from fakes import TINY_SHAPE, random_weights

from hambench.engine.cpu.native_llama import NativeLlama
from hambench.engine.greedy import decode_while_sure, highest_probability
from hambench.engine.int8 import quantize_int8
from hambench.engine.llama import Llama
from hambench.engine.requests.rows import ChainStop, Ids
from hambench.errors import NotFiniteError

SHAPE = dataclasses.replace(TINY_SHAPE, vocab_size=2500, num_layers=2)
"""Its logits are weighed in three chunks, the last of which is not whole."""
MOST = 6
STOPS = [
    ChainStop(least, is_product)
    for is_product in (True, False)
    for least in (0.0, 0.02, 0.1, 0.3, 0.6, 0.9, 1.5)
]
STARTS = [[token] for token in range(20)] + [[3, 4], list(range(70))]
"""First inputs: the last are more rows than a native call takes."""


def weights_of(shape=SHAPE, *, sureness=3.0):
    weights = random_weights(shape)
    weights["model.norm.weight"] *= sureness
    return weights


def llama_of(weights=None, dtype=torch.float32):
    weights = weights_of() if weights is None else weights
    return Llama(SHAPE, {name: tensor.to(dtype) for name, tensor in weights.items()}, dtype)


@pytest.fixture(params=["avx512", "avx2", "portable"])
def instruction_set(request, library):
    if request.param not in library.instruction_sets():
        pytest.skip(f"this machine has no {request.param}")
    return request.param


@pytest.fixture(scope="module")
def llama():
    return llama_of()


def chains_of(decode, model):
    """Tokens of each chain and the slots it leaves."""
    chains = []
    for start in STARTS:
        for stop in STOPS:
            cache = model.new_cache(80)
            chains.append((decode(start, cache, MOST, stop=stop), cache.slots))
    return chains


@pytest.fixture(scope="module")
def expected(llama):
    chains = chains_of(llama.decode_greedily, llama)
    # every length must come, or equal lengths would prove little
    assert {len(tokens) for tokens, _ in chains} == set(range(1, MOST + 1))
    return chains


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_chain_ends_where_a_forward_per_token_ends_it(
    threads, instruction_set, library, llama, expected, monkeypatch
):
    monkeypatch.setattr(NativeLlama, "threads", threads)
    native = NativeLlama(llama, library, instruction_set=instruction_set)
    assert chains_of(native.decode_greedily, native) == expected


def test_the_reference_chain_has_the_rule_of_the_draft(llama, expected):
    chains = iter(expected)
    for start in STARTS:
        for stop in STOPS:
            cache, tokens, drafted, likely = llama.new_cache(80), start, [], 1.0
            while len(drafted) < MOST and (not drafted or likely >= stop.least):
                logits = llama.forward(torch.tensor(tokens), cache).logits
                highest = float(logits[-1].softmax(-1).max())
                likely = likely * highest if stop.is_product else highest
                tokens = [int(logits[-1].argmax())]
                drafted += tokens
            assert next(chains) == (drafted, cache.slots)


def test_a_stop_of_nothing_drafts_all_and_one_above_certainty_one(library, llama):
    native = NativeLlama(llama, library)
    for is_product in (True, False):
        plain = native.decode_greedily([5], native.new_cache(20), MOST)
        for least, length in ((0.0, MOST), (1.5, 1), (math.inf, 1)):
            cache = native.new_cache(20)
            tokens = native.decode_greedily([5], cache, MOST, stop=ChainStop(least, is_product))
            assert tokens == plain[:length]
            assert cache.slots == length
        assert native.decode_greedily([5], cache, 0, stop=ChainStop(0.0, is_product)) == []
        assert cache.slots == 1


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_chains_of_other_weights_end_where_their_own_logits_say(kind, instruction_set, library):
    native = NativeLlama(llama_of(dtype=torch.bfloat16), library, instruction_set=instruction_set)
    if kind == "int8":
        native = quantize_int8(native)

    def by_forwards(tokens, cache, num_tokens, *, stop):
        return decode_while_sure(native, tokens, cache, num_tokens, stop)

    assert chains_of(native.decode_greedily, native) == chains_of(by_forwards, native)


def probability(native, start):
    """How sure a native chain is of its first token, to the bit: the greatest bound with which it goes on."""
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        going = native.decode_greedily(start, native.new_cache(80), 2, stop=ChainStop(middle, False))
        low, high = (middle, high) if len(going) == 2 else (low, middle)
    return low


@pytest.mark.parametrize("sureness", [3.0, 0.1])
def test_a_probability_is_that_of_the_logits_and_its_bits_depend_on_nothing_else(
    sureness, instruction_set, library, several_threads, monkeypatch
):
    monkeypatch.setattr(NativeLlama, "threads", 1)
    llama = llama_of(weights_of(sureness=sureness))
    native = NativeLlama(llama, library, instruction_set=instruction_set)
    starts = STARTS[:8]
    sure = [probability(native, start) for start in starts]
    for start, own in zip(starts, sure, strict=True):
        logits = native.forward(torch.tensor(start), native.new_cache(80)).logits
        assert own == pytest.approx(highest_probability(logits.double()), rel=1e-5)
    for threads in (1, 2, 3):
        monkeypatch.setattr(NativeLlama, "threads", threads)
        for together in (1, 3, len(starts)):
            for most in range(0, len(starts), together):
                rows = list(zip(starts, sure, strict=True))[most : most + together]
                for bound, length in ((lambda own: own, 2), (lambda own: math.nextafter(own, 2.0), 1)):
                    chains = native.decode_greedily_together(
                        [Ids(s, native.new_cache(80), 2, ChainStop(bound(own), False)) for s, own in rows]
                    )
                    assert [len(chain) for chain in chains] == [length] * len(rows)


@pytest.mark.parametrize("threads", [1, 2])
def test_chains_side_by_side_are_those_of_single_calls(instruction_set, library, threads, monkeypatch):
    monkeypatch.setattr(NativeLlama, "threads", threads)
    target = NativeLlama(llama_of(dtype=torch.bfloat16), library, instruction_set=instruction_set)
    # ragged inputs and lengths; some end early, some have no stop, one asks for one token and one for nothing
    stops = [None, *STOPS]
    asked = [
        (start, (MOST, 3, MOST, 1, 5, MOST, 0)[i % 7], stops[4 * i % len(stops)])
        for i, start in enumerate(STARTS * 2)
    ]
    for model in (target, quantize_int8(target)):
        alone, shared = ([model.new_cache(80) for _ in asked] for _ in range(2))
        single = [
            model.decode_greedily(start, cache, most, stop=stop)
            for (start, most, stop), cache in zip(asked, alone, strict=True)
        ]
        together = model.decode_greedily_together(
            [Ids(start, cache, most, stop) for (start, most, stop), cache in zip(asked, shared, strict=True)]
        )
        assert together == single
        assert len({len(tokens) for tokens in single}) == MOST + 1
        for one, other in zip(alone, shared, strict=True):
            assert one.slots == other.slots
            assert torch.equal(one.keys[:, :, : one.slots], other.keys[:, :, : one.slots])
            assert torch.equal(one.values[:, :, : one.slots], other.values[:, :, : one.slots])


def test_chains_side_by_side_on_torch_are_those_of_single_calls(llama, expected):
    asked = [(start, stop) for start in STARTS for stop in STOPS]
    caches = [llama.new_cache(80) for _ in asked]
    together = llama.decode_greedily_together(
        [Ids(start, cache, MOST, stop) for (start, stop), cache in zip(asked, caches, strict=True)]
    )
    assert [(tokens, cache.slots) for tokens, cache in zip(together, caches, strict=True)] == expected


def test_ties_go_to_the_lowest_id_across_chunks(instruction_set, library, monkeypatch):
    monkeypatch.setattr(NativeLlama, "threads", 2)
    weights = weights_of()
    weights["lm_head.weight"][1250:] = weights["lm_head.weight"][:1250]
    native = NativeLlama(llama_of(weights), library, instruction_set=instruction_set)
    for start in ([1], [2], [3]):
        tokens = native.decode_greedily(start, native.new_cache(20), MOST, stop=ChainStop(0.0, True))
        assert tokens == native.decode_greedily(start, native.new_cache(20), MOST)
        assert max(tokens) < 1250
        # two equal tokens share the probability
        assert probability(native, start) <= 0.5


def test_a_chunk_of_tokens_that_can_never_come_weighs_nothing(instruction_set, library):
    weights = weights_of(sureness=8.0)
    # an input of the head that is always negative: times infinity it is minus infinity
    weights["model.embed_tokens.weight"][:, 3] = -20.0
    weights["lm_head.weight"][1024:2048] = 0.0
    weights["lm_head.weight"][:, 3] = 0.0
    weights["lm_head.weight"][1024:2048, 3] = math.inf
    llama = llama_of(weights)
    native = NativeLlama(llama, library, instruction_set=instruction_set)
    assert llama.forward(torch.tensor([1]), llama.new_cache(4)).logits[0, 1024:2048].isneginf().all()
    chains = chains_of(native.decode_greedily, native)
    assert chains == chains_of(llama.decode_greedily, llama)
    assert len({len(tokens) for tokens, _ in chains}) > 2


@pytest.mark.parametrize("damage", [math.nan, math.inf])
@pytest.mark.parametrize("token", [0, 1023, 1024, 2499])
def test_a_chain_over_logits_that_are_no_numbers_is_an_error(damage, token, instruction_set, library):
    weights = weights_of()
    # infinity times an input of either sign: one of two such tokens has it for its logit
    weights["lm_head.weight"][token, 3] = damage
    weights["lm_head.weight"][token - 1, 3] = -damage
    native = NativeLlama(llama_of(weights), library, instruction_set=instruction_set)
    for stop in (ChainStop(0.0, True), ChainStop(1.5, False)):
        with pytest.raises(NotFiniteError):
            native.decode_greedily([1], native.new_cache(8), 3, stop=stop)


@pytest.mark.parametrize("kind", ["native", "reference"])
def test_a_broken_chain_fails_alone_and_not_before_it_breaks(kind, library, llama):
    model = NativeLlama(llama, library) if kind == "native" else llama
    second = llama.decode_greedily([1], llama.new_cache(8), 2)[0]
    weights = weights_of()
    # the first token is fine, and the forward over it is not
    weights["model.embed_tokens.weight"][second] = math.nan
    broken = llama_of(weights)
    model = NativeLlama(broken, library) if kind == "native" else broken
    sure = ChainStop(0.0, True)
    assert model.decode_greedily([1], model.new_cache(8), 3, stop=ChainStop(1.5, True)) == [second]
    with pytest.raises(NotFiniteError):
        model.decode_greedily([1], model.new_cache(8), 3, stop=sure)
    other = next(
        [t] for t in range(2, 50) if second not in [t, *llama.decode_greedily([t], llama.new_cache(8), 3)]
    )
    failed, fine = model.decode_greedily_together(
        [Ids([1], model.new_cache(8), 3, sure), Ids(other, model.new_cache(8), 3, sure)]
    )
    assert isinstance(failed, NotFiniteError)
    assert fine == llama.decode_greedily(other, llama.new_cache(8), 3)
