from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, assert_close, draw, flag

from hambench.kernels.merge_tokens import merge_tokens, reference
from hambench.kernels.results import MergeWeights

# hidden size, position width, heads: a head of 9 like SmolLM2's 576 / 64, and one of 16; programs are few, the
# interpreter takes milliseconds for each
SHAPES = [pytest.param(36, 18, 4, id="D36-H4"), pytest.param(32, 16, 2, id="D32-H2")]


def draw_merge(hidden: int, width: int, dtype: torch.dtype, device: torch.device) -> MergeWeights:
    shapes = (
        (4, width),
        (hidden, hidden),
        (hidden,),
        (2 * hidden, hidden + width),
        (2 * hidden,),
        (hidden, hidden),
        (hidden,),
    )
    return MergeWeights(*(draw(*s, dtype=dtype, device=device, spread=s[-1] ** -0.5) for s in shapes))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize(("hidden", "width", "heads"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_merge_tokens(count, hidden, width, heads, dtype, device):
    table = draw(20, hidden, dtype=dtype, device=device)
    weights = draw_merge(hidden, width, dtype, device)
    ids = torch.randint(0, 20, (4,), device=device)
    for residual in ("mean", "last") if count == 4 else ("mean",):
        got = merge_tokens(
            ids, flag(count, device), table, weights, num_heads=heads, residual=residual, impl="fused"
        )
        assert_close(got, reference(table[ids[:count]], weights, heads, residual))


@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_merge_tokens_passes_one_token_through_unchanged(impl, dtype, device):
    table = draw(20, 32, dtype=dtype, device=device)
    weights = draw_merge(32, 16, dtype, device)
    ids = torch.tensor([13, 2, 3, 4], device=device)
    got = merge_tokens(ids, flag(1, device), table, weights, num_heads=4, impl=impl)
    assert torch.equal(got, table[13:14])


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_merge_tokens_ignores_ids_past_the_count(impl, device):
    table = draw(20, 32, dtype=torch.float32, device=device)
    weights = draw_merge(32, 16, torch.float32, device)
    first, second = (
        merge_tokens(
            torch.tensor(ids, device=device), flag(2, device), table, weights, num_heads=4, impl=impl
        )
        for ids in ([3, 4, 5, 6], [3, 4, 0, 19])
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize("count", [1, 3])
def test_merge_tokens_writes_nothing_when_done(impl, count, device):
    table, weights = torch.ones(5, 32, device=device), draw_merge(32, 16, torch.float32, device)
    ids, out = torch.zeros(4, dtype=torch.int64, device=device), torch.full((1, 32), 7.0, device=device)
    merge_tokens(
        ids, flag(count, device), table, weights, num_heads=4, out=out, done=flag(1, device), impl=impl
    )
    assert (out == 7.0).all()


def test_merge_tokens_refuses_heads_that_do_not_divide(device):
    table, weights = torch.ones(5, 32, device=device), draw_merge(32, 16, torch.float32, device)
    ids = torch.zeros(4, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="num_heads must divide the hidden size 32, got 5"):
        merge_tokens(ids, flag(2, device), table, weights, num_heads=5)
