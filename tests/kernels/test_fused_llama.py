"""The fused engine against the plain one: the same tokens, caches and features; a CPU interprets the kernels."""

from __future__ import annotations

import gc

import pytest
import torch
from fake_launches import Queued, Replayed
from fakes import random_weights

from hambench.engine.cuda.fused_layer import Weight
from hambench.engine.cuda.fused_llama import FusedLlama, accelerate
from hambench.engine.int8 import quantize_int8
from hambench.engine.llama import Llama
from hambench.engine.requests.rows import ChainStop
from hambench.engine.shape import LlamaShape
from hambench.errors import ModelError, NotFiniteError

SHAPE = LlamaShape(
    vocab_size=41,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    max_positions=512,
    tie_embeddings=False,
)


@pytest.fixture
def llama(device) -> Llama:
    return Llama(SHAPE, random_weights(SHAPE, seed=3), torch.float32, device)


def greedy(model: Llama, prompt: list[int], num_tokens: int) -> list[int]:
    cache = model.new_cache(len(prompt) + num_tokens)
    logits = model.prefill(torch.tensor(prompt, device=model.device), cache).logits
    tokens = []
    for _ in range(num_tokens):
        tokens.append(int(logits[-1].argmax()))
        logits = model.forward(torch.tensor(tokens[-1:], device=model.device), cache).logits
    return tokens


@pytest.mark.parametrize(
    ("impl", "launches", "num_tokens"),
    [("reference", None, 24), ("reference", Replayed(), 24), ("fused", Replayed(), 3)],
    ids=["reference", "reference-replayed", "fused-replayed"],
)
def test_a_fused_model_decodes_the_same_tokens(llama, impl, num_tokens, launches):
    prompt = list(range(1, 15))
    fused = FusedLlama(llama, impl=impl, launches=launches)
    assert greedy(fused, prompt, num_tokens) == greedy(llama, prompt, num_tokens)


@pytest.mark.parametrize("impl", ["reference", "fused"])
def test_every_output_of_a_short_forward_agrees(llama, impl, device):
    fused = FusedLlama(llama, impl=impl, launches=Replayed())
    outputs, caches = [], []
    for model in (llama, fused):
        cache = model.new_cache(40)
        model.prefill(torch.arange(10, device=device), cache)
        embeddings = model.embed(torch.tensor([4, 9, 2], device=device)) * 1.5
        positions = torch.tensor([12, 13, 20], device=device)
        model.forward(embeddings, cache, positions=positions, num_logits=0)
        outputs.append(
            model.forward(torch.tensor([7, 8], device=device), cache, num_logits=None, feature_layers=(0, 1))
        )
        caches.append(cache)
    for name in ("logits", "hidden", "features"):
        torch.testing.assert_close(
            getattr(outputs[0], name),
            getattr(outputs[1], name),
            rtol=1e-4,
            atol=1e-4,
            msg=lambda m, n=name: f"{n}: {m}",
        )
    assert caches[0].slots == caches[1].slots == 15
    torch.testing.assert_close(caches[0].keys[:, :, :15], caches[1].keys[:, :, :15], rtol=1e-4, atol=1e-5)


def test_a_rejected_draft_leaves_no_trace_in_a_replayed_forward(llama, device):
    fused = FusedLlama(llama, impl="reference", launches=Replayed())
    cache = fused.new_cache(30)
    fused.prefill(torch.arange(6, device=device), cache)
    want = fused.forward(torch.tensor([3], device=device), cache).logits
    cache.truncate(6)
    fused.forward(torch.tensor([9, 9, 9], device=device), cache, num_logits=None)
    cache.truncate(6)
    assert torch.equal(fused.forward(torch.tensor([3], device=device), cache).logits, want)


