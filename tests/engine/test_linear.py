"""The forms of a linear layer are one function: what a CPU multiplies fastest changes nothing but the last rounding."""

import pytest
import torch
import torch.nn.functional as F

from hambench.engine import linear
from hambench.engine.linear import LEAST_WIDENED, make_gated, make_linear

ROWS = [1, LEAST_WIDENED - 1, LEAST_WIDENED, 40]


def normal(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def relative_error(got, exact):
    return float((got.double() - exact).norm() / exact.norm())


@pytest.fixture(params=["this machine's", "no arithmetic in 16 bits"])
def arithmetic(request, monkeypatch):
    if request.param != "this machine's":
        monkeypatch.setattr(linear, "_multiplies", lambda dtype: False)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_every_form_is_the_product(dtype, rows, with_bias):
    weight, x, stream = (
        normal(48, 64).to(dtype),
        normal(rows, 64, seed=1).to(dtype),
        normal(rows, 48, seed=2).to(dtype),
    )
    bias = normal(48, seed=3).to(dtype) if with_bias else None
    layer = make_linear(weight, bias)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    tolerance = 1e-5 if dtype == torch.float32 else 0.01
    assert layer(x).dtype == dtype
    assert relative_error(layer(x), exact) < tolerance
    assert relative_error(layer.add_to(stream, x), stream + exact) < tolerance


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", ROWS)
def test_every_gated_form_is_gate_and_up(dtype, rows):
    gate, up, x = (
        normal(48, 64).to(dtype),
        normal(48, 64, seed=1).to(dtype),
        normal(rows, 64, seed=2).to(dtype),
    )
    layer = make_gated(gate, up)
    exact = F.silu(x.double() @ gate.double().T) * (x.double() @ up.double().T)
    assert layer(x).dtype == dtype
    assert relative_error(layer(x), exact) < (1e-5 if dtype == torch.float32 else 0.02)
    assert layer.weight_bytes == gate.nbytes + up.nbytes


@pytest.mark.parametrize("slices", [1, 5])
def test_many_rows_are_multiplied_in_float32_and_a_few_are_not(slices, monkeypatch):
    monkeypatch.setattr(linear, "_multiplies", lambda dtype: False)
    monkeypatch.setattr(linear, "WIDENED_BYTES", 4 * 512 * 48 // slices)
    weight, x = normal(48, 512).bfloat16(), normal(LEAST_WIDENED, 512, seed=1).bfloat16()
    exact = x.float() @ weight.float().T
    plain, seen = F.linear, []

    def spied(rows, part, bias=None):
        seen.append((rows.dtype, part.dtype))
        return plain(rows, part, bias)

    monkeypatch.setattr(linear.F, "linear", spied)
    layer = make_linear(weight)
    got = layer(x)
    assert set(seen) == {(torch.float32, torch.float32)}
    # 48 output channels in slices of 48 or of 9
    assert len(seen) == {1: 1, 5: 6}[slices]
    torch.testing.assert_close(got, exact.bfloat16(), rtol=2**-8, atol=1e-4)
    seen.clear()
    layer(x[1:])
    assert seen == [(torch.bfloat16, torch.bfloat16)]
    # float32 has arithmetic everywhere, and a type of the GPU is the GPU's affair
    assert not linear.must_widen(weight.float())
    assert not linear.must_widen(weight.to("meta"))
