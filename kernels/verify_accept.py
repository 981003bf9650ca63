"""Greedy verification: finds the longest drafted prefix that the target agrees with, and rolls the cache back."""

from __future__ import annotations

import torch
from torch import Tensor

from hambench.kernels import MAX_ROWS
from hambench.kernels._args import check_flag, check_tensor, is_done
from hambench.kernels._dispatch import Impl, use_fused
from hambench.kernels.results import Verdict


def verify_accept(
    drafted: Tensor,
    target: Tensor,
    *,
    slots: Tensor | None = None,
    out: Verdict | None = None,
    done: Tensor | None = None,
    impl: Impl = "auto",
) -> Verdict:
    """Returns the longest prefix of `drafted` that equals the target's greedy tokens, plus the bonus token.

    Args:
        drafted: Proposed ids [k], int64, 1 <= k <= 7.
        target: Greedy ids of the k + 1 verified rows [k + 1], int64; row i holds the token after the first i drafts.
        slots: Cache slots in use [1], int32, including the k + 1 verified ones. Set in place to the number that stay,
            without those of rejected drafts.
        out: Where to write.
        done: Device flag; when set, nothing is written. Needs `out`.
        impl: See :mod:`hambench.kernels`.

    Raises:
        ValueError: If a shape, dtype, device or stride does not fit, or `impl="fused"` can't run here.
    """
    check_tensor("drafted", drafted, [None], dtypes=(torch.int64,))
    k = drafted.shape[0]
    if not 1 <= k < MAX_ROWS:
        raise ValueError(f"drafted must hold 1 to {MAX_ROWS - 1} ids, got {k}")
    check_tensor("target", target, [k + 1], dtypes=(torch.int64,), device=drafted.device)
    check_flag("slots", slots, drafted.device)
    check_flag("done", done, drafted.device)
    if out is None:
        if done is not None:
            raise ValueError("out must be given with done: a skipped call leaves its output as it was")
        out = Verdict(torch.empty_like(target), torch.empty(1, dtype=torch.int32, device=drafted.device))
    check_tensor("out.tokens", out.tokens, [k + 1], dtypes=(torch.int64,), device=drafted.device)
    check_tensor("out.accepted", out.accepted, [1], dtypes=(torch.int32,), device=drafted.device)
    if use_fused("verify_accept", impl, drafted):
        from hambench.kernels.fused.verify_accept import launch

        launch(drafted, target, slots, out, done)
    elif not is_done(done):
        accepted = int((drafted == target[:k]).long().cumprod(0).sum())
        out.tokens.fill_(-1)
        out.tokens[: accepted + 1] = target[: accepted + 1]
        out.accepted.fill_(accepted)
        if slots is not None:
            slots.sub_(k - accepted)
    return out
