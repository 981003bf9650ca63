"""Loading checkpoints: tiny folders written by transformers, and every way a folder can be wrong."""

import json

import pytest
import torch
from click.testing import CliRunner
from fakes import TINY_SHAPE, random_weights
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from hambench.cli.models import command
from hambench.engine.llama import Llama
from hambench.engine.transformers_adapter import TransformersAdapter
from hambench.errors import HambenchError, ModelError, UnknownNameError
from hambench.models import embedded
from hambench.models.target import load

LLAMA = LlamaConfig(
    vocab_size=260,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    tie_word_embeddings=False,
    eos_token_id=[7, 9],
    bos_token_id=1,
)
GPT2 = GPT2Config(
    vocab_size=90, n_embd=32, n_layer=2, n_head=4, n_positions=64, eos_token_id=3, bos_token_id=3
)


@pytest.fixture(autouse=True)
def _private(private_cache):
    """No test here sees or changes the user's cache."""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    save_file(random_weights(TINY_SHAPE), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA.to_dict()))
    return folder


@pytest.fixture
def gpt2_folder(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "gpt2"
    AutoModelForCausalLM.from_config(GPT2).save_pretrained(folder)
    return folder


def test_a_folder_without_tokenizer_loads_and_only_ids_go_in_and_out(folder):
    target = load(str(folder), dtype="float32")
    assert isinstance(target.llama, Llama)
    assert target.tokenizer is None
    assert target.eos_ids == {7, 9}
    assert target.context_length == 512
    logits = target.llama.prefill(torch.tensor([1, 2, 3]), target.llama.new_cache(3)).logits
    assert logits.shape == (1, 260)


def test_a_loaded_folder_computes_what_transformers_does(folder):
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    target = load(str(folder), dtype="float32")
    ids = torch.arange(20)
    with torch.no_grad():
        expected = reference(ids[None]).logits[0]
    got = target.llama.forward(ids, target.llama.new_cache(20), num_logits=None).logits
    assert (got - expected).abs().max() < 1e-4


def test_shards_are_read_through_the_index(folder):
    tensors = load_file(folder / "model.safetensors")
    whole = load(str(folder), dtype="float32")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard)
    (folder / "model.safetensors").unlink()
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sharded = load(str(folder), dtype="float32")
    ids = torch.arange(5)
    same = [t.llama.forward(ids, t.llama.new_cache(5)).logits for t in (whole, sharded)]
    assert torch.equal(*same)
    assert sharded.identity.sha256 != whole.identity.sha256


def test_the_identity_follows_the_weights(folder):
    first = load(str(folder)).identity
    assert first == load(str(folder)).identity
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, folder / "model.safetensors")
    assert load(str(folder)).identity.sha256 != first.sha256


def test_pickled_weights_are_refused_by_name(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights"):
        load(str(folder))


def test_a_missing_shard_is_named(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "b.safetensors"}}')
    with pytest.raises(ModelError, match=r"has no b\.safetensors"):
        load(str(folder))


def test_a_damaged_weight_file_is_named(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        load(str(folder))


@pytest.mark.parametrize("text", [None, "{", '{"model_type": "no-such-architecture"}'])
def test_an_unusable_config_is_one_clear_line(folder, text):
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json") as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)


def test_code_in_a_checkpoint_is_never_run(folder, tmp_path):
    marker = tmp_path / "ran"
    config = {**LLAMA.to_dict(), "model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: ...\n")
    with pytest.raises(ModelError):
        load(str(folder))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("smollm-135m", UnknownNameError, "did you mean smollm2-135m"),
        ("./no/such/folder", ModelError, "does not exist"),
        ("/no/such/folder", ModelError, "does not exist"),
    ],
)
def test_an_unknown_name_says_what_would_be_right(name, error, said):
    with pytest.raises(error, match=said):
        load(name)


def test_an_unreachable_hub_is_one_clear_line(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host\nand a long tail")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(
        ModelError, match=r"owner/name is neither a local folder nor downloadable .* no route to host$"
    ):
        load("owner/name")


def test_an_unknown_dtype_is_refused(folder):
    with pytest.raises(HambenchError, match="did you mean bfloat16"):
        load(str(folder), dtype="bfloat61")


def test_what_cells_share_is_made_once(folder):
    target, made = load(str(folder)), []
    values = [target.shared("draft", lambda: made.append(1) or "draft") for _ in range(2)]
    assert values == ["draft", "draft"]
    assert len(made) == 1


