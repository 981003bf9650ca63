from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hambench.errors import HambenchError, ModelError, UnknownNameError
from hambench.models.sizes import SHAPES, ModelShape, find_shape
from hambench.roofline.byte_model import ByteModel, expected_tokens
from hambench.roofline.gpu_specs import GPUS, find_gpu, parse_bandwidth

LLAMA = ByteModel(shape=SHAPES["llama-3.2-1b"])
SMOL = ByteModel(shape=SHAPES["smollm2-135m"])


def megabytes(value: float) -> float:
    return value / 1e6


# derived by hand from the two architectures


@pytest.mark.parametrize(
    ("model", "layer", "body", "head", "step", "micro", "stop", "merge", "draft", "kv"),
    [
        (LLAMA, 60_821_504, 1946.3, 525.3, 2471.6, 486.6, 16.8, 42.0, 1236.8, 32_768),
        (SMOL, 3_540_096, 212.4, 56.6, 269.0, 28.3, 1.33, 3.3, 134.9, 23_040),
    ],
    ids=["llama", "smollm2"],
)
def test_inventory_of_bytes(
    model: ByteModel, layer: int, body: float, head: float, step: float, micro: float, stop: float, merge: float,
    draft: float, kv: int,
) -> None:  # fmt: skip
    assert model.shape.layer_params == layer
    parts = (model.body, model.head, model.step, model.micro, model.stop, model.merge, model.int8_draft)
    expected = (body, head, step, micro, stop, merge, draft)
    for part, value in zip(parts, expected, strict=True):
        assert megabytes(part) == pytest.approx(value, rel=1e-4, abs=0.06)
    assert model.kv_per_slot == kv


def test_hamburger_brings_22_percent_of_weights_to_llama_and_12_to_smollm2() -> None:
    assert LLAMA.hamburger_extra / LLAMA.step == pytest.approx(0.22, abs=0.005)
    assert SMOL.hamburger_extra / SMOL.step == pytest.approx(0.12, abs=0.005)


@pytest.mark.parametrize(
    ("m", "llama_mb", "llama_s", "llama_int8", "smol_mb", "smol_s", "smol_int8"),
    [
        (1, 2530, 0.98, 0.97, 273.7, 0.98, 0.98),
        (1.5, 2030, 1.22, 1.25, 211.2, 1.27, 1.32),
        (2, 1780, 1.39, 1.46, 180.0, 1.50, 1.59),
        (2.5, 1629, 1.52, 1.62, 161.2, 1.67, 1.81),
        (3, 1529, 1.62, 1.74, 148.7, 1.81, 2.00),
        (4, 1404, 1.76, 1.94, 133.1, 2.02, 2.30),
    ],
)
def test_hamburgers_curve(
    m: float,
    llama_mb: float,
    llama_s: float,
    llama_int8: float,
    smol_mb: float,
    smol_s: float,
    smol_int8: float,
) -> None:
    for model, mb, s, s8 in ((LLAMA, llama_mb, llama_s, llama_int8), (SMOL, smol_mb, smol_s, smol_int8)):
        assert megabytes(model.hamburger_bytes(m)) == pytest.approx(mb, rel=4e-4)
        assert model.hamburger_speedup(m) == pytest.approx(s, abs=0.006)
        assert ByteModel(shape=model.shape, int8_head=True).hamburger_speedup(m) == pytest.approx(
            s8, abs=0.0051
        )


def test_hamburgers_break_even_and_asymptote() -> None:
    assert LLAMA.hamburger_break_even == pytest.approx(1.041, abs=0.001)
    assert SMOL.hamburger_break_even == pytest.approx(1.025, abs=0.001)
    assert LLAMA.hamburger_asymptote == pytest.approx(2.403, abs=0.001)
    assert SMOL.hamburger_asymptote == pytest.approx(3.118, abs=0.001)
    for model in (LLAMA, SMOL):
        assert model.hamburger_speedup(model.hamburger_break_even) == pytest.approx(1)
        assert model.hamburger_speedup(1e9) == pytest.approx(model.hamburger_asymptote, rel=1e-6)


def test_without_early_exit_hamburger_pays_only_above_two_tokens_a_step() -> None:
    speedup = LLAMA.step / LLAMA.hamburger_bytes_without_exit(1)
    assert speedup == pytest.approx(0.440, abs=0.001)
    assert 1 / speedup == pytest.approx(2.27, abs=0.01)