def test_what_a_forward_returned_is_not_overwritten_by_the_next(llama, device):
    fused = FusedLlama(llama, impl="reference", launches=Replayed())
    cache = fused.new_cache(30)
    fused.prefill(torch.arange(10, device=device), cache)
    first = fused.forward(torch.tensor([3], device=device), cache, feature_layers=(0,))
    kept = [t.clone() for t in (first.logits, first.hidden, first.features)]
    fused.forward(torch.tensor([5], device=device), cache, feature_layers=(0,))
    assert all(
        torch.equal(a, b) for a, b in zip(kept, (first.logits, first.hidden, first.features), strict=True)
    )


def test_two_sessions_never_share_storage_and_a_finished_one_gives_its_back(llama):
    fused = FusedLlama(llama, impl="reference", launches=Replayed())
    one, two = fused.new_cache(20), fused.new_cache(30)
    assert one.keys.data_ptr() != two.keys.data_ptr()
    storage = one.keys.data_ptr()
    del one
    gc.collect()
    three = fused.new_cache(25)
    assert three.keys.data_ptr() == storage
    assert three.slots == 0


def test_an_int8_draft_of_a_fused_model_has_its_own_weights_and_forwards(llama, device):
    fused = FusedLlama(llama, impl="reference", launches=Replayed())
    prompt = list(range(1, 12))
    before = greedy(fused, prompt, 6)
    draft = quantize_int8(fused)
    assert greedy(draft, prompt, 6) == greedy(quantize_int8(llama), prompt, 6)
    assert draft.layers[0].qkv.matrix.dtype == torch.int8
    assert greedy(fused, prompt, 6) == before
    assert Weight.of(draft.reference.head).matrix.dtype == torch.int8


def test_accelerate_gives_the_model_itself_or_says_what_is_missing(llama):
    assert accelerate(llama, regime="eager", kernels="reference") is llama
    if llama.device.type == "cpu":
        with pytest.raises(ModelError, match="needs a CUDA device, the model is on cpu"):
            accelerate(llama, regime="graph", kernels="fused")


def test_what_the_kernels_lack_is_refused(llama):
    llama.stack.layers[1].q_norm = llama.stack.layers[1].mlp_norm
    with pytest.raises(ModelError, match=r"no query and key norms \(Qwen3\): use --kernels reference"):
        FusedLlama(llama)


def test_a_verified_row_has_the_bits_of_the_step_it_verifies(llama, device):
    # this is what makes greedy speculation lossless in every dtype
    fused = FusedLlama(llama, impl="fused", launches=Replayed())
    tokens = torch.tensor([3, 19, 7], device=device)
    together, stepwise = fused.new_cache(20), fused.new_cache(20)
    for cache in (together, stepwise):
        fused.prefill(torch.arange(12, device=device), cache)
    rows = fused.forward(tokens, together, num_logits=None).logits
    for i in range(3):
        assert torch.equal(fused.forward(tokens[i : i + 1], stepwise).logits[0], rows[i])


@pytest.fixture(params=["reference", "fused", "reference, late device"])
def greedy_model(request, llama):
    impl, *late = request.param.split(", ")
    if impl == "fused":
        # interpreted kernels are slow: they run as they come, without a warm-up
        return FusedLlama(llama, impl=impl)
    return FusedLlama(llama, impl=impl, launches=Queued() if late else Replayed())


def test_greedy_calls_give_what_the_plain_ones_give(llama, greedy_model):
    prompt = list(range(1, 12))
    found = []
    for model in (llama, greedy_model):
        cache = model.new_cache(40)
        model.prefill(torch.tensor(prompt, device=llama.device), cache)
        chain = model.decode_greedily([7], cache, 3)
        verified = model.greedy([3, *chain], cache, num_tokens=4)
        cache.truncate(15)
        again = model.decode_greedily([5, 6], cache, 2)
        found.append((chain, verified, again, model.greedy(again[-1:], cache), cache.slots))
    assert found[0] == found[1]
    assert found[0][-1] == 19


