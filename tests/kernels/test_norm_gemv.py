from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, assert_close, assert_rows_independent, draw, draw_weight, flag

from hambench.kernels.norm_gemv import norm_gemv, reference

EPS = 1e-5
# SmolLM2's widths and Llama's; N is cut down for the interpreter, and is no multiple of a block
SHAPES = [
    pytest.param(1, 27, 576, id="M1-N27-K576"),
    pytest.param(5, 16, 1536, id="M5-N16-K1536"),
    pytest.param(8, 9, 64, id="M8-N9-K64"),
]


@pytest.mark.parametrize(("rows", "num_outputs", "num_inputs"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("int8", [False, True], ids=["dense", "int8"])
def test_norm_gemv(rows, num_outputs, num_inputs, dtype, int8, device):
    x = draw(rows, num_inputs, dtype=dtype, device=device)
    weight, scale = draw_weight(num_outputs, num_inputs, torch.int8 if int8 else dtype, device)
    norm = draw(num_inputs, dtype=dtype, device=device)
    bias = draw(num_outputs, dtype=dtype, device=device)
    got = norm_gemv(x, weight, norm_weight=norm, eps=EPS, scale=scale, bias=bias, impl="fused")
    assert_close(got, reference(x, weight, norm, EPS, scale, bias))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("int8", [False, True], ids=["dense", "int8"])
def test_norm_gemv_rows_are_independent(dtype, int8, device):
    weight, scale = draw_weight(19, 576, torch.int8 if int8 else dtype, device)
    norm = draw(576, dtype=dtype, device=device)
    assert_rows_independent(
        lambda x: norm_gemv(x, weight, norm_weight=norm, eps=EPS, scale=scale, impl="fused"),
        draw(5, 576, dtype=dtype, device=device),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_gemv_of_token_ids_is_that_of_their_embeddings(dtype, device):
    table = draw(11, 96, dtype=dtype, device=device)
    ids = torch.tensor([7, 0, 7], device=device)
    weight, _ = draw_weight(10, 96, dtype, device)
    norm = draw(96, dtype=dtype, device=device)
    gathered = torch.empty(3, 96, dtype=dtype, device=device)
    got = norm_gemv(table, weight, norm_weight=norm, eps=EPS, ids=ids, gathered=gathered, impl="fused")
    assert torch.equal(gathered, table[ids])
    assert torch.equal(got, norm_gemv(table[ids], weight, norm_weight=norm, eps=EPS, impl="fused"))


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_norm_gemv_writes_nothing_when_done(impl, device):
    x, norm = draw(2, 64, dtype=torch.float32, device=device), torch.ones(64, device=device)
    weight, _ = draw_weight(8, 64, torch.float32, device)
    out = torch.full((2, 8), 7.0, device=device)
    norm_gemv(x, weight, norm_weight=norm, eps=EPS, out=out, done=flag(1, device), impl=impl)
    assert torch.equal(out, torch.full_like(out, 7.0))
    norm_gemv(x, weight, norm_weight=norm, eps=EPS, out=out, done=flag(0, device), impl=impl)
    assert not (out == 7.0).any()


def test_norm_gemv_refuses_what_it_cannot_do(device):
    x, norm = torch.ones(2, 64, device=device), torch.ones(64, device=device)
    weight = torch.ones(8, 64, device=device)
    with pytest.raises(ValueError, match=r"weight must have shape \[\*, 64\], got \[8, 32\]"):
        norm_gemv(x, weight[:, :32].contiguous(), norm_weight=norm, eps=EPS)
    with pytest.raises(ValueError, match=r"weight must be contiguous.*call \.contiguous\(\)"):
        norm_gemv(x, torch.ones(64, 8, device=device).T, norm_weight=norm, eps=EPS)
    with pytest.raises(ValueError, match="weight must be float32 or int8, got float16"):
        norm_gemv(x, weight.half(), norm_weight=norm, eps=EPS)
    with pytest.raises(ValueError, match=r"its scale must be given: float32 \[8\]"):
        norm_gemv(x, weight.to(torch.int8), norm_weight=norm, eps=EPS)
    with pytest.raises(ValueError, match="out must be given with done"):
        norm_gemv(x, weight, norm_weight=norm, eps=EPS, done=flag(0, device))
    with pytest.raises(ValueError, match="gathered must be None without ids"):
        norm_gemv(x, weight, norm_weight=norm, eps=EPS, gathered=x)
    with pytest.raises(ValueError, match="at most 8 rows, got 9"):
        norm_gemv(torch.ones(9, 64, device=device), weight, norm_weight=norm, eps=EPS, impl="fused")
    nine = norm_gemv(torch.ones(9, 64, device=device), weight, norm_weight=norm, eps=EPS)
    assert nine.shape == (9, 8), "auto takes the reference where fused can't"
