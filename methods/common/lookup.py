"""Decoding with proposals that come from tokens alone: propose, verify. Shared by the methods without a draft model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hambench.decoding import KVUsage, Step
from hambench.method_facts import Phase, TokenDrafter

if TYPE_CHECKING:
    from hambench.decoding import Asking
    from hambench.methods.common.sequence import TargetSequence

TAKE_IN = Phase("hambench.methods.common.lookup", "take_in", "draft")
PROPOSE = Phase("hambench.methods.common.lookup", "propose", "draft")


def take_in(drafter: TokenDrafter, sequence: TargetSequence) -> None:
    """Shows a drafter what its sequence has gained."""
    drafter.update(sequence.tokens)


def propose(drafter: TokenDrafter, sequence: TargetSequence) -> list[int]:
    """Proposals; the last token that counts comes from the target itself, so it is never proposed."""
    room = sequence.num_left - 1
    return drafter.propose(sequence.tokens, room) if room > 0 else []


@dataclass
class LookupSession:
    """One sequence: propose, verify."""

    sequence: TargetSequence
    drafter: TokenDrafter

    def prefill(self) -> Asking[Step]:
        """Processes the prompt, emits the first token and shows the drafter both."""
        first = yield from self.sequence.prefill()
        take_in(self.drafter, self.sequence)
        return Step(tokens=(first,))

    def step(self) -> Asking[Step]:
        """Proposes a continuation and emits what the target keeps of it plus one token."""
        from hambench.methods.common.verify import certain, verify

        sequence = self.sequence
        drafted = propose(self.drafter, sequence)
        accepted = yield from verify(sequence, drafted, certain(sequence, drafted))
        take_in(self.drafter, sequence)
        return Step(
            tokens=tuple(sequence.tokens[-accepted.num_accepted - 1 :]),
            drafted=len(drafted),
            accepted=accepted.num_accepted,
            peak_kv_bytes=sequence.most_slots * sequence.cache.bytes_per_slot,
        )

    @property
    def kv(self) -> KVUsage:
        """The target's cache."""
        return KVUsage(self.sequence.cache.slots, self.sequence.cache.bytes_used)
