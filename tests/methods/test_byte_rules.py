"""What each method reads: the paper's curve, speculation's table, and the rules that count a run's steps."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hambench.methods.common.speculation import SpeculationBytes, expected_tokens
from hambench.methods.hamburger import HamburgerConfig
from hambench.methods.hamburger.byte_rule import HamburgerBytes
from hambench.models.sizes import SHAPES
from hambench.roofline.byte_model import ByteModel, tokens_per_second

LLAMA = ByteModel(shape=SHAPES["llama-3.2-1b"])
SMOL = ByteModel(shape=SHAPES["smollm2-135m"])
H_LLAMA, H_SMOL = HamburgerBytes(LLAMA), HamburgerBytes(SMOL)
S_LLAMA = SpeculationBytes(LLAMA)


def megabytes(value: float) -> float:
    return value / 1e6


def vanilla_tps(model: ByteModel, bandwidth: float, gap_s: float = 0.0) -> float:
    kernels = model.kernels_per_forward
    return tokens_per_second(model.step, bandwidth, kernels_per_token=kernels, gap_s=gap_s)


def hamburger_tps(model: ByteModel, m: float, bandwidth: float, gap_s: float = 0.0) -> float:
    rule = HamburgerBytes(model)
    kernels = rule.kernels_per_token(m)
    return tokens_per_second(rule.per_token(m), bandwidth, kernels_per_token=kernels, gap_s=gap_s)


def speculative_tps(model: ByteModel, k: int, acceptance: float, bandwidth: float) -> float:
    return tokens_per_second(SpeculationBytes(model).per_token(k, acceptance), bandwidth)


# derived by hand from the two architectures


@pytest.mark.parametrize(
    ("model", "micro", "stop", "merge"),
    [(LLAMA, 486.6, 16.8, 42.0), (SMOL, 28.3, 1.33, 3.3)],
    ids=["llama", "smollm2"],
)
def test_inventory_of_hamburgers_grafts(model: ByteModel, micro: float, stop: float, merge: float) -> None:
    rule = HamburgerBytes(model)
    for part, value in ((rule.micro, micro), (rule.stop, stop), (rule.merge, merge)):
        assert megabytes(part) == pytest.approx(value, rel=1e-4, abs=0.06)


def test_the_weights_say_how_many_layers_a_micro_step_reads() -> None:
    sizes = HamburgerConfig().own_sizes("smollm2-135m")
    assert sizes == {"num_micro_layers": 2, "max_micro_steps": 4}
    said = HamburgerConfig.ceilings(SMOL, model="smollm2-135m", context=0)
    assert said.extra_bytes == HamburgerBytes(SMOL, num_micro_layers=2).extra
    # no weights are shipped for this model, so the paper's four layers are assumed
    published = HamburgerConfig.ceilings(LLAMA, model="llama-3.2-1b", context=0)
    assert published.extra_bytes == H_LLAMA.extra


def test_hamburger_brings_22_percent_of_weights_to_llama_and_12_to_smollm2() -> None:
    assert H_LLAMA.extra / LLAMA.step == pytest.approx(0.22, abs=0.005)
    assert H_SMOL.extra / SMOL.step == pytest.approx(0.12, abs=0.005)


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
        assert megabytes(HamburgerBytes(model).per_token(m)) == pytest.approx(mb, rel=4e-4)
        assert HamburgerBytes(model).speedup(m) == pytest.approx(s, abs=0.006)
        assert HamburgerBytes(ByteModel(shape=model.shape, int8_head=True)).speedup(m) == pytest.approx(
            s8, abs=0.0051
        )


def test_hamburgers_break_even_and_asymptote() -> None:
    assert H_LLAMA.break_even == pytest.approx(1.041, abs=0.001)
    assert H_SMOL.break_even == pytest.approx(1.025, abs=0.001)
    assert H_LLAMA.asymptote == pytest.approx(2.403, abs=0.001)
    assert H_SMOL.asymptote == pytest.approx(3.118, abs=0.001)
    for model in (LLAMA, SMOL):
        assert HamburgerBytes(model).speedup(HamburgerBytes(model).break_even) == pytest.approx(1)
        assert HamburgerBytes(model).speedup(1e9) == pytest.approx(HamburgerBytes(model).asymptote, rel=1e-6)


def test_without_early_exit_hamburger_pays_only_above_two_tokens_a_step() -> None:
    speedup = LLAMA.step / H_LLAMA.per_token_without_exit(1)
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
        assert S_LLAMA.speedup(k, acceptance) == pytest.approx(expected, abs=0.0075)


@pytest.mark.parametrize(
    ("k", "acceptance", "expected"), [(2, 1.0, 1.20), (4, 1.0, 1.43), (2, 0.9, 1.13), (4, 0.8, 1.05)]
)
def test_one_more_draft_forward_after_full_acceptance_costs(
    k: int, acceptance: float, expected: float
) -> None:
    speedup = S_LLAMA.speedup(k, acceptance, extra_draft_forward=True)
    assert speedup == pytest.approx(expected, abs=0.0075)
    assert speedup < S_LLAMA.speedup(k, acceptance)


@pytest.mark.parametrize(
    ("k", "expected"), [(1, 0.500), (2, 0.618), (3, 0.692), (4, 0.742), (5, 0.778), (8, 0.843)]
)
def test_speculations_break_even(k: int, expected: float) -> None:
    acceptance = S_LLAMA.break_even(k)
    assert acceptance == pytest.approx(expected, abs=0.0015)
    assert S_LLAMA.speedup(k, acceptance or 0) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("m", "acceptance", "k"), [(1.5, 0.80, 2), (2, 0.91, 3), (2.5, 0.95, 5), (3, 0.97, 7), (4, 0.99, 12)]
)
def test_the_line_on_which_hamburger_and_speculation_are_equal(m: float, acceptance: float, k: int) -> None:
    found = H_LLAMA.equivalent_acceptance(m)
    assert found is not None
    assert found[0] == pytest.approx(acceptance, abs=0.0075)
    # the optimum is flat: neighbouring lengths are within a thousandth of each other
    assert abs(found[1] - k) <= 2
    assert S_LLAMA.best_draft_length(found[0])[1] == pytest.approx(H_LLAMA.speedup(m), abs=1e-3)


def test_speculation_with_a_half_size_draft_never_doubles_and_smollm2_at_four_does() -> None:
    assert H_SMOL.equivalent_acceptance(4) is None


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
        vanilla_tps(LLAMA, bandwidth),
        tokens_per_second(LLAMA.int8_draft, bandwidth),
        *(hamburger_tps(LLAMA, m, bandwidth) for m in (2, 3, 4)),
        speculative_tps(LLAMA, 2, 0.95, bandwidth),
        speculative_tps(LLAMA, 4, 0.95, bandwidth),
        speculative_tps(LLAMA, 4, 1.0, bandwidth),
    )
    expected = (vanilla, int8, ham2, ham3, ham4, k2, k4, k4_perfect)
    for speed, value in zip(speeds, expected, strict=True):
        assert speed == pytest.approx(value, abs=0.6, rel=5e-4)


def test_floor_speeds_of_smollm2() -> None:
    assert vanilla_tps(SMOL, 46e9) == pytest.approx(171, abs=0.6)
    assert hamburger_tps(SMOL, 2, 46e9) == pytest.approx(256, abs=0.6)
    assert speculative_tps(SMOL, 4, 0.95, 46e9) == pytest.approx(257, abs=0.6)
    assert speculative_tps(SMOL, 4, 1.0, 46e9) == pytest.approx(284, abs=0.6)


@pytest.mark.parametrize(
    ("model", "bandwidth", "vanilla", "ham2", "ham4"),
    [(LLAMA, 4.3e12, 1465, 2063, 2653), (LLAMA, 3.0e12, 1073, 1506, 1929), (SMOL, 4.3e12, 3825, 6321, 9608)],
)
def test_launch_gaps_slow_a_small_model_most(
    model: ByteModel, bandwidth: float, vanilla: float, ham2: float, ham4: float
) -> None:
    assert vanilla_tps(model, bandwidth, gap_s=1.3e-6) == pytest.approx(vanilla, rel=0.003)
    assert hamburger_tps(model, 2, bandwidth, gap_s=1.3e-6) == pytest.approx(ham2, rel=0.003)
    assert hamburger_tps(model, 4, bandwidth, gap_s=1.3e-6) == pytest.approx(ham4, rel=0.003)


@given(st.floats(1, 4), st.floats(1, 4), st.sampled_from(list(SHAPES)))
def test_more_tokens_a_step_never_cost_more_bytes_a_token(a: float, b: float, name: str) -> None:
    model = ByteModel(shape=SHAPES[name])
    assert (HamburgerBytes(model).per_token(max(a, b))) <= HamburgerBytes(model).per_token(min(a, b)) * (
        1 + 1e-9
    )


@given(st.integers(0, 16), st.floats(0, 1))
def test_expected_tokens_equal_the_closed_form(k: int, a: float) -> None:
    closed = k + 1 if a == 1 else (1 - a ** (k + 1)) / (1 - a)
    assert expected_tokens(k, a) == pytest.approx(closed, rel=1e-6)


def test_context_raises_hamburgers_advantage() -> None:
    assert H_LLAMA.speedup(2, context=100_000) > H_LLAMA.speedup(2)


def test_free_drafts_always_pay() -> None:
    for acceptance in (0.01, 0.3, 0.9):
        assert S_LLAMA.per_token(8, acceptance, draft=0) < LLAMA.vanilla_bytes()


@pytest.mark.parametrize(("k", "acceptance"), [(-1, 0.5), (2, 1.5), (2, -0.1), (2, math.nan)])
def test_impossible_drafts_are_refused(k: int, acceptance: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        expected_tokens(k, acceptance)
