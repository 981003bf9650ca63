"""The fused engine against the plain one: the same tokens, caches and features; a CPU interprets the kernels."""

from __future__ import annotations

import gc

import pytest
import torch
from fakes import random_weights

from hambench.errors import ModelError
from hambench.fused import FusedLlama, Weight, accelerate
from hambench.llama import Llama, LlamaShape
from hambench.quantize import quantize_int8

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


def replayed(run):
    """A capture for a machine without graphs: runs once, as a capture would, and again at each replay."""
    run()
    return run


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
    ("impl", "capture", "num_tokens"),
    [("reference", None, 24), ("reference", replayed, 24), ("fused", replayed, 3)],
    ids=["reference", "reference-replayed", "fused-replayed"],
)
def test_a_fused_model_decodes_the_same_tokens(llama, impl, num_tokens, capture):
    prompt = list(range(1, 15))
    fused = FusedLlama(llama, impl=impl, capture=capture)
    assert greedy(fused, prompt, num_tokens) == greedy(llama, prompt, num_tokens)


@pytest.mark.parametrize("impl", ["reference", "fused"])
def test_every_output_of_a_short_forward_agrees(llama, impl, device):
    fused = FusedLlama(llama, impl=impl, capture=replayed)
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
    fused = FusedLlama(llama, impl="reference", capture=replayed)
    cache = fused.new_cache(30)
    fused.prefill(torch.arange(6, device=device), cache)
    want = fused.forward(torch.tensor([3], device=device), cache).logits
    cache.truncate(6)
    fused.forward(torch.tensor([9, 9, 9], device=device), cache, num_logits=None)
    cache.truncate(6)
    assert torch.equal(fused.forward(torch.tensor([3], device=device), cache).logits, want)


def test_what_a_forward_returned_is_not_overwritten_by_the_next(llama, device):
    fused = FusedLlama(llama, impl="reference", capture=replayed)
    cache = fused.new_cache(30)
    fused.prefill(torch.arange(10, device=device), cache)
    first = fused.forward(torch.tensor([3], device=device), cache, feature_layers=(0,))
    kept = [t.clone() for t in (first.logits, first.hidden, first.features)]
    fused.forward(torch.tensor([5], device=device), cache, feature_layers=(0,))
    assert all(
        torch.equal(a, b) for a, b in zip(kept, (first.logits, first.hidden, first.features), strict=True)
    )


def test_two_sessions_never_share_storage_and_a_finished_one_gives_its_back(llama):
    fused = FusedLlama(llama, impl="reference", capture=replayed)
    one, two = fused.new_cache(20), fused.new_cache(30)
    assert one.keys.data_ptr() != two.keys.data_ptr()
    storage = one.keys.data_ptr()
    del one
    gc.collect()
    three = fused.new_cache(25)
    assert three.keys.data_ptr() == storage
    assert three.slots == 0


def test_an_int8_draft_of_a_fused_model_has_its_own_weights_and_forwards(llama, device):
    fused = FusedLlama(llama, impl="reference", capture=replayed)
    prompt = list(range(1, 12))
    before = greedy(fused, prompt, 6)
    draft = quantize_int8(fused)
    assert greedy(draft, prompt, 6) == greedy(quantize_int8(llama), prompt, 6)
    assert draft._layers[0].qkv.matrix.dtype == torch.int8
    assert greedy(fused, prompt, 6) == before
    assert Weight.of(draft.head).matrix.dtype == torch.int8


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
    fused = FusedLlama(llama, impl="fused", capture=replayed)
    tokens = torch.tensor([3, 19, 7], device=device)
    together, stepwise = fused.new_cache(20), fused.new_cache(20)
    for cache in (together, stepwise):
        fused.prefill(torch.arange(12, device=device), cache)
    rows = fused.forward(tokens, together, num_logits=None).logits
    for i in range(3):
        assert torch.equal(fused.forward(tokens[i : i + 1], stepwise).logits[0], rows[i])
