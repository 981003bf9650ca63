import pytest
import torch

from hambench.engine import int8, linear
from hambench.engine.int8 import MOST_ROWS_UNPACKED, Int8Linear, quantize_rows


def normal(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_at_most_half_a_level_off(dtype):
    weight = normal(16, 64).to(dtype)
    codes, scales = quantize_rows(weight)
    assert codes.dtype == torch.int8
    # bfloat16 scales may be rounded down, which leaves the largest weight a little above 127 levels
    slack = 1.0 if dtype == torch.bfloat16 else 1e-3
    levels = (weight.float() / scales.float()[:, None] - codes.float()).abs()
    assert levels.max() <= 0.5 + slack
    assert levels.mean() < 0.3


def test_each_channel_has_a_scale_of_its_own():
    weight = normal(4, 32)
    weight[2] *= 1000
    restored = Int8Linear(weight).weight
    for row in range(4):
        assert (restored[row] - weight[row]).abs().max() <= weight[row].abs().max() / 127


def test_an_all_zero_channel_stays_zero():
    weight = normal(3, 8)
    weight[1] = 0
    layer = Int8Linear(weight)
    assert layer.weight[1].abs().max() == 0
    assert torch.isfinite(layer(normal(2, 8))).all()


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8, MOST_ROWS_UNPACKED, MOST_ROWS_UNPACKED + 1, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("widen", [False, True])
def test_the_product_is_that_of_the_weight_the_codes_stand_for(rows, dtype, with_bias, widen, monkeypatch):
    if widen:
        monkeypatch.setattr(linear, "_multiplies", lambda dtype: False)
    weight, x = normal(48, 64).to(dtype), normal(rows, 64, seed=1).to(dtype)
    bias = normal(48, seed=2).to(dtype) if with_bias else None
    layer = Int8Linear(weight, bias)
    exact = x.double() @ (layer.codes.double() * layer.scales.double()[:, None]).T
    exact = exact if bias is None else exact + bias.double()
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    assert layer(x).dtype == dtype
    assert (layer(x).double() - exact).norm() / exact.norm() < tolerance


def test_adding_to_the_stream_adds():
    layer, x, stream = Int8Linear(normal(8, 8)), normal(2, 8), normal(2, 8, seed=3)
    assert torch.allclose(layer.add_to(stream, x), stream + layer(x))


def test_int8_reads_half_of_what_bfloat16_does():
    weight = normal(256, 256).bfloat16()
    assert Int8Linear(weight).weight_bytes == pytest.approx(weight.nbytes / 2, rel=0.01)


def test_many_rows_are_multiplied_in_float32_where_16_bits_are_emulated(monkeypatch):
    plain, seen = int8.F.linear, []

    def spied(rows, weight):
        seen.append({rows.dtype, weight.dtype})
        return plain(rows, weight)

    monkeypatch.setattr(int8.F, "linear", spied)
    monkeypatch.setattr(linear, "_multiplies", lambda dtype: False)
    layer = Int8Linear(normal(48, 64).bfloat16())
    assert layer(normal(MOST_ROWS_UNPACKED + 1, 64).bfloat16()).dtype == torch.bfloat16
    assert seen == [{torch.float32}]


@pytest.mark.parametrize("num_inputs", [8, 33, 40])
def test_inputs_that_are_not_whole_vectors_do_not_crash_torch(num_inputs):
    weight = torch.randn(24, num_inputs, generator=torch.Generator().manual_seed(0)).bfloat16()
    rows = torch.randn(3, num_inputs, generator=torch.Generator().manual_seed(1)).bfloat16()
    linear = Int8Linear(weight)
    expected = rows.float() @ linear.weight.float().T
    torch.testing.assert_close(linear(rows).float(), expected, atol=0.1, rtol=0.02)
