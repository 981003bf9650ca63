"""Each form of attention is the definition: causal from the lower right corner, key heads shared by query heads."""

import math

import pytest
import torch

from hambench.engine import attention, linear
from hambench.engine.attention import LEAST_LONG, attend, attend_in_blocks, attend_in_two, causal_mask

CASES = [
    (3, 1, LEAST_LONG, 0),
    (4, 2, LEAST_LONG + 37, 0),
    (2, 2, 3 * LEAST_LONG, 71),
    (9, 3, LEAST_LONG, 500),
]


def inputs(heads, kv_heads, rows, past, dtype=torch.float32, head_dim=16):
    torch.manual_seed(rows + past)
    shapes = (heads, rows, head_dim), (kv_heads, past + rows, head_dim), (kv_heads, past + rows, head_dim)
    return tuple((2 * torch.randn(shape)).to(dtype) for shape in shapes)


def definition(q, keys, values):
    """In float64, a row at a time."""
    q, keys, values = q.double(), keys.double(), values.double()
    (heads, rows, head_dim), past = q.shape, keys.shape[1] - q.shape[1]
    shared = heads // keys.shape[0]
    mixed = torch.empty_like(q)
    for head in range(heads):
        for row in range(rows):
            seen = past + row + 1
            scores = keys[head // shared, :seen] @ q[head, row] / math.sqrt(head_dim)
            mixed[head, row] = scores.softmax(0) @ values[head // shared, :seen]
    return mixed


@pytest.mark.parametrize("form", [attend_in_blocks, attend_in_two])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_long_forms_are_the_definition(form, case):
    if form is attend_in_two and case[3] == 0:
        pytest.skip("two parts need a past")
    q, keys, values = inputs(*case)
    torch.testing.assert_close(form(q, keys, values).double(), definition(q, keys, values), rtol=0, atol=2e-5)


def test_blocks_smaller_than_the_rows_they_share_change_nothing(monkeypatch):
    q, keys, values = inputs(4, 2, 200, 30)
    whole = attend_in_blocks(q, keys, values)
    monkeypatch.setattr(attention, "SCORES_BYTES", 1)
    torch.testing.assert_close(attend_in_blocks(q, keys, values), whole, rtol=0, atol=1e-5)


def test_bfloat16_blocks_are_off_by_a_few_roundings_of_torchs_kernel():
    """Scores rounded to 8 bits move a weight by as much as the score's size: here up to about 20."""
    case = (9, 3, 2 * LEAST_LONG, 100)
    q, keys, values = inputs(*case, dtype=torch.bfloat16)
    mask = torch.full((case[2], case[2] + case[3]), -math.inf, dtype=q.dtype).triu_(case[3] + 1)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        q[None], keys[None], values[None], attn_mask=mask, enable_gqa=True
    )[0]
    right = definition(q, keys, values)
    ours = attend_in_blocks(q, keys, values)
    spread = (theirs.double() - right).square().mean().sqrt()
    assert (ours.double() - right).square().mean().sqrt() < 8 * spread


def test_large_scores_are_not_rounded():
    """Qwen2's key biases make scores of hundreds, where bfloat16 has steps of 2."""
    q, keys, values = inputs(4, 2, LEAST_LONG, 40, dtype=torch.bfloat16)
    keys = keys + 200
    error = attend_in_blocks(q, keys, values).double() - definition(q, keys, values)
    assert error.abs().max() < 0.05


@pytest.mark.parametrize("cpu", ["tiles", "16 bits", "32 bits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("past", [0, 50])
@pytest.mark.parametrize("rows", [1, 5, LEAST_LONG])
def test_attend_is_one_function_whatever_it_picks(cpu, dtype, past, rows, monkeypatch):
    monkeypatch.setattr(attention, "_has_tiles", lambda: cpu == "tiles")
    monkeypatch.setattr(linear, "_multiplies", lambda dtype: cpu != "32 bits")
    q, keys, values = inputs(4, 2, rows, past, dtype)
    mask = causal_mask(rows, past, dtype, q.device)
    tolerance = 2e-5 if dtype == torch.float32 else 0.2
    mixed = attend(q, keys, values, mask)
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed.double(), definition(q, keys, values), rtol=0, atol=tolerance)


def test_a_prompt_is_mixed_in_float32_where_16_bits_are_emulated(monkeypatch):
    seen = []

    def spied(q, keys, values):
        seen.append({tensor.dtype for tensor in (q, keys, values)})
        return attend_in_blocks(q, keys, values)

    monkeypatch.setattr(attention, "attend_in_blocks", spied)
    monkeypatch.setattr(linear, "_multiplies", lambda dtype: False)
    q, keys, values = inputs(4, 2, LEAST_LONG, 0, torch.bfloat16)
    assert attend(q, keys, values, None).dtype == torch.bfloat16
    assert seen == [{torch.float32}]
