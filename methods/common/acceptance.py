"""Decides which drafted tokens a verification keeps: exactly, relaxed, or as a block. Pure functions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hambench.engine.greedy import most_probable
from hambench.methods.common.sampling import draw
from hambench.methods.common.verification_rules import Relaxed


class Accepted(NamedTuple):
    """The result of one verification."""

    num_accepted: int
    """Number of accepted draft tokens."""
    next_token: int
    """The bonus token (all kept) or the correction at the first rejection."""
    relaxed: tuple[int, ...] = ()
    """Places of accepted draft tokens that are not the target's own: a relaxed rule kept them."""


def accept_greedy(wanted: list[int], drafted: list[int]) -> Accepted:
    """Keeps drafted tokens while they equal the target's own.

    Args:
        wanted: The target's k + 1 greedy tokens; number i comes after i drafted ones.
        drafted: k proposals.
    """
    num_accepted = 0
    while num_accepted < len(drafted) and drafted[num_accepted] == wanted[num_accepted]:
        num_accepted += 1
    return Accepted(num_accepted, wanted[num_accepted])


def accept_sampled(
    target_probs: Tensor, draft_probs: Tensor, drafted: list[int], generator: torch.Generator
) -> Accepted:
    """Keeps drafted tokens with probability min(1, p/q), else draws from the residual.

    The emitted tokens are then distributed exactly as the target's (Leviathan et al. 2023, arXiv 2211.17192).

    Args:
        target_probs: p, ``[k + 1, V]``.
        draft_probs: q, ``[k, V]``, the distributions that the proposals were drawn from.
        drafted: k proposals.
        generator: Generator on the probabilities' device.
    """
    uniforms = torch.rand(len(drafted), generator=generator, device=target_probs.device).tolist()
    for index, token in enumerate(drafted):
        p, q = float(target_probs[index, token]), float(draft_probs[index, token])
        # u < p/q without the division: q > 0, because the token was drawn from q
        if uniforms[index] * q < p:
            continue
        return Accepted(index, draw_residual(target_probs[index], draft_probs[index], generator))
    return Accepted(len(drafted), draw(target_probs[len(drafted)], generator))


def draw_residual(
    target_probs: Tensor, draft_probs: Tensor, generator: torch.Generator, *, weight: float = 1.0
) -> int:
    """Draws from what the target's distribution ``[V]`` has over the draft's: max(0, weight * p - q), normalised."""
    residual = (weight * target_probs - draft_probs).clamp_(min=0)
    mass = residual.sum()
    # p == q up to rounding leaves nothing over: the target's own row is then the same distribution
    return draw(residual / mass if mass > 0 else target_probs, generator)


def accept_greedy_relaxed(logits: Tensor, drafted: list[int], rule: Relaxed, *, num_emitted: int) -> Accepted:
    """Keeps drafted tokens while they are the target's own or, by the rule, nearly as probable.

    Args:
        logits: The target's, ``[k + 1, V]``; row i comes after i drafted tokens.
        drafted: k proposals.
        rule: ``relative``: greedy decoding has no distribution of which a token could be typical.
        num_emitted: Tokens of the answer before these.

    Raises:
        NotFiniteError: If a row has no finite maximum.
        ValueError: If the rule is of another kind.
    """
    if rule.kind != "relative":
        raise ValueError(f"rule must be 'relative' where tokens are not sampled, got {rule.kind!r}")
    wanted = most_probable(logits)
    # p(d) / max p is the exponential of the logits' difference, without a softmax over the vocabulary
    least = math.log(rule.threshold) if rule.threshold > 0 else -math.inf
    relaxed: list[int] = []
    for index, token in enumerate(drafted):
        if token == wanted[index]:
            continue
        behind = float(logits[index, token].float() - logits[index, wanted[index]].float())
        if num_emitted + index < rule.exact_first or behind < least:
            return Accepted(index, wanted[index], tuple(relaxed))
        relaxed.append(index)
    return Accepted(len(drafted), wanted[len(drafted)], tuple(relaxed))


