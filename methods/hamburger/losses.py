"""Losses of training: soft cross-entropy through a frozen LM head, and the micro-step decoder's objective.

Letters in shapes: R rows, V vocabulary, D hidden size, K kept teacher tokens, M macro-steps, S tokens of one at most.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hambench.methods.hamburger.grafts import Grafts

_CHUNK = 512


class HeadLoss(NamedTuple):
    """What a pass through the head gives."""

    loss: Tensor
    """Scalar: the weighted sum of cross-entropies."""
    argmax: Tensor
    """``[R]``."""


class _FrozenHead(torch.autograd.Function):
    """Cross-entropy against sparse soft targets through a head that is not trained.

    The gradient is taken in the same sweep over chunks of rows, so that no ``[R, V]`` tensor is ever kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        ids: Tensor,
        probs: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        best = []
        for start in range(0, hidden.shape[0], _CHUNK):
            rows = slice(start, start + _CHUNK)
            logits = (hidden[rows].to(head.dtype) @ head.T).float()
            best.append(logits.argmax(-1))
            scale = logits.logsumexp(-1, keepdim=True)
            wanted, share, weight = ids[rows].long(), probs[rows].float(), weights[rows].float()[:, None]
            gathered = logits.gather(1, wanted)
            mass = share.sum(1, keepdim=True)
            total = total + (weight * (mass * scale - (share * gathered).sum(1, keepdim=True))).sum()
            slope = logits.sub_(scale).exp_().mul_(weight * mass)
            slope.scatter_add_(1, wanted, -share * weight)
            gradient[rows] = (slope.to(head.dtype) @ head).to(hidden.dtype)
        ctx.save_for_backward(gradient)
        argmax = torch.cat(best) if best else ids.new_empty(0, dtype=torch.long)
        ctx.mark_non_differentiable(argmax)
        return total, argmax

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_total.to(gradient.dtype), None, None, None, None


def frozen_head_loss(
    hidden: Tensor, head: Tensor, *, ids: Tensor, probs: Tensor, weights: Tensor
) -> HeadLoss:
    """Weighted sum over rows of the cross-entropy between sparse targets and ``softmax(hidden @ head.T)``.

    Args:
        hidden: ``[R, D]``; the only argument that gets a gradient.
        head: ``[V, D]``.
        ids: ``[R, K]`` tokens of the targets; repeats add up.
        probs: ``[R, K]`` their probabilities.
        weights: ``[R]``.
    """
    return HeadLoss(*_FrozenHead.apply(hidden, head, ids, probs, weights))  # type: ignore[no-untyped-call]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MicroTargets:
    """What M macro-steps should emit, teacher forced: position j holds the (j + 1)-th token of the macro-step."""

    tokens: Tensor
    """``[M, S]``."""
    top_ids: Tensor
    """``[M, S, K]``: the un-fused base's distribution at each."""
    top_probs: Tensor
    """``[M, S, K]``."""
    valid: Tensor
    """``[M, S]``: whether the response reaches so far."""


class MicroLoss(NamedTuple):
    """Losses and accuracies of the micro-step decoder; sums over what they count, not means."""

    tokens: Tensor
    num_tokens: Tensor
    stop: Tensor
    num_stops: Tensor
    right: Tensor
    """``[M, S]``: argmax equals the token, all tokens before it teacher forced."""
    stop_logits: Tensor
    """``[M, S]``."""


def micro_loss(
    grafts: Grafts,
    features: Tensor,
    targets: MicroTargets,
    *,
    embedding: Tensor,
    head: Tensor,
    hard_share: float = 0.5,
    unreached_weight: float = 0.0,
) -> MicroLoss:
    """The micro-step decoder's loss over M macro-steps, wherever their segments end.

    Every macro-step is followed for S tokens. A token that decoding would not have reached, as an earlier one was
    wrong, counts only ``unreached_weight``; at zero, the default, it is spared its pass through the head. The stop head
    learns whether the *next* token would come out wrong: then its P(continue) is the chance that going on is right.

    Args:
        grafts: The modules trained.
        features: ``[M, F, D]``.
        targets: What should come out.
        embedding: ``[V, D]``, not trained here.
        head: ``[V, D]``, not trained here.
        hard_share: Share of the target that is the token itself; the rest is the teacher's distribution.
        unreached_weight: See above.
    """
    num, steps = targets.tokens.shape
    hidden = grafts.micro(features, F.embedding(targets.tokens[:, : steps - 1], embedding))
    stop_logits = grafts.stop_head(hidden)
    right = torch.zeros(num, steps, dtype=torch.bool, device=hidden.device)
    reached = torch.ones(num, dtype=torch.bool, device=hidden.device)
    tokens_loss = features.new_zeros((), dtype=torch.float32)
    num_tokens = features.new_zeros((), dtype=torch.float32)
    for j in range(1, steps):
        wanted = targets.valid[:, j] & (reached if unreached_weight == 0 else True)
        rows = wanted.nonzero()[:, 0]
        token = targets.tokens[rows, j]
        weights = torch.where(reached[rows], 1.0, unreached_weight)
        out = frozen_head_loss(
            hidden[rows, j],
            head,
            ids=torch.cat([targets.top_ids[rows, j].long(), token[:, None]], dim=1),
            probs=torch.cat(
                [
                    targets.top_probs[rows, j].float() * (1 - hard_share),
                    torch.full_like(token, 1, dtype=torch.float32)[:, None] * hard_share,
                ],
                dim=1,
            ),
            weights=weights,
        )
        right[rows, j] = out.argmax == token
        reached = reached & right[:, j]
        tokens_loss = tokens_loss + out.loss
        num_tokens = num_tokens + weights.sum()
    # the head is asked after token j whether to go on to token j + 1; past the response's end it must stop
    asked = targets.valid[:, : steps - 1]
    stops = (~right[:, 1:]).float()
    weights = asked.float()
    weights[:, 1:] *= torch.where(right[:, 1:-1].cumprod(1).bool(), 1.0, unreached_weight)
    stop_loss = F.binary_cross_entropy_with_logits(
        stop_logits[:, : steps - 1].float(), stops, weight=weights, reduction="sum"
    )
    return MicroLoss(tokens_loss, num_tokens, stop_loss, weights.sum(), right, stop_logits)
