"""Decoding with proposals from tokens alone, shared by the methods without a draft model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hambench.decoding import KVUsage, Step
from hambench.method_facts import Phase, TokenDrafter
from hambench.methods.common.verification_rules import EXACT, Verification

if TYPE_CHECKING:
    from hambench.decoding import Asking
    from hambench.methods.common.sequence import TargetSequence

TAKE_IN = Phase("hambench.methods.common.lookup", "take_in", "draft")
PROPOSE = Phase("hambench.methods.common.lookup", "propose", "draft")


def take_in(drafter: TokenDrafter, sequence: TargetSequence) -> None:
    """Passes a sequence's new tokens to its drafter."""
    drafter.update(sequence.tokens)


def propose(drafter: TokenDrafter, sequence: TargetSequence) -> list[int]:
    """Returns proposals, except for the last token within the limit, which comes from the target itself."""
    room = sequence.num_left - 1
    return drafter.propose(sequence.tokens, room) if room > 0 else []


@dataclass
class LookupSession:
    """One sequence of proposing and verifying."""

    sequence: TargetSequence
    drafter: TokenDrafter
    rules: Verification = EXACT

    def prefill(self) -> Asking[Step]:
        """Processes the prompt, emits the first token and passes both to the drafter."""
        first = yield from self.sequence.prefill()
        take_in(self.drafter, self.sequence)
        return Step(tokens=(first,))

    def step(self) -> Asking[Step]:
        """Proposes a continuation; emits the accepted tokens and one more."""
        from hambench.methods.common.verify import certain, verify

        sequence = self.sequence
        drafted = propose(self.drafter, sequence)
        accepted = yield from verify(sequence, drafted, certain(sequence, drafted), rules=self.rules)
        take_in(self.drafter, sequence)
        return Step(
            tokens=tuple(sequence.tokens[-accepted.num_accepted - 1 :]),
            drafted=len(drafted),
            accepted=accepted.num_accepted,
            relaxed=accepted.num_relaxed,
            peak_kv_bytes=sequence.most_slots * sequence.cache.bytes_per_slot,
        )

    @property
    def kv(self) -> KVUsage:
        """The target's cache."""
        return KVUsage(self.sequence.cache.slots, self.sequence.cache.bytes_used)
