"""Pure functions that choose tokens from logits: greedy, temperature, nucleus."""

from __future__ import annotations

import torch
from torch import Tensor

from hambench.decoding import SamplingParams
from hambench.engine.greedy import most_probable
from hambench.errors import NotFiniteError


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
