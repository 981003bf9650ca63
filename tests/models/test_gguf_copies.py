"""Copies of a GGUF file in other types: the same model, and shown to be the same as the checkpoint."""

import gguf
import numpy as np
import pytest
import torch
from fakes import TINY_SHAPE, save_tiny_model
from gguf_files import rounded_as, write_gguf
from safetensors.torch import load_file, save_file

from hambench.errors import ModelError
from hambench.models.gguf_copies import bytes_read_per_token, differing_matrices, main_type, write_copy


@pytest.fixture
def folder(tmp_path):
    folder = save_tiny_model(tmp_path / "tiny", TINY_SHAPE)
    write_gguf(folder, tmp_path / "tiny.Q4_1.gguf", "Q4_1")
    return rounded_as(folder, "Q4_1")


@pytest.fixture
def source(folder, tmp_path):
    return tmp_path / "tiny.Q4_1.gguf"


def tensors(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def test_a_copy_has_the_matrices_in_its_type_and_everything_else_unchanged(source, tmp_path):
    for kind in ("BF16", "Q8_0"):
        write_copy(source, tmp_path / kind, kind)
        before, after = tensors(source), tensors(tmp_path / kind)
        assert list(after) == list(before)
        for name, tensor in after.items():
            assert tensor.tensor_type.name == (kind if len(tensor.shape) > 1 else "F32")
            assert list(tensor.shape) == list(before[name].shape)
        old, new = gguf.GGUFReader(source).fields, gguf.GGUFReader(tmp_path / kind).fields
        assert set(new) == {*old, "general.file_type"}
        for name in set(old) - {"GGUF.kv_count"}:
            assert new[name].contents() == old[name].contents(), name
    assert main_type(source) == "Q4_1"
    assert main_type(tmp_path / "Q8_0") == "Q8_0"


def test_the_bfloat16_copy_is_the_file_rounded_and_q8_0_rounds_that_again(source, tmp_path):
    write_copy(source, tmp_path / "BF16", "BF16")
    write_copy(source, tmp_path / "Q8_0", "Q8_0")
    before, half, eighth = (tensors(path) for path in (source, tmp_path / "BF16", tmp_path / "Q8_0"))
    for name in (name for name, tensor in before.items() if len(tensor.shape) > 1):
        exact = gguf.dequantize(before[name].data, before[name].tensor_type)
        rounded = torch.from_numpy(exact.copy()).to(torch.bfloat16).to(torch.float32).numpy()
        assert np.array_equal(gguf.dequantize(half[name].data, half[name].tensor_type), rounded)
        again = gguf.dequantize(
            gguf.quantize(rounded, gguf.GGMLQuantizationType.Q8_0), gguf.GGMLQuantizationType.Q8_0
        )
        assert np.array_equal(gguf.dequantize(eighth[name].data, eighth[name].tensor_type), again)


def test_a_copy_has_the_checkpoints_weights_or_says_how_many_matrices_differ(folder, source, tmp_path):
    write_copy(source, tmp_path / "BF16", "BF16")
    num_matrices = sum(tensor.ndim > 1 for tensor in load_file(folder / "model.safetensors").values())
    assert differing_matrices(tmp_path / "BF16", folder) == (0, num_matrices)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"):
        changed = load_file(folder / "model.safetensors")
        changed[name][3, 5] += 1
        other = tmp_path / name
        other.mkdir()
        save_file(changed, other / "model.safetensors")
        assert differing_matrices(tmp_path / "BF16", other) == (1, num_matrices)
    del changed["model.layers.0.mlp.down_proj.weight"]
    save_file(changed, other / "model.safetensors")
    assert differing_matrices(tmp_path / "BF16", other) == (2, num_matrices)
    # a layer that only the checkpoint has is as different as one that only the file has
    changed["model.layers.9.mlp.up_proj.weight"] = torch.ones(2, 3)
    save_file(changed, other / "model.safetensors")
    assert differing_matrices(tmp_path / "BF16", other) == (3, num_matrices + 1)


def test_a_head_that_is_the_embeddings_may_be_stored_or_not(folder, tmp_path):
    with_head = load_file(folder / "model.safetensors")
    embeddings = with_head["model.embed_tokens.weight"]
    num_matrices = sum(tensor.ndim > 1 for tensor in with_head.values())
    without = {name: tensor for name, tensor in with_head.items() if name != "lm_head.weight"}
    folders = {}
    for name, tensors in (
        ("own", with_head),
        ("tied", without),
        ("stored", {**without, "lm_head.weight": embeddings.clone()}),
    ):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        (folders[name] / "config.json").write_text((folder / "config.json").read_text())
        save_file(tensors, folders[name] / "model.safetensors")
        write_gguf(folders[name], tmp_path / f"{name}.gguf", "BF16")
    for file in ("tied", "stored"):
        for checkpoint in ("tied", "stored"):
            num_stored = num_matrices - (file == "tied")
            assert differing_matrices(tmp_path / f"{file}.gguf", folders[checkpoint]) == (0, num_stored)
    assert differing_matrices(tmp_path / "tied.gguf", folders["own"]) == (1, num_matrices)
    assert differing_matrices(tmp_path / "own.gguf", folders["tied"]) == (1, num_matrices)


def test_a_step_reads_all_tensors_but_embeddings_with_a_head_of_its_own(source, tmp_path):
    stored = tensors(source)
    all_bytes = sum(int(tensor.n_bytes) for tensor in stored.values())
    assert "output.weight" in stored
    assert bytes_read_per_token(source) == all_bytes - int(stored["token_embd.weight"].n_bytes)


def test_what_is_not_a_gguf_file_is_refused(tmp_path):
    (tmp_path / "no.gguf").write_bytes(b"no such thing, but long enough to be looked at")
    with pytest.raises(ModelError, match=r"no\.gguf is not a GGUF file that can be read"):
        write_copy(tmp_path / "no.gguf", tmp_path / "copy", "BF16")
    with pytest.raises(ValueError, match="kind must be one of BF16, Q8_0, got 'Q2_K'"):
        write_copy(tmp_path / "no.gguf", tmp_path / "copy", "Q2_K")


def test_a_file_that_is_no_language_models_is_refused_in_one_line(folder, source, tmp_path):
    for old, new, reason in (
        (b"general.architecture", b"general.architectura", "does not say its architecture"),
        # twice the same key
        (b"llama.context_length", b"general.architecture", "is not a GGUF file that can be read"),
    ):
        path = tmp_path / "changed.gguf"
        path.write_bytes(source.read_bytes().replace(old, new))
        with pytest.raises(ModelError, match=reason):
            write_copy(path, tmp_path / "copy", "BF16")
    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("odd.part.weight", np.ones((4, 40), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    num_matrices = sum(tensor.ndim > 1 for tensor in load_file(folder / "model.safetensors").values())
    assert differing_matrices(path, folder) == (num_matrices + 1, num_matrices + 1)
    with pytest.raises(ModelError, match=r"odd\.gguf: odd\.part\.weight can't be stored as Q8_0"):
        write_copy(path, tmp_path / "copy", "Q8_0")