@pytest.mark.parametrize(
    "call",
    [
        lambda model, cache: model.greedy([1, 2], cache),
        lambda model, cache: model.greedy([1, 2], cache, num_tokens=2),
        lambda model, cache: model.decode_greedily([1, 2], cache, 3),
        lambda model, cache: model.decode_greedily([1, 2], cache, 3, stop=ChainStop(0.0, True)),
    ],
    ids=["newest", "rows", "chain", "chain with a stop"],
)
def test_greedy_calls_on_logits_that_are_no_numbers_are_an_error(llama, greedy_model, call):
    cache = greedy_model.new_cache(16)
    with torch.inference_mode():
        greedy_model.norm.weight[0] = torch.nan
    with pytest.raises(NotFiniteError):
        call(greedy_model, cache)


@pytest.mark.parametrize("is_product", [True, False])
def test_a_chain_ends_where_the_plain_one_ends(llama, greedy_model, is_product):
    prompt = torch.arange(1, 12, device=llama.device)
    lengths = []
    for least in (0.0, 0.03, 0.1, 1.5):
        chains = []
        for model in (llama, greedy_model):
            cache = model.new_cache(40)
            model.prefill(prompt, cache)
            tokens = model.decode_greedily([7, 8], cache, 4, stop=ChainStop(least, is_product))
            assert cache.slots == 11 + 2 + len(tokens) - 1
            chains.append(tokens)
        assert chains[0] == chains[1]
        lengths.append(len(chains[0]))
    assert (lengths[0], lengths[-1]) == (4, 1)


def test_preparing_forwards_leaves_none_of_a_chain_with_a_stop_to_be_captured_later(llama):
    launches = Replayed()
    model = FusedLlama(llama, impl="reference", launches=launches)
    cache = model.new_cache(40)
    model.prepare_forward(cache, rows=(1, 2), num_logits=1)
    prepared = launches.num_captured
    for first in ([4, 5], [6]):
        model.decode_greedily(first, cache, 4, stop=ChainStop(0.0, True))
    assert launches.num_captured == prepared > 0


def test_preparing_greedy_forwards_leaves_none_to_be_captured_later(llama):
    launches = Replayed()
    model = FusedLlama(llama, impl="reference", launches=launches)
    cache = model.new_cache(40)
    model.prepare_greedy(cache, rows=[1, 2, 3], chain=4)
    model.prefill(torch.arange(1, 12, device=llama.device), cache)
    prepared = launches.num_captured
    model.greedy([1, 2, 3], cache, num_tokens=3)
    model.decode_greedily([4, 5], cache, 4)
    model.decode_greedily([6], cache, 2)
    assert launches.num_captured == prepared


def test_a_greedy_forward_captured_late_leaves_the_cache_as_it_was(llama):
    # a warm-up that wrote to slot 0 would change every later token
    model = FusedLlama(llama, impl="reference", launches=Replayed())
    prompt = torch.arange(1, 12, device=llama.device)
    cache, other = model.new_cache(40), llama.new_cache(40)
    model.prefill(prompt, cache)
    llama.prefill(prompt, other)
    model.greedy([7, 8], cache, num_tokens=2)
    llama.greedy([7, 8], other, num_tokens=2)
    torch.testing.assert_close(cache.keys[:, :, :13], other.keys[:, :, :13], rtol=1e-4, atol=1e-5)


def test_longer_greedy_calls_run_as_on_the_plain_model(llama, greedy_model):
    tokens = list(range(1, 11))
    caches = [m.new_cache(20) for m in (llama, greedy_model)]
    assert llama.greedy(tokens, caches[0], num_tokens=10) == greedy_model.greedy(
        tokens, caches[1], num_tokens=10
    )


def test_another_model_is_run_as_this_one_is(llama):
    fused = FusedLlama(llama, impl="reference", launches=Replayed())
    other = fused.with_same_backend(llama)
    assert (other.impl, other.launches) == ("reference", fused.launches)
    assert other.reference is llama
    assert llama.with_same_backend(llama) is llama
