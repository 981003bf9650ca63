from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, assert_close, assert_rows_independent, draw, draw_weight, flag

from hambench.kernels.gemv_residual import gemv_residual, reference


@pytest.mark.parametrize(("rows", "num_inputs"), [(1, 1536), (7, 576), (2, 40)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("int8", [False, True], ids=["dense", "int8"])
def test_gemv_residual(rows, num_inputs, dtype, int8, device):
    x = draw(rows, num_inputs, dtype=dtype, device=device)
    residual = draw(rows, 13, dtype=dtype, device=device)
    weight, scale = draw_weight(13, num_inputs, torch.int8 if int8 else dtype, device)
    want = reference(x, weight, residual, scale)
    assert_close(gemv_residual(x, weight, residual, scale=scale, impl="fused"), want)
    gemv_residual(x, weight, residual, scale=scale, out=residual, impl="fused")
    assert_close(residual, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("int8", [False, True], ids=["dense", "int8"])
def test_gemv_residual_rows_are_independent(dtype, int8, device):
    weight, scale = draw_weight(10, 576, torch.int8 if int8 else dtype, device)
    residual = draw(1, 10, dtype=dtype, device=device)
    assert_rows_independent(
        lambda x: gemv_residual(
            x, weight, residual.expand(x.shape[0], -1).contiguous(), scale=scale, impl="fused"
        ),
        draw(6, 576, dtype=dtype, device=device),
    )


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_gemv_residual_writes_nothing_when_done(impl, device):
    x, weight = torch.ones(1, 64, device=device), torch.ones(4, 64, device=device)
    residual, out = torch.ones(1, 4, device=device), torch.full((1, 4), 7.0, device=device)
    gemv_residual(x, weight, residual, out=out, done=flag(1, device), impl=impl)
    assert (out == 7.0).all()
    gemv_residual(x, weight, residual, out=out, done=flag(0, device), impl=impl)
    assert (out == 65.0).all()


def test_gemv_residual_refuses_a_residual_of_another_shape(device):
    x, weight = torch.ones(2, 64, device=device), torch.ones(4, 64, device=device)
    with pytest.raises(ValueError, match=r"residual must have shape \[2, 4\], got \[1, 4\]"):
        gemv_residual(x, weight, torch.ones(1, 4, device=device))
