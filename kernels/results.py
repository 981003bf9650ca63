"""Weights, states and results of the kernels, shared by the ops and their fused versions."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class HeadOutput(NamedTuple):
    """Greedy tokens and logits that the head computes for each of M rows."""

    tokens: Tensor
    """Greedy token ids [M], int64; ties go to the lowest id."""
    logits: Tensor
    """Logits of these tokens [M], float32."""
    log_sum_exp: Tensor | None
    """`log(sum(exp(logits)))` over the vocabulary [M], float32; `exp(logits - log_sum_exp)` is the probability."""

    @classmethod
    def empty(cls, rows: int, device: torch.device | str, *, log_sum_exp: bool = False) -> HeadOutput:
        """Allocates the buffers to pass as `out`."""
        return cls(
            tokens=torch.empty(rows, dtype=torch.int64, device=device),
            logits=torch.empty(rows, dtype=torch.float32, device=device),
            log_sum_exp=torch.empty(rows, dtype=torch.float32, device=device) if log_sum_exp else None,
        )


Residual = Literal["mean", "last"]


class MergeWeights(NamedTuple):
    """Weights of a one-query cross-attention over [embedding ‖ learned position]; D hidden size, P position width."""

    positions: Tensor
    """[S, P], one row per token of a macro-step."""
    wq: Tensor
    """[D, D]."""
    bq: Tensor
    """[D]."""
    wkv: Tensor
    """Keys' rows above values' rows [2 D, D + P], because one pass over the input computes both."""
    bkv: Tensor
    """[2 D]."""
    wo: Tensor
    """[D, D]."""
    bo: Tensor
    """[D]."""


class StopWeights(NamedTuple):
    """A three-layer MLP from a hidden state [D] to one logit; the macro-step stops where its sigmoid is high."""

    w1: Tensor
    """[H, D]."""
    b1: Tensor
    """[H]."""
    w2: Tensor
    """[H, H]."""
    b2: Tensor
    """[H]."""
    w3: Tensor
    """[1, H]."""
    b3: Tensor
    """[1]."""


class MicroState(NamedTuple):
    """State of a macro-step on the device: the tokens it has emitted so far."""

    tokens: Tensor
    """Emitted ids [S], int64; the first `num_tokens` are valid."""
    continue_probs: Tensor
    """P(continue) after each emitted token [S], float32."""
    num_tokens: Tensor
    """Number of emitted tokens [1], int32."""
    done: Tensor
    """1 once the macro-step has ended [1], int32. Every op that receives it then returns at once."""

    @classmethod
    def empty(cls, max_tokens: int, device: torch.device | str) -> MicroState:
        """Allocates an empty state for a macro-step that emits at most `max_tokens`."""
        return cls(
            tokens=torch.zeros(max_tokens, dtype=torch.int64, device=device),
            continue_probs=torch.zeros(max_tokens, dtype=torch.float32, device=device),
            num_tokens=torch.zeros(1, dtype=torch.int32, device=device),
            done=torch.zeros(1, dtype=torch.int32, device=device),
        )


class Verdict(NamedTuple):
    """Tokens that a verification accepted, on the device."""

    tokens: Tensor
    """Accepted drafts and the bonus token [k + 1], int64; -1 past them."""
    accepted: Tensor
    """Number of accepted drafts [1], int32."""
