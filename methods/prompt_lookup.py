"""Prompt lookup: proposes what followed the last occurrence of the current n-gram, and lets the target verify it.

No draft model and no extra weights; pays where the answer repeats its prompt (summaries, code, retrieval). After
Saxena 2023 (prompt lookup decoding); lossless like every verified method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hambench.decoding import KVUsage, MethodConfig, SamplingParams, Step
from hambench.method_facts import Look, Phase, ShortOption
from hambench.methods.common.facts import DRAFT_TOKENS, SAMPLE, VERIFY

if TYPE_CHECKING:
    from hambench.decoding import Target
    from hambench.methods.common.sequence import TargetSequence


@dataclass(frozen=True, kw_only=True)
class PromptLookupConfig(MethodConfig):
    """Proposes what followed the current words before, without a draft model, and verifies it; lossless."""

    method: ClassVar[str] = "prompt_lookup"
    lossless: ClassVar[bool] = True
    aliases: ClassVar[dict[str, str]] = {"k": "num_draft_tokens", "n": "max_ngram"}
    look: ClassVar[Look | None] = Look("green", "^", (1.5, 1.5))
    phases: ClassVar[tuple[Phase, ...]] = (
        SAMPLE,
        Phase("hambench.methods.prompt_lookup", "NgramIndex.lookup", "draft"),
        Phase("hambench.methods.prompt_lookup", "NgramIndex.update", "draft"),
        *VERIFY,
    )
    short_options: ClassVar[tuple[ShortOption, ...]] = (DRAFT_TOKENS,)

    num_draft_tokens: int = 5
    """Most tokens proposed a step."""
    max_ngram: int = 3
    """Longest suffix looked up; shorter ones are tried when it has no match."""

    def __post_init__(self) -> None:
        if self.num_draft_tokens < 1:
            raise ValueError(f"num_draft_tokens (k) must be >= 1, got {self.num_draft_tokens}")
        if self.max_ngram < 1:
            raise ValueError(f"max_ngram (n) must be >= 1, got {self.max_ngram}")

    def build(self, target: Target) -> PromptLookup:
        """Wraps the target; there is nothing to load."""
        return PromptLookup(self.label, self, target)


@dataclass(frozen=True)
class PromptLookup:
    """The target, proposing from its own context."""

    name: str
    config: PromptLookupConfig
    target: Target
    lossless: bool = True
    extra_weight_bytes: int = 0

    def warmup(self) -> None:
        """Decodes a few tokens; the made-up prompt repeats itself, so verification is warmed too."""
        from hambench.methods.common.sequence import decode_a_little

        decode_a_little(self)

    def start(self, prompt_ids: Sequence[int], params: SamplingParams) -> PromptLookupSession:
        """Opens a session; see :class:`hambench.decoding.DecodingMethod`."""
        from hambench.methods.common.sequence import TargetSequence

        sequence = TargetSequence(self.target, prompt_ids, params)
        # a short answer has no room for a long draft
        sequence.prepare(range(1, min(self.config.num_draft_tokens, params.max_new_tokens - 1) + 2))
        return PromptLookupSession(self.config, sequence, NgramIndex(self.config.max_ngram))


class NgramIndex:
    """Where each n-gram of a growing sequence was last followed by something.

    Args:
        max_ngram: Longest n-gram kept.
    """

    def __init__(self, max_ngram: int) -> None:
        self._max_ngram = max_ngram
        self._continuation: dict[tuple[int, ...], int] = {}
        self._num_indexed = 1

    def update(self, tokens: Sequence[int]) -> None:
        """Indexes the n-grams that have gained a continuation since the last call."""
        for position in range(self._num_indexed, len(tokens)):
            for length in range(1, min(self._max_ngram, position) + 1):
                self._continuation[tuple(tokens[position - length : position])] = position
        self._num_indexed = max(self._num_indexed, len(tokens))

    def lookup(self, tokens: Sequence[int], num_tokens: int) -> list[int]:
        """Up to ``num_tokens`` tokens that followed the longest suffix seen before; empty without a match."""
        for length in range(min(self._max_ngram, len(tokens) - 1), 0, -1):
            position = self._continuation.get(tuple(tokens[-length:]))
            if position is not None:
                return list(tokens[position : position + num_tokens])
        return []


@dataclass
class PromptLookupSession:
    """One sequence: look up, verify."""

    config: PromptLookupConfig
    sequence: TargetSequence
    index: NgramIndex

    def prefill(self) -> Step:
        """Processes the prompt, emits the first token and indexes the prompt."""
        first = self.sequence.prefill()
        self.index.update(self.sequence.tokens)
        return Step(tokens=(first,))

    def step(self) -> Step:
        """Proposes a continuation and emits what the target keeps of it plus one token."""
        from hambench.methods.common.verify import certain, verify

        sequence = self.sequence
        # the last token that counts comes from the target itself: proposing it would be wasted work
        room = min(self.config.num_draft_tokens, sequence.num_left - 1)
        drafted = self.index.lookup(sequence.tokens, room) if room > 0 else []
        accepted = verify(sequence, drafted, certain(sequence, drafted))
        self.index.update(sequence.tokens)
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