@pytest.mark.parametrize(
    ("acceptance", "row"),
    [
        (1.00, (1.33, 1.50, 1.60, 1.67, 1.75, 1.80)),
        (0.98, (1.32, 1.47, 1.55, 1.60, 1.65, 1.66)),
        (0.95, (1.30, 1.43, 1.48, 1.51, 1.51, 1.48)),
        (0.90, (1.27, 1.35, 1.38, 1.36, 1.30, 1.22)),
        (0.80, (1.20, 1.22, 1.18, 1.12, 0.99, 0.87)),
        (0.70, (1.13, 1.10, 1.01, 0.92, 0.76, 0.64)),
    ],
)
def test_speculations_table(acceptance: float, row: tuple[float, ...]) -> None:
    for k, expected in zip((1, 2, 3, 4, 6, 8), row, strict=True):
        assert LLAMA.speculative_speedup(k, acceptance) == pytest.approx(expected, abs=0.0075)


@pytest.mark.parametrize(
    ("k", "acceptance", "expected"), [(2, 1.0, 1.20), (4, 1.0, 1.43), (2, 0.9, 1.13), (4, 0.8, 1.05)]
)
def test_one_more_draft_forward_after_full_acceptance_costs(
    k: int, acceptance: float, expected: float
) -> None:
    speedup = LLAMA.speculative_speedup(k, acceptance, extra_draft_forward=True)
    assert speedup == pytest.approx(expected, abs=0.0075)
    assert speedup < LLAMA.speculative_speedup(k, acceptance)


@pytest.mark.parametrize(
    ("k", "expected"), [(1, 0.500), (2, 0.618), (3, 0.692), (4, 0.742), (5, 0.778), (8, 0.843)]
)
def test_speculations_break_even(k: int, expected: float) -> None:
    acceptance = LLAMA.speculative_break_even(k)
    assert acceptance == pytest.approx(expected, abs=0.0015)
    assert LLAMA.speculative_speedup(k, acceptance or 0) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("m", "acceptance", "k"), [(1.5, 0.80, 2), (2, 0.91, 3), (2.5, 0.95, 5), (3, 0.97, 7), (4, 0.99, 12)]
)
def test_the_line_on_which_hamburger_and_speculation_are_equal(m: float, acceptance: float, k: int) -> None:
    found = LLAMA.equivalent_acceptance(m)
    assert found is not None
    assert found[0] == pytest.approx(acceptance, abs=0.0075)
    # the optimum is flat: neighbouring lengths are within a thousandth of each other
    assert abs(found[1] - k) <= 2
    assert LLAMA.best_draft_length(found[0])[1] == pytest.approx(LLAMA.hamburger_speedup(m), abs=1e-3)


def test_speculation_with_a_half_size_draft_never_doubles_and_smollm2_at_four_does() -> None:
    assert SMOL.equivalent_acceptance(4) is None


@pytest.mark.parametrize(
    ("bandwidth", "vanilla", "int8", "ham2", "ham3", "ham4", "k2", "k4", "k4_perfect"),
    [
        (4.8e12, 1942, 3881, 2697, 3139, 3419, 2769, 2927, 3235),
        (4.3e12, 1740, 3477, 2416, 2812, 3062, 2480, 2622, 2898),
        (3.35e12, 1355, 2709, 1883, 2191, 2386, 1932, 2043, 2258),
        (1.008e12, 408, 815, 566, 659, 718, 581, 615, 679),
        (40e9, 16, 32, 22, 26, 28, 23, 24, 27),
    ],
)
def test_floor_speeds_of_llama(
    bandwidth: float, vanilla: float, int8: float, ham2: float, ham3: float, ham4: float, k2: float, k4: float,
    k4_perfect: float,
) -> None:  # fmt: skip
    speeds = (
        LLAMA.vanilla_tps(bandwidth),
        LLAMA.int8_tps(bandwidth),
        *(LLAMA.hamburger_tps(m, bandwidth) for m in (2, 3, 4)),
        LLAMA.speculative_tps(2, 0.95, bandwidth),
        LLAMA.speculative_tps(4, 0.95, bandwidth),
        LLAMA.speculative_tps(4, 1.0, bandwidth),
    )
    expected = (vanilla, int8, ham2, ham3, ham4, k2, k4, k4_perfect)
    for speed, value in zip(speeds, expected, strict=True):
        assert speed == pytest.approx(value, abs=0.6, rel=5e-4)


