"""Verification, shared by every method that drafts: one target forward over the pending token and the proposals."""

from __future__ import annotations

import torch
from torch import Tensor

from hambench.methods.sampling import Accepted, accept_greedy, accept_sampled, probabilities
from hambench.methods.sequence import TargetSequence


def verify(sequence: TargetSequence, drafted: list[int], draft_probs: Tensor | None) -> Accepted:
    """Runs the target once over [pending token, k proposals], keeps what it accepts and rolls the cache back.

    Args:
        sequence: The target's side; afterwards it ends with the kept proposals and the next token.
        drafted: k >= 0 proposals.
        draft_probs: ``[k, V]`` distributions they were drawn from; ignored when greedy.
    """
    base = sequence.cache.slots
    logits = sequence.forward([sequence.pending, *drafted], num_logits=len(drafted) + 1)
    if sequence.generator is None or draft_probs is None:
        accepted = accept_greedy(logits, drafted)
    else:
        target_probs = probabilities(logits, sequence.params)
        accepted = accept_sampled(target_probs, draft_probs, drafted, sequence.generator)
    # slots of rejected proposals are forgotten: rollback is a counter
    sequence.cache.truncate(base + 1 + accepted.num_accepted)
    sequence.tokens += [*drafted[: accepted.num_accepted], accepted.next_token]
    return accepted


def certain(sequence: TargetSequence, drafted: list[int]) -> Tensor | None:
    """Draft distributions ``[k, V]`` of a drafter that had no doubt; ``None`` when greedy, where none is needed."""
    if sequence.generator is None:
        return None
    probs = torch.zeros(len(drafted), sequence.model.shape.vocab_size, device=sequence.device)
    probs[torch.arange(len(drafted)), sequence.ids(drafted)] = 1.0
    return probs
