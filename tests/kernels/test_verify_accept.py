from __future__ import annotations

import pytest
import torch
from kernel_checks import flag

from hambench.kernels.results import Verdict
from hambench.kernels.verify_accept import verify_accept


@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize(
    ("drafted", "target", "tokens", "accepted"),
    [
        ([5], [5, 6], [5, 6], 1),
        ([5], [4, 6], [4, -1], 0),
        ([1, 2, 3, 4], [1, 2, 9, 4, 8], [1, 2, 9, -1, -1], 2),
        ([1, 2, 3], [9, 2, 3, 4], [9, -1, -1, -1], 0),
        ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8], 7),
    ],
)
def test_verify_accept_keeps_the_longest_agreeing_prefix(impl, drafted, target, tokens, accepted, device):
    slots = flag(100 + len(drafted) + 1, device)
    got = verify_accept(
        torch.tensor(drafted, device=device), torch.tensor(target, device=device), slots=slots, impl=impl
    )
    assert got.tokens.tolist() == tokens
    assert got.accepted.item() == accepted
    # of the verified rows stay the last token's and the accepted drafts'
    assert slots.item() == 100 + 1 + accepted


def test_verify_accept_fused_is_the_reference(device):
    for k in range(1, 8):
        target = torch.randint(0, 2, (k + 1,), device=device)
        drafted = torch.randint(0, 2, (k,), device=device)
        fused, plain = (verify_accept(drafted, target, impl=impl) for impl in ("fused", "reference"))
        assert torch.equal(fused.tokens, plain.tokens)
        assert torch.equal(fused.accepted, plain.accepted)


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_verify_accept_writes_nothing_when_done(impl, device):
    out = Verdict(torch.full((2,), 7, device=device), flag(7, device))
    slots = flag(3, device)
    ids = torch.tensor([1, 1], device=device)
    verify_accept(ids[:1], ids, slots=slots, out=out, done=flag(1, device), impl=impl)
    assert (out.tokens.tolist(), out.accepted.item(), slots.item()) == ([7, 7], 7, 3)


def test_verify_accept_refuses_more_drafts_than_a_call_has_rows(device):
    with pytest.raises(ValueError, match="drafted must hold 1 to 7 ids, got 8"):
        verify_accept(torch.zeros(8, dtype=torch.int64), torch.zeros(9, dtype=torch.int64))