def test_floor_speeds_of_smollm2() -> None:
    assert SMOL.vanilla_tps(46e9) == pytest.approx(171, abs=0.6)
    assert SMOL.hamburger_tps(2, 46e9) == pytest.approx(256, abs=0.6)
    assert SMOL.speculative_tps(4, 0.95, 46e9) == pytest.approx(257, abs=0.6)
    assert SMOL.speculative_tps(4, 1.0, 46e9) == pytest.approx(284, abs=0.6)


@pytest.mark.parametrize(
    ("model", "bandwidth", "vanilla", "ham2", "ham4"),
    [(LLAMA, 4.3e12, 1465, 2063, 2653), (LLAMA, 3.0e12, 1073, 1506, 1929), (SMOL, 4.3e12, 3825, 6321, 9608)],
)
def test_launch_gaps_slow_a_small_model_most(
    model: ByteModel, bandwidth: float, vanilla: float, ham2: float, ham4: float
) -> None:
    assert model.vanilla_tps(bandwidth, gap_s=1.3e-6) == pytest.approx(vanilla, rel=0.003)
    assert model.hamburger_tps(2, bandwidth, gap_s=1.3e-6) == pytest.approx(ham2, rel=0.003)
    assert model.hamburger_tps(4, bandwidth, gap_s=1.3e-6) == pytest.approx(ham4, rel=0.003)


# laws


@given(st.floats(1, 4), st.floats(1, 4), st.sampled_from(list(SHAPES)))
def test_more_tokens_a_step_never_cost_more_bytes_a_token(a: float, b: float, name: str) -> None:
    model = ByteModel(shape=SHAPES[name])
    assert (model.hamburger_bytes(max(a, b))) <= model.hamburger_bytes(min(a, b)) * (1 + 1e-9)


@given(st.integers(0, 16), st.floats(0, 1))
def test_expected_tokens_equal_the_closed_form(k: int, a: float) -> None:
    closed = k + 1 if a == 1 else (1 - a ** (k + 1)) / (1 - a)
    assert expected_tokens(k, a) == pytest.approx(closed, rel=1e-6)


def test_context_lowers_vanilla_speed_and_raises_hamburgers_advantage() -> None:
    assert LLAMA.vanilla_tps(1e12, context=100_000) < LLAMA.vanilla_tps(1e12)
    assert LLAMA.hamburger_speedup(2, context=100_000) > LLAMA.hamburger_speedup(2)


def test_free_drafts_always_pay() -> None:
    for acceptance in (0.01, 0.3, 0.9):
        assert LLAMA.speculative_bytes(8, acceptance, draft=0) < LLAMA.vanilla_bytes()


def test_a_token_is_one_operation_per_byte_in_bf16() -> None:
    assert LLAMA.flops_per_token() == pytest.approx(2.47e9, rel=1e-3)
    assert LLAMA.flops_per_token() / LLAMA.step == pytest.approx(1)


@pytest.mark.parametrize(("k", "acceptance"), [(-1, 0.5), (2, 1.5), (2, -0.1), (2, math.nan)])
def test_impossible_drafts_are_refused(k: int, acceptance: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        expected_tokens(k, acceptance)


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
    [("[]", "no object"), ("{", "not a model config"),
     ('{"hidden_size": 8, "num_attention_heads": 2}', "num_hidden_layers"),
     ('{"num_experts": 8}', "experts"), ('{"hidden_size": "x", "num_attention_heads": 2}', "no number")],
)  # fmt: skip
def test_a_file_that_is_no_dense_models_config_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ModelError, match=reason):
        find_shape(str(path))


@pytest.mark.parametrize("name", ["./nothere", "/no/such/folder", "~/no-such-folder", "no-such-config.json"])
def test_a_path_where_nothing_is_is_no_unknown_name(name: str) -> None:
    """``./nothere`` once ended in a traceback of the hub client."""
    with pytest.raises(ModelError, match=r"there is no config\.json at"):
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