def test_another_architecture_runs_through_the_adapter_and_says_so(gpt2_folder):
    target = load(str(gpt2_folder), dtype="float32")
    assert isinstance(target.llama, TransformersAdapter)
    assert "transformers adapter (slower)" in target.identity.note
    assert target.context_length == 64
    assert target.eos_ids == {3}


@torch.no_grad()
def test_the_adapter_keeps_the_laws_of_the_engine(gpt2_folder):
    reference = AutoModelForCausalLM.from_pretrained(gpt2_folder, dtype=torch.float32).eval()
    llama = load(str(gpt2_folder), dtype="float32").llama
    ids = torch.arange(20)
    expected = reference(ids[None], output_hidden_states=True)
    whole = llama.forward(ids, llama.new_cache(20), num_logits=None, feature_layers=(0, 1))
    assert (whole.logits - expected.logits[0]).abs().max() < 1e-4
    assert torch.allclose(whole.features[0], expected.hidden_states[1][0], atol=1e-5)
    assert torch.allclose(whole.features[1], whole.hidden)
    assert torch.allclose(llama.lm_head(whole.hidden), whole.logits, atol=1e-5)

    cache = llama.new_cache(20)
    llama.forward(ids[:8], cache, num_logits=0)
    llama.forward(ids[:5], cache)  # a guess that is taken back
    cache.truncate(8)
    resumed = llama.forward(ids[8:], cache, num_logits=None).logits
    assert torch.allclose(resumed, whole.logits[8:], atol=1e-4)
    assert cache.slots == 20
    assert cache.bytes_used == 20 * cache.bytes_per_slot == 20 * 2 * 2 * 32 * 4
    with pytest.raises(HambenchError, match="holds 20 slots, 21 are needed"):
        llama.forward(ids[:1], cache)

    by_row = llama.forward(llama.embed(ids), llama.new_cache(20), num_logits=None).logits
    assert torch.allclose(by_row, whole.logits, atol=1e-5)
    jumps = torch.arange(20) * 3
    turned = reference(ids[None], position_ids=jumps[None]).logits[0]
    assert torch.allclose(
        llama.forward(ids, llama.new_cache(20), positions=jumps, num_logits=None).logits, turned
    )


def test_a_qwen_folder_needs_no_adapter(tmp_path):
    config = Qwen3Config(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "qwen")
    target = load(str(tmp_path / "qwen"), dtype="float32")
    assert isinstance(target.llama, Llama)
    assert target.identity.note == ""


@pytest.mark.parametrize(
    ("dtype", "note"),
    [("float32", ""), ("bfloat16", "weights stored in float32, run in bfloat16")],
)
def test_weights_run_in_another_type_than_they_are_stored_in_say_so(tiny_model, dtype, note):
    target = load(str(tiny_model), dtype=dtype, device="cpu")
    assert target.identity.note == note
    assert target.title == f"{tiny_model} in {dtype} on cpu" + (f" ({note})" if note else "")


def test_models_lists_what_is_cached_and_refuses_unknown_names():
    runner = CliRunner()
    rows = json.loads(runner.invoke(command, ["list", "--json"]).stdout)
    assert [(row["name"], row["state"], row["bytes"]) for row in rows] == [("smollm2-135m", "not fetched", 0)]
    with pytest.raises(UnknownNameError, match="did you mean smollm2-135m"):
        runner.invoke(command, ["pull", "smollm"], catch_exceptions=False)
    with pytest.raises(ModelError, match="it is missing"):
        runner.invoke(command, ["verify", "smollm2-135m"], catch_exceptions=False)
    assert "nothing to remove" in runner.invoke(command, ["remove", "smollm2-135m"]).stdout


def test_pull_verify_and_remove_a_model(monkeypatch):
    def make(model, folder, *_):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        embedded._write_manifest(model, folder)

    monkeypatch.setattr(embedded, "_make", make)
    runner = CliRunner()
    folder = runner.invoke(command, ["pull", "smollm2-135m"]).stdout.strip()
    assert "every file is intact" in runner.invoke(command, ["verify", "smollm2-135m"]).stdout
    (embedded.folder_of(embedded.SMOLLM2_135M) / "model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(ModelError, match="does not have its original sha256"):
        runner.invoke(command, ["verify", "smollm2-135m"], catch_exceptions=False)
    assert str(embedded.folder_of(embedded.SMOLLM2_135M)) == folder
    assert "removed" in runner.invoke(command, ["remove", "smollm2-135m"]).stdout
