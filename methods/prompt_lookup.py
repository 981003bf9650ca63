"""Prompt lookup: proposes what followed the last occurrence of the current n-gram, and lets the target verify it.

It needs no draft model and no extra weights, and pays off if the answer repeats its prompt (summaries, code,
retrieval). After Saxena 2023 (prompt lookup decoding); lossless like every verified method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hambench.method_facts import Look, Phase, ShortOption
from hambench.methods.common.facts import DRAFT_TOKENS, SAMPLE, VERIFY
from hambench.methods.common.lookup import PROPOSE, TAKE_IN, LookupConfig, LookupMethod
from hambench.methods.common.verified import CONFIDENCE

if TYPE_CHECKING:
    from hambench.decoding import Target


@dataclass(frozen=True, kw_only=True)
class PromptLookupConfig(LookupConfig):
    """Proposes what followed the current words before and verifies it, without a draft; lossless unless relaxed."""

    method: ClassVar[str] = "prompt_lookup"
    aliases: ClassVar[dict[str, str]] = {"k": "num_draft_tokens", "n": "max_ngram", "c": "confidence"}
    beyond_all: ClassVar[str] = "other lengths (-k) and relaxed acceptance (--confidence)"
    look: ClassVar[Look | None] = Look("green", "^", (1.5, 1.5))
    phases: ClassVar[tuple[Phase, ...]] = (SAMPLE, PROPOSE, TAKE_IN, *VERIFY)
    short_options: ClassVar[tuple[ShortOption, ...]] = (DRAFT_TOKENS, CONFIDENCE)

    num_draft_tokens: int = 5
    """Most tokens proposed a step."""
    max_ngram: int = 3
    """Longest suffix looked up; shorter ones are tried when it has no match."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_ngram < 1:
            raise ValueError(f"max_ngram (n) must be >= 1, got {self.max_ngram}")

    def drafter(self) -> NgramIndex:
        """Returns the index of one sequence."""
        return NgramIndex(self.max_ngram, self.num_draft_tokens)

    def token_drafter(self) -> NgramIndex | None:
        """Returns the index; ``None`` if relaxed, because acceptance then does not follow from tokens."""
        return self.drafter() if self.is_lossless else None

    def build(self, target: Target) -> LookupMethod:
        """Wraps the target; loads nothing."""
        return LookupMethod(self.label, self, target)


class NgramIndex:
    """Maps each n-gram of a growing sequence to its last position with a continuation.

    Args:
        max_ngram: Length of the longest n-gram.
        num_draft_tokens: Maximum number of tokens per proposal.
    """

    def __init__(self, max_ngram: int, num_draft_tokens: int) -> None:
        self._max_ngram, self._num_draft_tokens = max_ngram, num_draft_tokens
        self._continuation: dict[tuple[int, ...], int] = {}
        self._num_indexed = 1

    def update(self, tokens: Sequence[int]) -> None:
        """Indexes the n-grams that got a continuation since the last call."""
        for position in range(self._num_indexed, len(tokens)):
            for length in range(1, min(self._max_ngram, position) + 1):
                self._continuation[tuple(tokens[position - length : position])] = position
        self._num_indexed = max(self._num_indexed, len(tokens))

    def propose(self, tokens: Sequence[int], num_tokens: int) -> list[int]:
        """Returns up to ``num_tokens`` tokens that followed the longest suffix seen before; empty without a match."""
        for length in range(min(self._max_ngram, len(tokens) - 1), 0, -1):
            position = self._continuation.get(tuple(tokens[-length:]))
            if position is not None:
                return list(tokens[position : position + min(num_tokens, self._num_draft_tokens)])
        return []
