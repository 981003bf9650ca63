"""The knobs of every method whose drafts the target verifies: what is kept, and from which confidence on. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hambench.decoding import MethodConfig, SamplingParams
from hambench.method_facts import ShortOption
from hambench.methods.common.facts import KV_DTYPES
from hambench.methods.common.verification_rules import (
    ACCEPT,
    DEFAULT_CONFIDENCE,
    Relaxed,
    check_rule,
    check_share,
    relaxed_rule,
)

CONFIDENCE = ShortOption(
    flags=("--confidence",),
    knob="confidence",
    help="How sure a method must be: HAMburger's P(continue), a draft's probabilities, how near a relaxed token is to "
    "the target's best: 0.3:1:0.1, or 0.5,0.8.",
)


@dataclass(frozen=True, kw_only=True)
class VerifiedConfig(MethodConfig):
    """Knobs of verification; a method's own class adds its drafts'."""

    lossless: ClassVar[bool] = True
    confidence_relaxes: ClassVar[bool] = True
    """Whether a confidence alone relaxes acceptance; where it is the drafts', acceptance stays exact."""

    confidence: float | None = None
    """0 to 1. Where acceptance is relaxed, its threshold; 1 keeps the target's own tokens only."""
    accept: str | None = None
    """``exact``, ``relative`` (keep a drafted token while p(d) >= confidence * max p) or ``typical`` (while p(d)
    exceeds min(confidence, sqrt(confidence) * exp(-H(p)))); by default relative with a confidence, else exact."""
    exact_first: int = 0
    """First tokens of an answer of which only the target's own are kept, whatever the rule."""

    kv_dtype: str = "model"
    """How keys and values are stored: as the ``model``'s type, or as ``int8`` with a scale per slot and head. Answers
    are then those of plain decoding over the same rounded cache."""

    def __post_init__(self) -> None:
        check_rule("kv_dtype", self.kv_dtype, KV_DTYPES)
        check_share("confidence", self.confidence)
        if self.accept is not None:
            check_rule("accept", self.accept, ACCEPT)
        if self.exact_first < 0:
            raise ValueError(f"exact_first must be >= 0, got {self.exact_first}")

    @property
    def acceptance(self) -> str:
        """The rule that holds."""
        if self.accept is not None:
            return self.accept
        return "relative" if self.confidence is not None and self.confidence_relaxes else "exact"

    @property
    def relaxed(self) -> Relaxed | None:
        """What is kept beyond the target's own tokens; ``None`` where nothing is."""
        confidence = DEFAULT_CONFIDENCE if self.confidence is None else self.confidence
        return relaxed_rule(self.acceptance, confidence, self.exact_first)

    @property
    def is_lossless(self) -> bool:
        """Whether only the target's own tokens are kept, and its cache is not rounded."""
        return self.relaxed is None and self.kv_dtype == "model"

    @property
    def variant(self) -> str:
        """Relaxed settings, the exact one at confidence 1 included, are a curve of their own."""
        return "" if self.acceptance == "exact" or self.confidence_relaxes else "relaxed"

    def unavailable_when(self, params: SamplingParams) -> str | None:
        """Typical acceptance compares with a distribution, and greedy decoding draws from none."""
        if params.greedy and self.acceptance == "typical" and self.relaxed is not None:
            return (
                f"{self.label}: accept='typical' needs sampling, since greedy decoding has no probabilities to be "
                "typical of: give --temperature, or accept=relative"
            )
        return None
