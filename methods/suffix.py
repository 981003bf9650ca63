"""Suffix decoding: proposes the most frequent continuation of the text's last tokens, and verifies it.

It needs no draft model and no extra weights. Prompt lookup copies after a short n-gram; here the length of a match
decides how many tokens to propose, and counts decide which match and which continuation. After Oliaro et al. 2024
(SuffixDecoding, arXiv 2411.04975); lossless like every verified method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from hambench.decoding import KnobValue
from hambench.method_facts import Look, Phase, ShortOption
from hambench.methods.common.facts import DRAFT_TOKENS, SAMPLE, VERIFY
from hambench.methods.common.lookup import PROPOSE, TAKE_IN, LookupConfig, LookupMethod
from hambench.methods.common.suffix_automaton import SEPARATOR, Continuation, Match, SuffixAutomaton
from hambench.methods.common.verified import CONFIDENCE

if TYPE_CHECKING:
    from hambench.decoding import Target
    from hambench.methods.common.sequence import TargetSequence

DEPTH = 32
"""Longest match whose continuations are counted."""


@dataclass(frozen=True, kw_only=True)
class SuffixConfig(LookupConfig):
    """Proposes what most often followed the longest matches of the text and verifies it; lossless unless relaxed."""

    method: ClassVar[str] = "suffix"
    aliases: ClassVar[dict[str, str]] = {
        "k": "num_draft_tokens",
        "p": "min_probability",
        "cache": "earlier_answers",
        "c": "confidence",
    }
    beyond_all: ClassVar[str] = (
        "other lengths (-k), relaxed acceptance (--confidence) and earlier answers (cache)"
    )
    look: ClassVar[Look | None] = Look("purple", "v", (6, 2, 1.5, 2))
    phases: ClassVar[tuple[Phase, ...]] = (SAMPLE, PROPOSE, TAKE_IN, *VERIFY)
    short_options: ClassVar[tuple[ShortOption, ...]] = (DRAFT_TOKENS, CONFIDENCE)
    gate_settings: ClassVar[tuple[dict[str, KnobValue], ...]] = ({}, {"k": 4, "p": 0.5})

    num_draft_tokens: int = 16
    """Most tokens proposed a step."""
    factor: float = 1.0
    """Most tokens proposed per matched token: a match of n tokens earns factor * n."""
    min_probability: float = 0.5
    """Proposals end where the product of relative frequencies falls under this."""
    earlier_answers: int = 0
    """Newest answers of the same repeat whose tokens are searched too; an answer's counts depend on those before it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.factor <= 1000:
            raise ValueError(f"factor must be in (0, 1000], got {self.factor}")
        if not 0 <= self.min_probability <= 1:
            raise ValueError(f"min_probability (p) must be in [0, 1], got {self.min_probability}")
        if self.earlier_answers < 0:
            raise ValueError(f"earlier_answers (cache) must be >= 0, got {self.earlier_answers}")

    @property
    def depends_on_order(self) -> bool:
        """Whether the method searches earlier answers."""
        return self.earlier_answers > 0

    def token_drafter(self) -> SuffixDrafter | None:
        """Returns the drafter of one sequence; ``None`` with earlier answers or if relaxed."""
        return None if self.earlier_answers or not self.is_lossless else self.drafter()

    def drafter(self) -> SuffixDrafter:
        """Returns the drafter of one sequence."""
        return SuffixDrafter(self)

    def build(self, target: Target) -> LookupMethod:
        """Wraps the target; loads nothing."""
        if not self.earlier_answers:
            return LookupMethod(self.label, self, target)
        return Suffix(self.label, self, target, earlier=EarlierAnswers(self.earlier_answers))


class SuffixDrafter:
    """Proposes tokens from one sequence, and from earlier answers if there are any.

    Args:
        config: The knobs.
        earlier: Earlier answers, read-only.
    """

    def __init__(self, config: SuffixConfig, earlier: SuffixAutomaton | None = None) -> None:
        self._config, self._earlier = config, earlier
        self._own = SuffixAutomaton(DEPTH)
        self._num_seen = 0
        self._in_earlier = Match(0, 0)

    def update(self, tokens: Sequence[int]) -> None:
        """See :class:`hambench.method_facts.TokenDrafter`."""
        for token in tokens[self._num_seen :]:
            self._own.add(token)
            if self._earlier is not None:
                self._in_earlier = self._earlier.follow(self._in_earlier, token)
        self._num_seen = len(tokens)

    def propose(self, tokens: Sequence[int], num_tokens: int) -> list[int]:
        """See :class:`hambench.method_facts.TokenDrafter`."""
        found = self._continuation(self._own, self._own.repeated_suffix(), num_tokens)
        if self._earlier is not None:
            earlier = self._continuation(self._earlier, self._in_earlier, num_tokens)
            found = earlier if earlier.expected > found.expected else found
        return found.tokens

    def _continuation(self, automaton: SuffixAutomaton, match: Match, num_tokens: int) -> Continuation:
        knobs = self._config
        return automaton.continuation(
            match,
            min(num_tokens, knobs.num_draft_tokens),
            factor=knobs.factor,
            min_probability=knobs.min_probability,
        )


@dataclass
class EarlierAnswers:
    """The newest answers of one method, and an automaton over them.

    An answer is added when the next one begins, because only then it is complete.
    """

    most: int
    answers: list[tuple[int, ...]] = field(default_factory=list)
    automaton: SuffixAutomaton = field(default_factory=lambda: SuffixAutomaton(DEPTH))
    # the growing tokens of the newest answer and where it begins; its session would keep the KV cache alive
    open: list[tuple[list[int], int]] = field(default_factory=list)

    def next(self, sequence: TargetSequence) -> SuffixAutomaton:
        """Adds the complete answers; returns the automaton for the next answer's drafter."""
        done = [tuple(tokens[start:]) for tokens, start in self.open]
        self.open = [(sequence.tokens, len(sequence.prompt_ids))]
        self.answers += [answer for answer in done if answer]
        if len(self.answers) > self.most:
            # a drafter that still reads the old automaton keeps it
            self.answers = self.answers[-self.most :]
            self.automaton = SuffixAutomaton(DEPTH)
            done = self.answers
        for answer in done:
            for token in (*answer, SEPARATOR):
                self.automaton.add(token)
        return self.automaton

    def forget(self) -> None:
        """Drops all answers."""
        self.answers, self.automaton, self.open = [], SuffixAutomaton(DEPTH), []


@dataclass(frozen=True)
class Suffix(LookupMethod):
    """Proposals from earlier answers too."""

    config: SuffixConfig
    earlier: EarlierAnswers = field(kw_only=True)

    def drafter_of(self, sequence: TargetSequence) -> SuffixDrafter:
        """Returns a drafter that begins with the earlier answers."""
        return SuffixDrafter(self.config, self.earlier.next(sequence))

    def forget(self) -> None:
        """See :class:`hambench.decoding.DecodingMethod`."""
        self.earlier.forget()
