"""Bytes per token of drafting and verifying, and the acceptance from which it pays. No torch.

A round drafts k tokens with one forward of the draft each and verifies them with one forward of the target; it emits
the accepted tokens and one more. With independent acceptance a that is E(k, a) = 1 + a + ... + a^k tokens (Leviathan
et al. 2023, arXiv 2211.17192, eq. 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hambench.method_facts import ModelBytes

MAX_DRAFT = 32
"""Longest draft that :meth:`SpeculationBytes.best_draft_length` tries."""


def expected_tokens(k: int, acceptance: float) -> float:
    """E(k, a): tokens per round, the accepted and the bonus token, for independent acceptance."""
    if k < 0:
        raise ValueError(f"k must be >= 0, got {k}")
    if not 0 <= acceptance <= 1:
        raise ValueError(f"acceptance must be in [0, 1], got {acceptance}")
    return float(sum(acceptance**i for i in range(k + 1)))


@dataclass(frozen=True)
class SpeculationBytes:
    """What speculation with an int8 copy of the target costs.

    Args:
        sizes: What the parts of a forward read.
    """

    sizes: ModelBytes

    def per_token(
        self,
        k: int,
        acceptance: float,
        *,
        context: int = 0,
        draft: float | None = None,
        verify_cost: float = 1.0,
        extra_draft_forward: bool = False,
    ) -> float:
        """Bytes per token of verifying ``k`` drafted tokens in one forward.

        Args:
            k: Drafted tokens per round.
            acceptance: Probability that a drafted token is kept, the same and independent for each.
            context: Cached positions, read by target and draft alike.
            draft: Bytes of a draft forward without its cache: the int8 copy's by default, 0 for prompt
                lookup.
            verify_cost: Time of a forward over k + 1 rows, relative to one row; 1 where bandwidth is the
                limit.
            extra_draft_forward: One more draft forward when everything is accepted, as gpt-fast does.
        """
        kv = context * self.sizes.kv_per_slot
        one_draft = self.sizes.int8_draft + kv if draft is None else draft
        drafts = k + (acceptance**k if extra_draft_forward else 0.0)
        return (drafts * one_draft + verify_cost * (self.sizes.step + kv)) / expected_tokens(k, acceptance)

    def kernels_per_token(self, k: int, acceptance: float) -> float:
        """Kernels launched per token: k draft forwards and one of the target per round."""
        return (k + 1) * self.sizes.kernels_per_forward / expected_tokens(k, acceptance)

    def speedup(
        self,
        k: int,
        acceptance: float,
        *,
        context: int = 0,
        verify_cost: float = 1.0,
        extra_draft_forward: bool = False,
    ) -> float:
        """S(k, a): ceiling of the speed-up over vanilla."""
        read = self.per_token(
            k, acceptance, context=context, verify_cost=verify_cost, extra_draft_forward=extra_draft_forward
        )
        return (self.sizes.step + context * self.sizes.kv_per_slot) / read

    def break_even(self, k: int) -> float | None:
        """Acceptance from which k drafted tokens pay; ``None`` if even perfect drafts don't."""
        return _solve(lambda a: self.speedup(k, a) - 1)

    def best_draft_length(self, acceptance: float) -> tuple[int, float]:
        """The k that is fastest at an acceptance, and its speed-up."""
        speeds = {k: self.speedup(k, acceptance) for k in range(1, MAX_DRAFT + 1)}
        best = max(speeds, key=lambda k: speeds[k])
        return best, speeds[best]

    def acceptance_for(self, speedup: float) -> tuple[float, int] | None:
        """Acceptance at which speculation with its best k reaches a speed-up, and that k; ``None`` if it can't."""
        acceptance = _solve(lambda a: self.best_draft_length(a)[1] - speedup, upper=0.9999)
        return None if acceptance is None else (acceptance, self.best_draft_length(acceptance)[0])


def _solve(function: Callable[[float], float], *, upper: float = 1.0) -> float | None:
    # imported when asked: readers of a run need the byte counts only
    from scipy.optimize import brentq

    if function(upper) < 0:
        return None
    if function(0.0) > 0:
        return 0.0
    return float(brentq(function, 0.0, upper, xtol=1e-6))
