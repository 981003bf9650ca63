"""What a checkpoint holds against what its config says: nothing vital is left out, nothing is misread."""

import dataclasses
import json

import pytest
import torch
from fakes import TINY_SHAPE, save_tiny_model
from safetensors.torch import load_file, save_file

from hambench.errors import ModelError
from hambench.models.target import load

IDS = torch.arange(1, 9)


@pytest.fixture
def folder(tmp_path):
    return save_tiny_model(tmp_path / "tiny", TINY_SHAPE)


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(dict(weights)) or weights, folder / "model.safetensors")


def loaded(folder):
    return load(str(folder), dtype="float32", device="cpu")


def logits(model):
    return model.llama.prefill(IDS, model.llama.new_cache(16)).logits[-1]


def as_transformers(folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(IDS[None]).logits[0, -1]


def test_a_stored_head_is_used_whatever_the_config_says(folder):
    change_config(folder, tie_word_embeddings=True)
    model = loaded(folder)
    assert torch.allclose(logits(model), as_transformers(folder), atol=1e-4)
    assert "the stored head is used" in model.identity.note
    assert not model.llama.shape.tie_embeddings


def test_a_head_stored_twice_is_a_tied_one(tmp_path):
    folder = save_tiny_model(tmp_path / "tied", dataclasses.replace(TINY_SHAPE, tie_embeddings=True))
    plain = logits(loaded(folder))
    change_weights(
        folder, lambda weights: {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    )
    model = loaded(folder)
    assert torch.equal(logits(model), plain)
    assert model.llama.shape.tie_embeddings
    assert model.identity.note == ""


@pytest.mark.parametrize("where", ["config.json", "text_config"])
def test_a_quantised_config_is_refused_with_the_fix(folder, where):
    quantization = {"quant_method": "fp8"}
    change_config(
        folder,
        **(
            {"quantization_config": quantization}
            if where == "config.json"
            else {"text_config": {"quantization_config": quantization}}
        ),
    )
    with pytest.raises(ModelError, match=r"quantised .*fp8.*de-quantised copy"):
        loaded(folder)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8])
def test_weights_stored_as_codes_are_refused(folder, dtype):
    name = "model.layers.1.mlp.up_proj.weight"
    change_weights(folder, lambda weights: {**weights, name: weights[name].to(dtype)})
    with pytest.raises(ModelError, match=rf"quantised: {name} is stored as"):
        loaded(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.o_proj.bias",
        "model.layers.0.mlp.up_proj.weight_scale",
        "model.layers.4.input_layernorm.weight",
        "model.norm_f.weight",
    ],
)
def test_a_weight_of_the_decoder_that_nothing_reads_is_refused(folder, name):
    change_weights(folder, lambda weights: {**weights, name: torch.ones(64)})
    with pytest.raises(ModelError, match=f"hambench would not read: {name}"):
        loaded(folder)


def test_other_weights_that_nothing_reads_are_named(folder):
    plain = logits(loaded(folder))
    extra = {
        "value_head.weight": torch.ones(1),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
    }
    change_weights(folder, lambda weights: {**weights, **extra})
    model = loaded(folder)
    assert model.identity.note == "unread weights: value_head.weight"
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vocab_size": 300}, r"weight has the size \[260, 64\], but config.json says \[300, 64\]"),
        ({"intermediate_size": 64}, "has the size"),
        ({"num_hidden_layers": 5}, "says 5 layers, but the weights have 4"),
        ({"num_hidden_layers": 10**9}, "layers, but the weights have 4"),
        ({"num_hidden_layers": 3}, "hambench would not read"),
        ({"num_attention_heads": 3}, "head"),
        ({"head_dim": 15}, "head_dim|rope"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ],
)
def test_a_config_of_other_sizes_is_refused(folder, changes, reason):
    change_config(folder, **changes)
    with pytest.raises(ModelError, match=reason):
        loaded(folder)


def test_rope_that_stretches_further_than_the_config_counts_is_said(folder):
    change_config(folder, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4})
    model = loaded(folder)
    assert model.context_length == 512
    assert "context of 512 positions" in model.identity.note
    assert "not the 2048 of RoPE scaling 'linear'" in model.identity.note


def test_yarn_that_stretches_further_than_the_config_counts_is_said(folder):
    change_config(folder, rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4})
    model = loaded(folder)
    assert model.context_length == 512
    assert "not the 2048 of RoPE scaling 'yarn'" in model.identity.note


def gpt2(folder, **changes):
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=4, n_positions=64, **changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_an_adapted_model_lacks_no_weight(tmp_path):
    folder = gpt2(tmp_path / "gpt2")
    assert loaded(folder).context_length == 64
    name = "transformer.h.0.mlp.c_fc.weight"

    def rename(weights):
        weights["transformer.h.0.mlp.renamed"] = weights.pop(name)
        return weights

    change_weights(folder, rename)
    with pytest.raises(ModelError, match=f"lacks weights of its architecture: {name}"):
        loaded(folder)


def test_an_adapted_models_unread_weights_are_named(tmp_path):
    folder = gpt2(tmp_path / "gpt2")
    change_weights(folder, lambda weights: {**weights, "extra.bias": torch.ones(2)})
    assert "unread weights: extra.bias" in loaded(folder).identity.note


def test_an_adapted_model_of_another_size_is_one_line(tmp_path):
    folder = gpt2(tmp_path / "gpt2")
    change_config(folder, n_embd=64)
    with pytest.raises(ModelError, match="can't be loaded as a causal language model"):
        loaded(folder)


def test_a_model_that_says_no_positions_is_refused_with_the_fix(tmp_path):
    from transformers import AutoModelForCausalLM, BloomConfig

    folder = tmp_path / "bloom"
    config = BloomConfig(vocab_size=260, hidden_size=32, n_layer=2, n_head=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"add max_position_embeddings to config\.json"):
        loaded(folder)
    change_config(folder, max_position_embeddings=128)
    assert loaded(folder).context_length == 128


def test_the_bytes_of_a_compressed_cache_are_those_it_holds(tmp_path):
    from transformers import AutoModelForCausalLM, DeepseekV3Config

    sizes = {
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "n_routed_experts": 4,
    }
    heads = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16}
    experts = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
    config = DeepseekV3Config(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        v_head_dim=16,
        max_position_embeddings=512,
        **sizes,
        **heads,
        **experts,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mla")
    model = loaded(tmp_path / "mla").llama
    cache = model.new_cache(16)
    per_slot = cache.bytes_per_slot
    assert 0 < per_slot < 2 * 2 * 8 * 24 * 4
    for num_rows in (6, 4):
        model.forward(torch.arange(num_rows), cache)
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.inner.layers)
        assert cache.bytes_used == held == per_slot * cache.slots
    cache.truncate(3)
    assert cache.bytes_used == 3 * per_slot
