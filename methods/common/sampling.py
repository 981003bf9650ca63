"""Pure functions that choose tokens from logits: greedy, temperature, nucleus, exact speculative acceptance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hambench.decoding import SamplingParams
from hambench.engine.greedy import most_probable
from hambench.errors import NotFiniteError


class Accepted(NamedTuple):
    """The result of one verification."""

    num_accepted: int
    """Number of accepted draft tokens."""
    next_token: int
    """The bonus token (all kept) or the correction at the first rejection."""
    num_relaxed: int = 0
    """Kept tokens that are not the target's own: a relaxed rule kept them."""


def generator_for(params: SamplingParams, device: torch.device | str) -> torch.Generator | None:
    """Returns a session's own random generator; ``None`` when greedy."""
    return None if params.greedy else torch.Generator(device=device).manual_seed(params.seed)


def probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """Returns the sampling distribution ``[R, V]`` in float32 for logits ``[R, V]`` of any dtype.

    The nucleus is the smallest set of most probable tokens whose mass reaches ``top_p``.

    Raises:
        NotFiniteError: If a row has no finite maximum.
    """
    if not bool(logits.amax(dim=-1).isfinite().all()):
        raise NotFiniteError
    probs = torch.softmax(logits.float() / params.temperature, dim=-1)
    if params.top_p >= 1:
        return probs
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    # a token stays when the mass before it is still short of top_p: the first one always does
    outside = ordered.cumsum(dim=-1) - ordered >= params.top_p
    # also where top_p is too small for float32
    outside[..., 0] = False
    ordered = ordered.masked_fill(outside, 0.0)
    kept = torch.zeros_like(probs).scatter_(-1, order, ordered)
    return kept / kept.sum(dim=-1, keepdim=True)


def choose(logits: Tensor, params: SamplingParams, generator: torch.Generator | None) -> int:
    """Chooses one token from logits ``[V]``: the argmax (lowest id among equals) or a draw."""
    if generator is None:
        return most_probable(logits[None])[0]
    return draw(probabilities(logits[None], params)[0], generator)


def draw(probs: Tensor, generator: torch.Generator) -> int:
    """Draws one token id from a distribution ``[V]``."""
    return int(torch.multinomial(probs, 1, generator=generator))


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
