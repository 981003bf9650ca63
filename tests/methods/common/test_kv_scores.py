"""Scores of slots for eviction, against each rule written out, and against kvpress where that can be imported."""

import math

import pytest
import torch
from fakes import TINY_SHAPE, random_weights, save_tiny_model, tiny_target
from native_fixtures import need_compiler
from transformers import AutoModelForCausalLM

from hambench.engine.llama import Llama
from hambench.methods.common import kv_scores
from hambench.runner.backend import run_by

NUM_SLOTS = 150
TOKENS = [(7 * i + 3) % TINY_SHAPE.vocab_size for i in range(NUM_SLOTS)]  # each once: equal keys would tie


@pytest.fixture(scope="module", params=["reference", "native"])
def model(request):
    if request.param == "native":
        need_compiler()
    return run_by(tiny_target(), kernels=request.param).llama


@pytest.fixture
def cache(model):
    cache = model.new_cache(NUM_SLOTS + 8)
    model.prefill(torch.tensor(TOKENS), cache)
    return cache


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """The tiny model in transformers, with the attention that shows its weights."""
    folder = save_tiny_model(tmp_path_factory.mktemp("tiny"), TINY_SHAPE)
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.mark.parametrize(
    ("num_slots", "ratio", "kept"),
    [(100, 0.25, 75), (101, 0.5, 50), (3, 0.9, 1), (150, 0.9, 15), (1, 0.5, 1), (7, 0.0, 7)],
)
def test_the_number_of_kept_slots_is_rounded_down_and_never_zero(num_slots, ratio, kept):
    assert kv_scores.num_kept(num_slots, ratio) == kept


def test_the_highest_scores_are_kept_in_the_order_of_their_slots_and_of_equals_the_newest():
    scores = torch.tensor([[[3.0, 1.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]]])
    assert kv_scores.top_slots(scores, 3).tolist() == [[[0, 2, 4], [2, 3, 4]]]
    assert kv_scores.top_slots(scores, 1).tolist() == [[[4], [4]]]


def test_streaming_keeps_the_first_four_and_the_newest(cache):
    kept = kv_scores.top_slots(kv_scores.streaming(cache), 10)
    assert kept.shape[:2] == (TINY_SHAPE.num_layers, TINY_SHAPE.num_kv_heads)
    assert all(head == [0, 1, 2, 3, *range(NUM_SLOTS - 6, NUM_SLOTS)] for head in kept.flatten(0, 1).tolist())


def test_knorm_prefers_short_keys_and_keydiff_keys_unlike_the_others(cache):
    keys, _ = cache.in_use
    for layer in range(TINY_SHAPE.num_layers):
        for head in range(TINY_SHAPE.num_kv_heads):
            rows = keys[layer, head].double()
            units = rows / rows.norm(dim=-1, keepdim=True)
            mean = units.mean(0)
            cosine = (units @ mean) / mean.norm()
            torch.testing.assert_close(kv_scores.knorm(cache)[layer, head].double(), -rows.norm(dim=-1))
            torch.testing.assert_close(
                kv_scores.keydiff(cache)[layer, head].double(), -cosine, atol=1e-5, rtol=1e-5
            )


def test_random_scores_are_the_same_each_time_and_differ_by_head_and_length(cache):
    first = kv_scores.random(cache)
    assert torch.equal(first, kv_scores.random(cache))
    assert not torch.equal(first[0, 0], first[0, 1])
    cache.truncate(NUM_SLOTS - 1)
    assert not torch.equal(first[0, 0, :-1], kv_scores.random(cache)[0, 0])


def test_snapkv_averages_the_attention_that_transformers_itself_computes(model, cache, twin):
    before = [part.clone() for part in cache.in_use]
    window = kv_scores.WINDOW
    queries = kv_scores.newest_queries(model, cache, TOKENS[-window:])
    assert cache.slots == NUM_SLOTS
    assert all(torch.equal(part, saved) for part, saved in zip(cache.in_use, before, strict=True))
    with torch.no_grad():
        attentions = twin(torch.tensor([TOKENS]), output_attentions=True).attentions
    scores = kv_scores.snapkv(cache, queries)
    shared = TINY_SHAPE.num_heads // TINY_SHAPE.num_kv_heads
    for layer, weights in enumerate(attentions):
        seen = weights[0, :, -window:, :-window].mean(dim=1)
        padded = torch.nn.functional.pad(seen, (2, 2))
        pooled = torch.stack([padded[:, i : i + NUM_SLOTS - window] for i in range(5)]).mean(0)
        expected = pooled.view(TINY_SHAPE.num_kv_heads, shared, -1).mean(1)
        torch.testing.assert_close(scores[layer, :, :-window], expected, atol=1e-5, rtol=1e-4)
    # the window itself outranks every other slot
    kept = kv_scores.top_slots(scores, window + 5)
    assert torch.equal(kept[..., 5:], torch.arange(NUM_SLOTS - window, NUM_SLOTS).expand_as(kept[..., 5:]))


def test_snapkv_is_causal_within_its_window():
    """With keys of zeros every slot that a row sees gets the same weight, so each older slot gets the mean of 1/n."""
    target = tiny_target()
    weights = {name: tensor for name, tensor in random_weights(TINY_SHAPE).items()}
    target.llama = Llama(TINY_SHAPE, weights, torch.float32)
    cache = target.llama.new_cache(20)
    target.llama.prefill(torch.tensor(TOKENS[:20]), cache)
    cache.keys.zero_()
    queries = torch.ones(TINY_SHAPE.num_layers, TINY_SHAPE.num_heads, 4, TINY_SHAPE.head_dim)
    scores = kv_scores.snapkv(cache, queries)
    expected = sum(1 / seen for seen in (17, 18, 19, 20)) / 4
    assert math.isclose(scores[0, 0, 8].item(), expected, rel_tol=1e-5)


def test_kept_slots_are_those_of_kvpress(cache, model, twin):
    kvpress = pytest.importorskip(
        "kvpress",
        reason="kvpress pins an older transformers, so it is no extra: unpack its wheel (and cachetools) and put the "
        "folder on PYTHONPATH",
    )
    with torch.no_grad():
        states = twin(torch.tensor([TOKENS]), output_hidden_states=True).hidden_states
    positions = torch.arange(NUM_SLOTS)[None]
    rotation = twin.model.rotary_emb(states[0], positions)
    keys, values = cache.in_use
    queries = kv_scores.newest_queries(model, cache, TOKENS[-kv_scores.WINDOW :])
    ours = {
        "SnapKVPress": kv_scores.snapkv(cache, queries),
        "KeyDiffPress": kv_scores.keydiff(cache),
        "KnormPress": kv_scores.knorm(cache),
        "StreamingLLMPress": kv_scores.streaming(cache),
    }
    for name, scores in ours.items():
        for ratio in (0.25, 0.5):
            press = getattr(kvpress, name)(compression_ratio=ratio)
            num_kept = int(NUM_SLOTS * (1 - ratio))
            kept = kv_scores.top_slots(scores, num_kept)
            for layer, block in enumerate(twin.model.layers):
                hidden = block.input_layernorm(states[layer])
                theirs = press.score(
                    block.self_attn,
                    hidden,
                    keys[layer][None],
                    values[layer][None],
                    None,
                    {"position_embeddings": rotation},
                )
                chosen = theirs[0].topk(num_kept, dim=-1).indices.sort(-1).values
                assert torch.equal(kept[layer], chosen), (name, ratio, layer)