def accept_sampled_relaxed(
    target_probs: Tensor,
    draft_probs: Tensor,
    drafted: list[int],
    generator: torch.Generator,
    rule: Relaxed,
    *,
    num_emitted: int,
) -> Accepted:
    """Keeps a drafted token that exact acceptance keeps, or that the rule keeps; else draws from the residual.

    The random numbers are those of exact acceptance: where the rule keeps nothing more, the tokens are the same.

    Args:
        target_probs: p, ``[k + 1, V]``: what tokens are drawn from, temperature and nucleus applied.
        draft_probs: q, ``[k, V]``: the very distributions that the proposals were drawn from.
        drafted: k proposals.
        generator: On the probabilities' device.
        rule: Either kind.
        num_emitted: Tokens of the answer before these.
    """
    uniforms = torch.rand(len(drafted), generator=generator, device=target_probs.device).tolist()
    relaxed: list[int] = []
    for index, token in enumerate(drafted):
        p, q = float(target_probs[index, token]), float(draft_probs[index, token])
        if uniforms[index] * q < p:
            continue
        if num_emitted + index < rule.exact_first or not keeps(rule, target_probs[index], token):
            instead = draw_residual(target_probs[index], draft_probs[index], generator)
            return Accepted(index, instead, tuple(relaxed))
        relaxed.append(index)
    return Accepted(len(drafted), draw(target_probs[len(drafted)], generator), tuple(relaxed))


def keeps(rule: Relaxed, probs: Tensor, token: int) -> bool:
    """Whether a rule keeps a token under the target's distribution ``[V]``."""
    p = float(probs[token])
    if rule.kind == "relative":
        return p >= rule.threshold * float(probs.max())
    entropy = -float(torch.special.xlogy(probs, probs).sum())
    return p > min(rule.threshold, math.sqrt(rule.threshold) * math.exp(-entropy))


def accept_block(
    target_probs: Tensor, draft_probs: Tensor, drafted: list[int], generator: torch.Generator
) -> Accepted:
    """Verifies a draft as a block: keeps as many tokens as its joint probabilities allow, at least as many on average.

    The emitted tokens are distributed exactly as the target's (Sun et al. 2024, arXiv 2403.10444, algorithm 2). The
    draft may end early, if the decision to end it does not depend on its last token.

    Args:
        target_probs: p, ``[k + 1, V]``.
        draft_probs: q, ``[k, V]``: the very distributions that the proposals were drawn from.
        drafted: k proposals.
        generator: On the probabilities' device.
    """
    weights, keep_probs = block_acceptance(target_probs, draft_probs, drafted)
    uniforms = torch.rand(len(drafted), generator=generator, device=target_probs.device).tolist()
    num_accepted = max(
        (length for length in range(1, len(drafted) + 1) if uniforms[length - 1] < keep_probs[length - 1]),
        default=0,
    )
    if num_accepted == len(drafted):
        return Accepted(num_accepted, draw(target_probs[num_accepted], generator))
    target, draft = target_probs[num_accepted], draft_probs[num_accepted]
    return Accepted(num_accepted, draw_residual(target, draft, generator, weight=weights[num_accepted]))


def block_acceptance(
    target_probs: Tensor, draft_probs: Tensor, drafted: list[int]
) -> tuple[list[float], list[float]]:
    """Weights w of lengths 0 to k, and the probabilities h of keeping each length 1 to k, tried apart.

    w(0) = 1, w(i) = min(1, w(i-1) * p(d_i) / q(d_i)). For i < k, h(i) = s / (s + 1 - w(i)) with
    s = sum of max(0, w(i) * p - q) over the tokens at i + 1; h(k) = w(k). The longest length that is kept counts.
    """
    weights = [1.0]
    keep_probs: list[float] = []
    for index, token in enumerate(drafted):
        p, q = float(target_probs[index, token]), float(draft_probs[index, token])
        # q > 0, because the token was drawn from it
        weight = min(1.0, weights[-1] * p / q)
        weights.append(weight)
        if index + 1 == len(drafted):
            keep_probs.append(weight)
            break
        surplus = float((weight * target_probs[index + 1] - draft_probs[index + 1]).clamp_(min=0).sum())
        rest = surplus + 1 - weight
        # nothing left over and nothing to reject: p equals q there
        keep_probs.append(surplus / rest if rest > 0 else 1.0)
    return weights, keep_probs
