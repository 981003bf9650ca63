from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, draw, draw_weight, flag

from hambench.kernels.lm_head_argmax import lm_head_argmax, reference
from hambench.kernels.results import HeadOutput


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("int8", [False, True], ids=["dense", "int8"])
@pytest.mark.parametrize("norm", [False, True], ids=["normed", "raw"])
def test_lm_head_argmax(rows, dtype, int8, norm, device):
    hidden = draw(rows, 192, dtype=dtype, device=device)
    weight, scale = draw_weight(51, 192, torch.int8 if int8 else dtype, device)
    norm_weight = draw(192, dtype=dtype, device=device) if norm else None
    got = lm_head_argmax(hidden, weight, norm_weight=norm_weight, scale=scale, log_sum_exp=True, impl="fused")
    logits = reference(hidden, weight, norm_weight, 1e-5, scale, round_logits=True)
    # the winner's own logit is compared, not its id: one unit in the last place can swap two close candidates
    ulp = {torch.float32: 1e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    best = logits.max(dim=-1).values
    slack = ulp * best.abs().clamp(min=1)
    picked = logits.gather(1, got.tokens[:, None]).squeeze(1)
    assert (best - picked <= slack).all()
    assert (got.logits - best).abs().le(slack).all()
    assert got.log_sum_exp is not None
    # single logits differ by a rounding, their log-sum-exp by less
    assert (got.log_sum_exp - logits.logsumexp(-1)).abs().le(slack).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_lm_head_argmax_equals_torch_token_for_token_on_exact_arithmetic(dtype, device):
    # small integers: every order of summation gives the same logits, ties included
    hidden = torch.randint(-2, 3, (8, 64), device=device).to(dtype)
    weight = torch.randint(-2, 3, (97, 64), device=device).to(dtype)
    got = lm_head_argmax(hidden, weight, impl="fused")
    want = lm_head_argmax(hidden, weight, impl="reference")
    assert torch.equal(got.tokens, want.tokens)
    assert torch.equal(got.logits, want.logits)


@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lm_head_argmax_gives_ties_to_the_lowest_id(impl, dtype, device):
    weight = torch.zeros(61, 64, dtype=dtype, device=device)
    weight[[9, 23, 60], 0] = 3.0
    weight[5, 0] = -3.0
    hidden = torch.zeros(2, 64, dtype=dtype, device=device)
    hidden[0, 0], hidden[1, 1] = 1.0, 1.0
    got = lm_head_argmax(hidden, weight, impl=impl)
    assert got.tokens.tolist() == [9, 0], "row 1 has only zeros: all ids tie, and -0.0 is 0.0"
    assert got.logits.tolist() == [3.0, 0.0]
    assert lm_head_argmax(-hidden, weight, impl=impl).tokens.tolist() == [5, 0]


def test_lm_head_argmax_rounds_before_it_compares(device):
    # id 1 wins by less than bf16 can tell, so in bf16 it is a tie and id 0 wins
    weight = torch.zeros(4, 64, dtype=torch.bfloat16, device=device)
    weight[0, 0] = 256.0
    weight[1, 0], weight[1, 1] = 256.0, 0.5
    hidden = torch.ones(1, 64, dtype=torch.bfloat16, device=device)
    for impl in ("fused", "reference"):
        assert lm_head_argmax(hidden, weight, impl=impl).tokens.tolist() == [0]
        assert lm_head_argmax(hidden, weight, round_logits=False, impl=impl).tokens.tolist() == [1]


def test_lm_head_argmax_finds_a_winner_among_negative_logits(device):
    weight = -torch.arange(1, 30, device=device).float()[:, None].expand(-1, 64).contiguous()
    got = lm_head_argmax(torch.ones(1, 64, device=device), weight.flip(0).contiguous(), impl="fused")
    assert got.tokens.tolist() == [28]
    assert got.logits.tolist() == [-64.0]


def test_lm_head_argmax_rows_are_independent(device):
    """The log-sum-exp once differed by an ulp for some inputs: its parts were cut by the number of rows."""
    hidden = draw(6, 576, dtype=torch.bfloat16, device=device)
    weight, _ = draw_weight(40, 576, torch.bfloat16, device)
    together = lm_head_argmax(hidden, weight, log_sum_exp=True, round_logits=False, impl="fused")
    for i in range(6):
        alone = lm_head_argmax(hidden[i : i + 1], weight, log_sum_exp=True, round_logits=False, impl="fused")
        assert torch.equal(together.tokens[i], alone.tokens[0])
        assert torch.equal(together.logits[i], alone.logits[0])
        assert torch.equal(together.log_sum_exp[i], alone.log_sum_exp[0])


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_lm_head_argmax_writes_nothing_when_done(impl, device):
    hidden, weight = torch.ones(1, 64, device=device), torch.ones(9, 64, device=device)
    out = HeadOutput.empty(1, device, log_sum_exp=True)
    out.tokens.fill_(77)
    lm_head_argmax(hidden, weight, out=out, done=flag(1, device), impl=impl)
    assert out.tokens.tolist() == [77]
    lm_head_argmax(hidden, weight, out=out, done=flag(0, device), impl=impl)
    assert out.tokens.tolist() == [0]
    with pytest.raises(ValueError, match="out must be given with done"):
        lm_head_argmax(hidden, weight, done=flag(0, device), impl=impl)
