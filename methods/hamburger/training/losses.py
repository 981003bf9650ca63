"""Training losses: soft cross-entropy through a frozen LM head, and the micro-step decoder's objective.

Letters in shapes: R rows, V vocabulary, D hidden size, K top teacher tokens, M macro-steps, S most tokens per
macro-step.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hambench.methods.hamburger.grafts import Grafts
from hambench.methods.hamburger.training.vocabulary import Shortlist, Vocabulary

_CHUNK = 512


class HeadLoss(NamedTuple):
    """Loss and argmax of one pass through the head."""

    loss: Tensor
    """Scalar: the weighted sum of the cross-entropies."""
    argmax: Tensor
    """``[R]``."""


class _FrozenHead(torch.autograd.Function):
    """Cross-entropy against sparse soft targets through a frozen head.

    It computes the gradient in the same sweep over chunks of rows, so that no ``[R, V]`` tensor is ever stored.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        ids: Tensor,
        probs: Tensor,
        weights: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        total = hidden.new_zeros((), dtype=torch.float32)
        # a held-out loss needs no gradient, which is half of the products
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        best = []
        for start in range(0, hidden.shape[0], _CHUNK):
            rows = slice(start, start + _CHUNK)
            logits = (hidden[rows].to(head.dtype) @ head.T).float()
            if bias is not None:
                logits += bias
            highest, chosen = logits.max(-1, keepdim=True)
            best.append(chosen[:, 0])
            target_ids, share, weight = ids[rows].long(), probs[rows].float(), weights[rows].float()[:, None]
            gathered = logits.gather(1, target_ids)
            # one exponential serves the loss and its slope, in place
            exponentials = logits.sub_(highest).exp_()
            sums = exponentials.sum(-1, keepdim=True)
            scale = highest + sums.log()
            mass = share.sum(1, keepdim=True)
            total = total + (weight * (mass * scale - (share * gathered).sum(1, keepdim=True))).sum()
            if gradient is not None:
                slope = exponentials.mul_(weight * mass / sums)
                slope.scatter_add_(1, target_ids, -share * weight)
                gradient[rows] = (slope.to(head.dtype) @ head).to(hidden.dtype)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        argmax = torch.cat(best) if best else ids.new_empty(0, dtype=torch.long)
        ctx.mark_non_differentiable(argmax)
        return total, argmax

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_total.to(gradient.dtype), None, None, None, None, None


def frozen_head_loss(
    hidden: Tensor,
    head: Tensor,
    *,
    ids: Tensor,
    probs: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
) -> HeadLoss:
    """Returns the weighted sum over rows of the cross-entropy between sparse targets and ``softmax(hidden @ head.T)``.

    Args:
        hidden: ``[R, D]``; the only argument that receives a gradient.
        head: ``[V, D]``.
        ids: ``[R, K]`` tokens of the targets; the probabilities of repeated tokens add up.
        probs: ``[R, K]`` probabilities of these tokens.
        weights: ``[R]``.
        bias: ``[V]``, added to the logits.
    """
    return HeadLoss(*_FrozenHead.apply(hidden, head, ids, probs, weights, bias))  # type: ignore[no-untyped-call]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MicroTargets:
    """Tokens that M macro-steps should emit, teacher forced; position j holds the (j + 1)-th token of a macro-step."""

    tokens: Tensor
    """``[M, S]``."""
    top_ids: Tensor
    """``[M, S, K]``: most probable tokens of the unmerged base at each position."""
    top_probs: Tensor
    """``[M, S, K]``: their probabilities."""
    valid: Tensor
    """``[M, S]``: true if the response reaches this position."""


class MicroLoss(NamedTuple):
    """Losses and accuracies of the micro-step decoder, as sums over tokens, not means."""

    tokens: Tensor
    num_tokens: Tensor
    stop: Tensor
    num_stops: Tensor
    right: Tensor
    """``[M, S]``: argmax equals the base's greedy token, with all earlier tokens teacher forced."""
    stop_logits: Tensor
    """``[M, S]``."""
    asked: Tensor
    """``[M, S - 1]``: true if decoding would have asked the stop head after this token."""


def micro_loss(
    grafts: Grafts,
    features: Tensor,
    targets: MicroTargets,
    *,
    embedding: Tensor,
    head: Tensor,
    hard_share: float = 0.5,
    shortlist: Shortlist | None = None,
) -> MicroLoss:
    """Returns the micro-step decoder's loss over M macro-steps, independently of segment ends.

    It follows every macro-step for S tokens. The target is the base's own greedy token. If a text that the base only
    read continues differently, the later steps would not have happened. A token that decoding would not have reached,
    because an earlier one was wrong, skips the pass through the head. Each token counts with the probability of the
    base's best token, because there is little to learn where the base itself is unsure. The stop head learns whether
    the *next* token would be wrong, so its P(continue) is the chance that continuing is right.

    Args:
        grafts: Modules to train.
        features: ``[M, F, D]``.
        targets: Tokens to emit.
        embedding: ``[V, D]``, frozen.
        head: ``[V, D]``, frozen.
        hard_share: Share of the target that is the greedy token alone; the rest is the teacher's distribution.
        shortlist: Computes the loss over part of the vocabulary, at a fraction of the cost; so does the argmax.
    """
    num, steps = targets.tokens.shape
    hidden = grafts.micro(features, F.embedding(targets.tokens[:, : steps - 1], embedding))
    stop_logits = grafts.stop_head(hidden)
    greedy = targets.top_ids[..., 0].long()
    followed = ((targets.tokens == greedy) & targets.valid).cumprod(1).bool()
    right = torch.zeros(num, steps, dtype=torch.bool, device=hidden.device)
    reached = torch.ones(num, dtype=torch.bool, device=hidden.device)
    tokens_loss = features.new_zeros((), dtype=torch.float32)
    num_tokens = features.new_zeros((), dtype=torch.float32)
    vocabulary = Vocabulary(head) if shortlist is None else shortlist.draw()
    for j in range(1, steps):
        rows = (targets.valid[:, j] & reached).nonzero()[:, 0]
        best = targets.top_probs[rows, j].float()
        ids, inside = vocabulary.find(targets.top_ids[rows, j].long())
        shares = best * (1 - hard_share)
        shares[:, 0] += hard_share
        out = frozen_head_loss(
            hidden[rows, j],
            vocabulary.head,
            ids=ids,
            probs=shares * inside,
            weights=best[:, 0],
            bias=vocabulary.bias,
        )
        right[rows, j] = (out.argmax == ids[:, 0]) & inside[:, 0]
        reached = reached & right[:, j] & (targets.tokens[:, j] == greedy[:, j])
        tokens_loss = tokens_loss + out.loss
        num_tokens = num_tokens + best[:, 0].sum()
    # the stop head decides after token j whether to continue with token j + 1
    asked = followed[:, :-1] & targets.valid[:, 1:]
    asked[:, 1:] &= right[:, 1:-1].cumprod(1).bool()
    weights = asked.float()
    stop_loss = F.binary_cross_entropy_with_logits(
        stop_logits[:, : steps - 1].float(), (~right[:, 1:]).float(), weight=weights, reduction="sum"
    )
    return MicroLoss(tokens_loss, num_tokens, stop_loss, weights.sum(), right, stop_logits, asked)
