"""Decoding with proposals from tokens alone, shared by the methods without a draft model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hambench.decoding import KVUsage, SamplingParams, Step
from hambench.method_facts import Phase, TokenDrafter
from hambench.methods.common.verification_rules import EXACT, Verification
from hambench.methods.common.verified import VerifiedConfig

if TYPE_CHECKING:
    from hambench.decoding import Asking, Target
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


class LookupConfig(VerifiedConfig):
    """Knobs of a method whose proposals come from tokens alone."""

    num_draft_tokens: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_draft_tokens < 1:
            raise ValueError(f"num_draft_tokens (k) must be >= 1, got {self.num_draft_tokens}")

    @abstractmethod
    def drafter(self) -> TokenDrafter:
        """Returns a fresh drafter of one sequence."""


@dataclass(frozen=True)
class LookupMethod:
    """The target with proposals from the text so far."""

    name: str
    config: LookupConfig
    target: Target
    extra_weight_bytes: int = 0

    @property
    def lossless(self) -> bool:
        """Whether only the target's own tokens are kept."""
        return self.config.is_lossless

    @property
    def kv_bytes_per_position(self) -> int:
        """See :class:`hambench.decoding.DecodingMethod`."""
        from hambench.methods.common.sequence import kv_bytes_per_position

        return kv_bytes_per_position(self.target.llama, self.config.kv_dtype)

    def warmup(self) -> None:
        """Decodes a few tokens; the made-up prompt repeats itself, so verification warms up too."""
        from hambench.methods.common.sequence import decode_a_little

        decode_a_little(self)

    def start(self, prompt_ids: Sequence[int], params: SamplingParams) -> LookupSession:
        """Opens a session; see :class:`hambench.decoding.DecodingMethod`."""
        from hambench.methods.common.sequence import TargetSequence, refuse

        refuse(self.config, params)
        sequence = TargetSequence(self.target, prompt_ids, params, kv_dtype=self.config.kv_dtype)
        # a short answer has no room for a long draft
        most_drafted = min(self.config.num_draft_tokens, params.max_new_tokens - 1)
        sequence.prepare(range(1, most_drafted + 2), logits=self.config.relaxed is not None)
        return LookupSession(sequence, self.drafter_of(sequence), Verification(self.config.relaxed))

    def drafter_of(self, sequence: TargetSequence) -> TokenDrafter:
        """Returns the drafter of a sequence."""
        return self.config.drafter()


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
            relaxed=accepted.relaxed,
            peak_kv_bytes=sequence.most_slots * sequence.cache.bytes_per_slot,
        )

    @property
    def kv(self) -> KVUsage:
        """The target's cache."""
        return KVUsage(self.sequence.cache.slots, self.sequence.cache.bytes_used)
