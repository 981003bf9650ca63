"""Damaged files of a model folder: each is one line that names the file, never a library's traceback."""

import json

import pytest
from fakes import TINY_SHAPE, save_tiny_model

from hambench.errors import HambenchError, ModelError
from hambench.models.folder import declared_eos
from hambench.models.target import device_of, load

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5808\n"


@pytest.fixture
def folder(tmp_path):
    return save_tiny_model(tmp_path / "tiny", TINY_SHAPE)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", b"{", r"config\.json is damaged"),
        ("config.json", b"[]", r"config\.json is damaged: it does not contain a JSON object"),
        ("config.json", b"", r"config\.json is damaged"),
        ("config.json", b"\xff\xfe{}", r"config\.json is damaged"),
        ("config.json", b'{"model_type": "llama", "hidden_size": "x"}', r"no usable config\.json"),
        ("config.json", b'{"model_type": "nosuch"}', r"no usable config\.json"),
        ("tokenizer.json", POINTER, r"tokenizer\.json is a pointer of Git LFS"),
        ("tokenizer.json", b'{"version": "1.0", "trunc', r"tokenizer\.json is damaged"),
        ("tokenizer_config.json", b"{", r"tokenizer_config\.json is damaged"),
        ("tokenizer_config.json", b"[]", r"tokenizer_config\.json is damaged"),
        ("special_tokens_map.json", b"{", r"special_tokens_map\.json is damaged"),
        ("chat_template.jinja", b"\xff", r"chat_template\.jinja is damaged"),
        ("generation_config.json", b"{", r"generation_config\.json is damaged"),
        ("generation_config.json", b"[]", r"generation_config\.json is damaged"),
        ("generation_config.json", b"\xff\xfe{}", r"generation_config\.json is damaged"),
        ("generation_config.json", b'{"eos_token_id": "x"}', "eos_token_id must be a token id"),
        ("generation_config.json", b'{"eos_token_id": [true]}', "eos_token_id must be a token id"),
        ("model.safetensors", b"", r"model\.safetensors is damaged"),
        ("model.safetensors", b"x" * 100, r"model\.safetensors is damaged"),
        ("model.safetensors", POINTER, r"model\.safetensors is a pointer of Git LFS"),
        ("model.safetensors.index.json", b"{", r"index\.json is damaged"),
        ("model.safetensors.index.json", b"[]", r"index\.json is damaged"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', r"index\.json is damaged"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 5}}', r"index\.json is damaged"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../b.safetensors"}}', "files of the folder"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(folder, name, content, reason):
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=reason) as error:
        load(str(folder), dtype="float32", device="cpu")
    assert "\n" not in str(error.value)


def test_end_tokens_are_one_several_or_none(folder):
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert declared_eos(folder) == []
    for declared, ids in ((5, [5]), ([5, 6], [5, 6]), (None, [None])):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": declared}))
        assert declared_eos(folder) == ids


def test_the_marker_that_the_chat_template_ends_turns_with_ends_answers(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["<|turn_ends|>"] = vocabulary.pop("<unused>")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append({"id": 259, "content": "<|turn_ends|>", "special": True, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|turn_ends|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert load(str(folder), dtype="float32", device="cpu").eos_ids == {257, 259}


@pytest.mark.parametrize("name", ["nonsense9", "cuda:x", "cuda:63", "meta", "", "cpu:"])
def test_a_device_that_is_not_here_is_one_line(name):
    with pytest.raises(HambenchError, match="device"):
        device_of(name)


def test_a_user_who_is_not_here_has_no_models():
    with pytest.raises(HambenchError, match="no user of that name"):
        load("~nosuchuser9/x")


def test_a_folder_not_named_in_utf8_is_refused_by_its_bytes():
    with pytest.raises(ModelError, match=r"m\\xff is not valid UTF-8"):
        load("./m\udcff")


def test_a_cache_that_can_not_be_written_costs_time_and_nothing_else(folder, monkeypatch):
    monkeypatch.setenv("HAMBENCH_CACHE", "/dev/null/x")
    assert load(str(folder), dtype="float32", device="cpu").identity.sha256


@pytest.mark.parametrize("content", ["[]", '{"x": 5}', "[" * 5000, "null"])
def test_a_damaged_cache_is_made_again(folder, private_cache, content):
    private_cache.mkdir()
    before = load(str(folder), dtype="float32", device="cpu").identity.sha256
    (private_cache / "sha256.json").write_text(content)
    assert load(str(folder), dtype="float32", device="cpu").identity.sha256 == before
