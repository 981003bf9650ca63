from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hambench.engine.kvcache import Int8KVCache
from hambench.errors import HambenchError, ModelError, UnknownNameError
from hambench.models.sizes import SHAPES, ModelShape, find_shape
from hambench.roofline.byte_model import ByteModel, tokens_per_second
from hambench.roofline.gpu_specs import GPUS, find_gpu, parse_bandwidth

LLAMA = ByteModel(shape=SHAPES["llama-3.2-1b"])
SMOL = ByteModel(shape=SHAPES["smollm2-135m"])


def megabytes(value: float) -> float:
    return value / 1e6


# derived by hand from the two architectures


@pytest.mark.parametrize(
    ("model", "layer", "body", "head", "step", "draft", "kv"),
    [
        (LLAMA, 60_821_504, 1946.3, 525.3, 2471.6, 1236.8, 32_768),
        (SMOL, 3_540_096, 212.4, 56.6, 269.0, 134.9, 23_040),
    ],
    ids=["llama", "smollm2"],
)
def test_inventory_of_bytes(
    model: ByteModel, layer: int, body: float, head: float, step: float, draft: float, kv: int,
) -> None:  # fmt: skip
    assert model.shape.layer_params == layer
    parts = (model.body, model.head, model.step, model.int8_draft)
    expected = (body, head, step, draft)
    for part, value in zip(parts, expected, strict=True):
        assert megabytes(part) == pytest.approx(value, rel=1e-4, abs=0.06)
    assert model.kv_per_slot == kv


def test_a_token_is_one_operation_per_byte_in_bf16() -> None:
    assert LLAMA.flops_per_token() == pytest.approx(2.47e9, rel=1e-3)
    assert LLAMA.flops_per_token() / LLAMA.step == pytest.approx(1)


def test_context_lowers_vanilla_speed() -> None:
    speeds = [tokens_per_second(LLAMA.vanilla_bytes(context=c), 1e12) for c in (0, 100_000)]
    assert speeds[1] < speeds[0]


# shapes and GPUs by name


def test_a_config_file_gives_the_same_shape_as_the_name(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    by_folder = find_shape(str(tmp_path))[1]
    assert by_folder == find_shape(str(tmp_path / "config.json"))[1] == SHAPES["llama-3.2-1b"]
    assert find_shape("meta-llama/Llama-3.2-1B-Instruct")[1] == by_folder
    assert ModelShape.from_scalars(by_folder.as_scalars()) == by_folder
    assert ModelShape.from_scalars({"num_layers": 3}) is None


def test_known_shapes_have_the_parameters_of_their_names() -> None:
    for name, billions in [
        ("llama-3.2-3b", 3.21),
        ("llama-3.1-8b", 8.03),
        ("smollm2-360m", 0.362),
        ("smollm2-1.7b", 1.71),
    ]:
        assert SHAPES[name].total_params / 1e9 == pytest.approx(billions, rel=0.005)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("[]", "does not contain a JSON object"), ("{", "not a model config"),
     ('{"hidden_size": 8, "num_attention_heads": 2}', "num_hidden_layers"),
     ('{"num_experts": 8}', "experts"), ('{"hidden_size": "x", "num_attention_heads": 2}', "not a number")],
)  # fmt: skip
def test_a_file_that_is_no_dense_models_config_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ModelError, match=reason):
        find_shape(str(path))


@pytest.mark.parametrize("name", ["./nothere", "/no/such/folder", "~/no-such-folder", "no-such-config.json"])
def test_a_path_where_nothing_is_is_no_unknown_name(name: str) -> None:
    """``./nothere`` once ended in a traceback of the hub client."""
    with pytest.raises(ModelError, match=r"has no config\.json"):
        find_shape(name)


@pytest.mark.parametrize("name", ["owner/na--me", "owner/..", "a/b"])
def test_a_name_that_no_hub_could_know_is_unknown_like_any_other(name: str) -> None:
    with pytest.raises(UnknownNameError, match="smollm2-135m"):
        find_shape(name)


def test_unknown_names_say_what_is_known() -> None:
    with pytest.raises(UnknownNameError, match=r"llama-3\.2-1b"):
        find_shape("llama-3.2-1c")
    with pytest.raises(UnknownNameError, match="h200"):
        find_gpu("h300")


def test_gpus_are_found_however_they_are_spelt() -> None:
    assert find_gpu("RTX 4090") is find_gpu("rtx-4090") is GPUS["rtx4090"]


@pytest.mark.parametrize(("text", "expected"), [("4.3TB/s", 4.3e12), ("46 GB/s", 46e9), ("900gb", 9e11)])
def test_bandwidths_have_units(text: str, expected: float) -> None:
    assert parse_bandwidth(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["4.3", "fast", "0GB/s", "-1TB/s", "3 TiB"])
def test_a_bandwidth_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(HambenchError, match="bandwidth"):
        parse_bandwidth(text)


def test_an_8_bit_cache_holds_the_bytes_that_are_foretold() -> None:
    shape = SHAPES["smollm2-135m"]
    cache = Int8KVCache(
        num_layers=shape.num_layers,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        capacity=3,
        dtype=torch.bfloat16,
        device="cpu",
    )
    assert ByteModel(shape=shape).int8_kv_per_slot == cache.bytes_per_slot
