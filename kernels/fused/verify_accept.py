"""Fused :func:`hambench.kernels.verify_accept.verify_accept` in one program."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hambench.kernels.results import Verdict


@triton.jit
def verify_accept_kernel(
    p_drafted, p_target, p_slots, p_tokens, p_accepted, p_done, NUM_DRAFTED: tl.constexpr, B: tl.constexpr
):
    if p_done is not None:
        if tl.load(p_done) != 0:
            return
    o = tl.arange(0, B)
    b_drafted = tl.load(p_drafted + o, mask=o < NUM_DRAFTED, other=-1)
    b_target = tl.load(p_target + o, mask=o <= NUM_DRAFTED, other=-1)
    # first disagreement; the row after the last draft always disagrees
    agrees = (o < NUM_DRAFTED) & (b_drafted == b_target)
    accepted = tl.min(tl.where(agrees, B, o), axis=0)
    tl.store(p_tokens + o, tl.where(o <= accepted, b_target, -1), mask=o <= NUM_DRAFTED)
    tl.store(p_accepted, accepted)
    if p_slots is not None:
        tl.store(p_slots, tl.load(p_slots) - (NUM_DRAFTED - accepted))


def launch(drafted: Tensor, target: Tensor, slots: Tensor | None, out: Verdict, done: Tensor | None) -> None:
    """Runs the kernel; the public op has checked the arguments."""
    num_drafted = drafted.shape[0]
    verify_accept_kernel[(1,)](
        drafted,
        target,
        slots,
        out.tokens,
        out.accepted,
        done,
        NUM_DRAFTED=num_drafted,
        B=triton.next_power_of_2(num_drafted + 1),
        num_warps=1,
        enable_fp_fusion=False,
    )
