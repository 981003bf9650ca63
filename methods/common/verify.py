"""Verification for all drafting methods: one target forward over the pending token and the proposals."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hambench.methods.common.sampling import Accepted, accept_greedy, accept_sampled, probabilities
from hambench.methods.common.sequence import TargetSequence

if TYPE_CHECKING:
    from hambench.decoding import Asking

Accept = Callable[[list[int], list[int]], Accepted]
"""From the target's greedy tokens and the proposals to what is kept."""


def verify(
    sequence: TargetSequence,
    drafted: list[int],
    draft_probs: Tensor | None,
    *,
    accept: Accept | None = None,
) -> Asking[Accepted]:
    """Runs the target once over [pending token, k proposals], keeps accepted tokens and rolls the cache back.

    Args:
        sequence: The target's side; gets the accepted proposals and the next token appended.
        drafted: k >= 0 proposals.
        draft_probs: Distributions ``[k, V]`` that they were drawn from; ``None`` when greedy.
        accept: Decides on greedy proposals; benchmarks that force acceptance replace :func:`accept_greedy`.
    """
    base = sequence.cache.slots
    tokens = [sequence.pending, *drafted]
    if sequence.generator is None:
        wanted = yield sequence.greedy(tokens)
        accepted = (accept or accept_greedy)(wanted, drafted)
    else:
        assert draft_probs is not None
        out = yield sequence.forward(tokens, num_logits=len(tokens))
        target_probs = probabilities(out.logits, sequence.params)
        accepted = accept_sampled(target_probs, draft_probs, drafted, sequence.generator)
    sequence.most_slots = sequence.cache.slots
    # slots of rejected proposals are forgotten: rollback is a counter
    sequence.cache.truncate(base + 1 + accepted.num_accepted)
    sequence.tokens += [*drafted[: accepted.num_accepted], accepted.next_token]
    return accepted


def certain(sequence: TargetSequence, drafted: list[int]) -> Tensor | None:
    """Returns one-hot draft distributions ``[k, V]`` of a deterministic drafter; ``None`` when greedy."""
    if sequence.generator is None:
        return None
    probs = torch.zeros(len(drafted), sequence.model.shape.vocab_size, device=sequence.device)
    probs[torch.arange(len(drafted)), sequence.ids(drafted)] = 1.0
    return probs
