from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, assert_close, assert_rows_independent, draw, draw_weight, flag

from hambench.kernels.norm_gateup_silu import norm_gateup_silu, reference

EPS = 1e-5


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("num_inputs", [576, 80])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("int8", [False, True], ids=["dense", "int8"])
def test_norm_gateup_silu(rows, num_inputs, dtype, int8, device):
    x = draw(rows, num_inputs, dtype=dtype, device=device)
    norm = draw(num_inputs, dtype=dtype, device=device)
    gate, gate_scale = draw_weight(11, num_inputs, torch.int8 if int8 else dtype, device)
    up, up_scale = draw_weight(11, num_inputs, torch.int8 if int8 else dtype, device)
    got = norm_gateup_silu(
        x, gate, up, norm_weight=norm, eps=EPS, gate_scale=gate_scale, up_scale=up_scale, impl="fused"
    )
    assert_close(got, reference(x, gate, up, norm, EPS, gate_scale, up_scale))


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_gateup_silu_rows_are_independent(dtype, device):
    gate_up, _ = draw_weight(12, 576, dtype, device)
    norm = draw(576, dtype=dtype, device=device)
    assert_rows_independent(
        # halves of one stacked matrix, as an engine keeps them
        lambda x: norm_gateup_silu(x, gate_up[:6], gate_up[6:], norm_weight=norm, eps=EPS, impl="fused"),
        draw(8, 576, dtype=dtype, device=device),
    )


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_norm_gateup_silu_writes_nothing_when_done(impl, device):
    x, norm = torch.ones(1, 64, device=device), torch.ones(64, device=device)
    weight, out = torch.ones(4, 64, device=device), torch.full((1, 4), 7.0, device=device)
    for value, untouched in ((1, True), (0, False)):
        norm_gateup_silu(
            x, weight, weight, norm_weight=norm, eps=EPS, out=out, done=flag(value, device), impl=impl
        )
        assert bool((out == 7.0).all()) is untouched


def test_norm_gateup_silu_refuses_weights_that_differ(device):
    x, norm = torch.ones(1, 64, device=device), torch.ones(64, device=device)
    gate = torch.ones(4, 64, device=device)
    with pytest.raises(ValueError, match=r"up must have shape \[4, 64\], got \[5, 64\]"):
        norm_gateup_silu(x, gate, torch.ones(5, 64, device=device), norm_weight=norm, eps=EPS)
    with pytest.raises(ValueError, match=r"up must be torch\.float32 like gate, got torch\.int8"):
        norm_gateup_silu(
            x,
            gate,
            gate.to(torch.int8),
            norm_weight=norm,
            eps=EPS,
            up_scale=torch.ones(4, device=device),
        )
