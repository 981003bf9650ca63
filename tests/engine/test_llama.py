"""The lean forward pass against transformers', in float32 on small random models."""

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from hambench.engine.attention import LEAST_LONG
from hambench.engine.int8 import quantize_int8
from hambench.engine.llama import DecoderStack, Llama
from hambench.engine.shape import LlamaShape
from hambench.errors import ContextOverflowError, ModelError

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS = {
    "llama-gqa": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama-tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama-mha": LlamaConfig(**{**SIZES, "num_key_value_heads": 6}, tie_word_embeddings=False),
    "llama-mqa-wide-heads": LlamaConfig(**{**SIZES, "num_key_value_heads": 1}, head_dim=16),
    "llama3-rope": LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE),
    "linear-rope": LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2-bias": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3-qk-norm": Qwen3Config(**SIZES, head_dim=12),
}
TOLERANCE = 1e-4


def pair(config, seed=0):
    torch.manual_seed(seed)
    reference = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        # norms and biases start as ones and zeros, under which a swapped or forgotten one would not show
        for name, parameter in reference.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return reference, Llama(LlamaShape.from_hf(config), reference.state_dict(), torch.float32)


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def models(request):
    return pair(CONFIGS[request.param])


@pytest.fixture(scope="module")
def llama():
    return pair(CONFIGS["llama-gqa"])[1]


def ids_of(length, seed=1):
    return torch.randint(97, (length,), generator=torch.Generator().manual_seed(seed))


def close(a, b, tolerance=TOLERANCE):
    assert a.shape == b.shape
    assert (a - b).abs().max() < tolerance


@torch.no_grad()
def test_logits_and_features_equal_transformers(models):
    reference, llama = models
    ids = ids_of(40)
    expected = reference(ids[None], output_hidden_states=True)
    assert expected.logits.std() > 0.1  # equal because nearly zero would prove nothing
    out = llama.forward(ids, llama.new_cache(40), num_logits=None, feature_layers=(2, 0))
    close(out.logits, expected.logits[0])
    close(out.features[1], expected.hidden_states[1][0])
    close(out.features[0], expected.hidden_states[3][0])
    close(out.hidden, expected.hidden_states[-1][0])


@torch.no_grad()
def test_one_row_at_a_time_equals_transformers(models):
    reference, llama = models
    ids = ids_of(12)
    cache = llama.new_cache(12)
    rows = [llama.forward(one[None], cache).logits for one in ids]
    close(torch.cat(rows), reference(ids[None]).logits[0])


@torch.no_grad()
def test_explicit_positions_turn_what_they_say_while_slots_stay_dense(models):
    reference, llama = models
    ids, positions = ids_of(20), torch.arange(20) * 3 + 5
    expected = reference(ids[None], position_ids=positions[None]).logits[0]
    cache = llama.new_cache(20)
    # the second forward has a past, whose slots are not its positions
    first = llama.forward(ids[:9], cache, positions=positions[:9], num_logits=None)
    second = llama.forward(ids[9:], cache, positions=positions[9:], num_logits=None)
    close(torch.cat([first.logits, second.logits]), expected)
    assert cache.slots == 20


def test_prefill_in_chunks_equals_one_forward(llama, monkeypatch):
    monkeypatch.setattr(llama, "prefill_chunk", 150)
    ids = ids_of(2 * 150 + 17)
    chunked = llama.prefill(ids, cache := llama.new_cache(600), feature_layers=(1,))
    whole = llama.forward(ids, llama.new_cache(600), feature_layers=(1,))
    assert cache.slots == len(ids)
    close(chunked.logits, whole.logits)
    close(chunked.hidden, whole.hidden[-1:])
    close(chunked.features, whole.features[:, -1:])


@pytest.mark.parametrize("past", [0, 7])
@pytest.mark.parametrize(("num_rows", "keep"), [(40, 1), (40, 5), (200, 2), (200, 40), (200, 150)])
def test_rows_that_are_kept_see_what_they_see_among_all(llama, num_rows, keep, past):
    """The mask of all rows was for them: where all needed none, several kept rows saw the slots behind them."""
    ids = ids_of(past + num_rows)

    def last(keep):
        cache = llama.new_cache(len(ids))
        if past:
            llama.forward(ids[:past], cache)
        hidden, _ = llama.stack.forward(llama.embed(ids[past:]), cache, keep=keep)
        return hidden

    kept = last(keep)
    assert kept.shape[0] == keep
    close(kept, last(None)[num_rows - keep :])


@torch.no_grad()
def test_a_wide_chunk_behind_a_past_equals_transformers(models):
    reference, llama = models
    ids, past = ids_of(3 * LEAST_LONG), LEAST_LONG // 2
    expected = reference(ids[None]).logits[0]
    cache = llama.new_cache(len(ids))
    parts = [llama.forward(part, cache, num_logits=None).logits for part in (ids[:past], ids[past:])]
    close(torch.cat(parts), expected)


@pytest.mark.parametrize("widths", [(5, 3, 1, 7), (1, 15), (15, 1), (2,) * 8])
def test_any_split_into_rows_gives_the_same_logits(llama, widths):
    ids = ids_of(16)
    whole = llama.forward(ids, llama.new_cache(16), num_logits=None).logits
    cache = llama.new_cache(16)
    parts = [llama.forward(part, cache, num_logits=None).logits for part in ids.split(widths)]
    close(torch.cat(parts), whole)


