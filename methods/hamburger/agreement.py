"""Held-out figures of HAMburger weights, by confidence: how many tokens they merge, and how often they are right.

The engine decodes answers that the base gave greedily, one macro-step after another. After each, the base's own tokens
replace the emitted ones, so that one early mistake does not affect every later comparison.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch

from hambench.decoding import SamplingParams, answered
from hambench.methods.hamburger.method import Hamburger


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """Counts over all macro-steps, including each response's first, which the unmerged prompt decides."""

    confidence: float
    macro_steps: int
    tokens: int
    """Emitted tokens, without those past the response's end."""
    same: int
    """Emitted tokens that equal the base's own token at their place."""
    firsts: int
    """Macro-steps after at least one merged slot."""
    same_firsts: int
    """Macro-steps among ``firsts`` whose first token is the base's own; it comes from the base that reads merged
    slots."""
    same_of_base: int
    """First tokens of all macro-steps that equal the base's own."""

    @property
    def m(self) -> float:
        """Tokens per macro-step."""
        return self.tokens / self.macro_steps

    @property
    def share_same(self) -> float:
        """Share of tokens that equal the base's own continuation."""
        return self.same / self.tokens

    @property
    def next_token_agreement(self) -> float | None:
        """Share of macro-steps after a merged slot whose first token is the base's; ``None`` if nothing was merged."""
        return self.same_firsts / self.firsts if self.firsts else None

    @property
    def grafted_agreement(self) -> float | None:
        """Share of the micro-step decoder's tokens that are the base's; ``None`` if it emitted none."""
        grafted = self.tokens - self.macro_steps
        return (self.same - self.same_of_base) / grafted if grafted else None


@torch.inference_mode()
def measure(method: Hamburger, answers: Iterable[tuple[Sequence[int], int]]) -> Agreement:
    """Decodes along answers given as ``(ids, prompt length)``; see the module's docstring."""
    macro_steps = tokens = same = firsts = same_firsts = same_of_base = 0
    for ids, prompt in answers:
        response = list(ids[prompt:])
        session = method.start(list(ids[:prompt]), SamplingParams(max_new_tokens=len(response) + 4))
        done, has_fused = 0, False
        while done < len(response):
            emitted = answered(session.step() if done else session.prefill()).tokens
            own = response[done : done + len(emitted)]
            hits = [mine == theirs for mine, theirs in zip(emitted, own, strict=False)]
            macro_steps, tokens, same = macro_steps + 1, tokens + len(own), same + sum(hits)
            same_of_base += hits[0]
            if has_fused:
                firsts, same_firsts = firsts + 1, same_firsts + hits[0]
            if len(own) == len(emitted):
                session.replace_last(own)
            done += len(own)
            has_fused |= len(own) > 1
    return Agreement(
        confidence=method.confidence,
        macro_steps=macro_steps,
        tokens=tokens,
        same=same,
        firsts=firsts,
        same_firsts=same_firsts,
        same_of_base=same_of_base,
    )
