"""Verification for all drafting methods: one target forward over the pending token and the proposals."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hambench.engine.greedy import most_probable
from hambench.methods.common.acceptance import (
    Accepted,
    accept_block,
    accept_greedy,
    accept_greedy_relaxed,
    accept_sampled,
    accept_sampled_relaxed,
)
from hambench.methods.common.sampling import probabilities
from hambench.methods.common.sequence import TargetSequence
from hambench.methods.common.verification_rules import EXACT, Verification

if TYPE_CHECKING:
    from hambench.decoding import Asking

Accept = Callable[[list[int], list[int]], Accepted]
"""From the target's greedy tokens and the proposals to what is kept."""


def verify(
    sequence: TargetSequence,
    drafted: list[int],
    draft_probs: Tensor | None,
    *,
    rules: Verification = EXACT,
    accept: Accept | None = None,
) -> Asking[Accepted]:
    """Runs the target once over [pending token, k proposals], keeps accepted tokens and rolls the cache back.

    Args:
        sequence: The target's side; gets the accepted proposals and the next token appended.
        drafted: k >= 0 proposals.
        draft_probs: Distributions ``[k, V]`` that they were drawn from; ``None`` when greedy.
        rules: Rules of acceptance.
        accept: Decides on greedy proposals; benchmarks that force acceptance replace :func:`accept_greedy`.
    """
    base = sequence.cache.slots
    tokens = [sequence.pending, *drafted]
    if sequence.generator is None and rules.relaxed is None:
        wanted = yield sequence.greedy(tokens)
        accepted = (accept or accept_greedy)(wanted, drafted)
    else:
        out = yield sequence.forward(tokens, num_logits=len(tokens))
        accepted = accept_by(rules, sequence, out.logits, drafted, draft_probs)
    keep(sequence, base, drafted, accepted)
    return accepted


def keep(sequence: TargetSequence, base: int, drafted: list[int], accepted: Accepted) -> None:
    """Appends what was accepted, and rolls the cache back from rejected proposals.

    Args:
        sequence: The target's side, its cache holding the pending token and all proposals.
        base: Slots before them.
        drafted: The proposals.
        accepted: What is kept of them.
    """
    sequence.most_slots = sequence.cache.slots
    # slots of rejected proposals are forgotten: rollback is a counter
    sequence.cache.truncate(base + 1 + accepted.num_accepted)
    sequence.tokens += [*drafted[: accepted.num_accepted], accepted.next_token]


def accept_by(
    rules: Verification,
    sequence: TargetSequence,
    logits: Tensor,
    drafted: list[int],
    draft_probs: Tensor | None,
) -> Accepted:
    """What the rules keep, from the target's logits ``[k + 1, V]``."""
    relaxed, emitted = rules.relaxed, sequence.num_emitted
    if sequence.generator is None:
        if relaxed is None:
            return accept_greedy(most_probable(logits), drafted)
        return accept_greedy_relaxed(logits, drafted, relaxed, num_emitted=emitted)
    assert draft_probs is not None
    probs, generator = probabilities(logits, sequence.params), sequence.generator
    if relaxed is not None:
        return accept_sampled_relaxed(probs, draft_probs, drafted, generator, relaxed, num_emitted=emitted)
    if rules.by_block and drafted:
        return accept_block(probs, draft_probs, drafted, generator)
    return accept_sampled(probs, draft_probs, drafted, generator)


def certain(sequence: TargetSequence, drafted: list[int]) -> Tensor | None:
    """Returns one-hot draft distributions ``[k, V]`` of a deterministic drafter; ``None`` when greedy."""
    if sequence.generator is None:
        return None
    probs = torch.zeros(len(drafted), sequence.model.shape.vocab_size, device=sequence.device)
    probs[torch.arange(len(drafted)), sequence.ids(drafted)] = 1.0
    return probs