def test_rolling_back_and_going_on_equals_a_fresh_cache(llama):
    kept, wrong, right = ids_of(10), ids_of(6, seed=2), ids_of(4, seed=3)
    cache = llama.new_cache(32)
    llama.forward(kept, cache)
    llama.forward(wrong, cache)
    cache.truncate(len(kept))
    resumed = llama.forward(right, cache, num_logits=None).logits
    fresh = llama.forward(torch.cat([kept, right]), llama.new_cache(32), num_logits=len(right)).logits
    close(resumed, fresh)


def test_embeddings_in_equal_ids_in(llama):
    ids = ids_of(9)
    by_id = llama.forward(ids, llama.new_cache(9), num_logits=None).logits
    by_row = llama.forward(llama.embed(ids), llama.new_cache(9), num_logits=None).logits
    assert torch.equal(by_id, by_row)


def test_only_the_logits_asked_for_are_computed(llama):
    ids = ids_of(5)
    every = llama.forward(ids, llama.new_cache(5), num_logits=None).logits
    assert llama.forward(ids, llama.new_cache(5), num_logits=0).logits.shape == (0, 97)
    close(llama.forward(ids, llama.new_cache(5), num_logits=2).logits, every[-2:])


def test_two_sequences_in_turn_equal_one_after_the_other(llama):
    a, b = ids_of(8), ids_of(8, seed=4)
    alone = [llama.forward(ids, llama.new_cache(8), num_logits=None).logits for ids in (a, b)]
    caches = llama.new_cache(8), llama.new_cache(8)
    turns: list[list[torch.Tensor]] = [[], []]
    for i in range(8):
        for side, ids in enumerate((a, b)):
            turns[side].append(llama.forward(ids[i : i + 1], caches[side]).logits)
    for side in (0, 1):
        close(torch.cat(turns[side]), alone[side])


def test_a_stack_of_the_last_layers_continues_the_first(llama):
    ids = ids_of(6)
    whole = llama.forward(ids, llama.new_cache(6), feature_layers=(0, 2))
    weights = [llama.stack.layers[i] for i in (1, 2)]
    tail = DecoderStack(llama.shape, [], dtype=torch.float32, device="cpu")
    tail.layers, tail.shape = weights, llama.stack.shape
    stream, _ = tail.forward(whole.features[0], tail.new_cache(6))
    close(llama.norm(stream), whole.hidden)


def test_more_rows_than_the_cache_holds_is_an_error_that_changes_nothing(llama):
    cache = llama.new_cache(4)
    llama.forward(ids_of(3), cache)
    with pytest.raises(ContextOverflowError, match="holds 4 slots, 5 are needed"):
        llama.forward(ids_of(2), cache)
    assert cache.slots == 3


def test_an_empty_prompt_is_refused(llama):
    with pytest.raises(ValueError, match="at least one token"):
        llama.prefill(torch.empty(0, dtype=torch.int64), llama.new_cache(1))


def test_a_missing_tensor_is_named():
    reference, _ = pair(CONFIGS["llama-gqa"])
    weights = dict(reference.state_dict())
    del weights["model.layers.1.mlp.down_proj.weight"]
    with pytest.raises(ModelError, match=r"layer 1 .* 'mlp\.down_proj\.weight'"):
        Llama(LlamaShape.from_hf(CONFIGS["llama-gqa"]), weights)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (MistralConfig(**SIZES, sliding_window=16), "sliding-window"),
        (LlamaConfig(**SIZES, attention_bias=True), "attention bias"),
        (LlamaConfig(**SIZES, mlp_bias=True), "MLP bias"),
        (LlamaConfig(**SIZES, hidden_act="gelu"), "gelu"),
        (
            LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            "dynamic",
        ),
    ],
    ids=["window", "attention-bias", "mlp-bias", "activation", "rope"],
)
def test_what_the_forward_pass_lacks_is_refused_by_name(config, named):
    with pytest.raises(ModelError, match=named):
        LlamaShape.from_hf(config)


def test_bytes_of_a_step_count_the_head_once_and_an_untied_embedding_not_at_all(llama):
    reference, _ = pair(CONFIGS["llama-gqa"])
    everything = sum(p.nbytes for p in reference.parameters())
    assert llama.weight_bytes == everything - reference.model.embed_tokens.weight.nbytes


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_no_further_from_float32_than_transformers_is(dtype):
    reference, llama = pair(CONFIGS["qwen2-bias"])
    low = Llama(llama.shape, reference.state_dict(), dtype)
    ids = ids_of(30)
    exact = llama.forward(ids, llama.new_cache(30), num_logits=None).logits
    ours = low.forward(ids, low.new_cache(30), num_logits=None).logits
    theirs = reference.to(dtype)(ids[None]).logits[0].float()
    # two roundings of the same thing differ by chance as well
    assert 0 < (ours - exact).norm() < 1.3 * (theirs - exact).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_int8_copy_stays_near_its_original_and_leaves_it_alone(dtype):
    reference, _ = pair(CONFIGS["qwen2-bias"])
    llama = Llama(LlamaShape.from_hf(CONFIGS["qwen2-bias"]), reference.state_dict(), dtype)
    ids = ids_of(30)
    before = llama.forward(ids, llama.new_cache(30), num_logits=None).logits
    draft = quantize_int8(llama)
    coarse = draft.forward(ids, draft.new_cache(30), num_logits=None).logits
    assert torch.equal(llama.forward(ids, llama.new_cache(30), num_logits=None).logits, before)
    error = (coarse - before).norm() / before.norm()
    assert 0 < error < 0.1
    assert draft.weight_bytes < llama.weight_bytes
