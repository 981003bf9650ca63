"""Bytes per token of drafting and verifying, and the break-even acceptance. No torch.

A round drafts k tokens with one draft forward each, verifies them with one target forward, and emits the accepted
tokens and one more. With independent acceptance a, it emits E(k, a) = 1 + a + ... + a^k tokens (Leviathan et al. 2023,
arXiv 2211.17192, eq. 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hambench.method_facts import ModelBytes

MAX_DRAFT = 32
"""Longest draft that :meth:`SpeculationBytes.best_draft_length` tries."""


def expected_tokens(k: int, acceptance: float) -> float:
    """Returns E(k, a), the tokens per round (accepted and bonus) for independent acceptance."""
    if k < 0:
        raise ValueError(f"k must be >= 0, got {k}")
    if not 0 <= acceptance <= 1:
        raise ValueError(f"acceptance must be in [0, 1], got {acceptance}")
    return float(sum(acceptance**i for i in range(k + 1)))


@dataclass(frozen=True)
class SpeculationBytes:
    """The cost of speculation with an int8 copy of the target.

    Args:
        sizes: Bytes that the parts of a forward read.
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
        """Returns the bytes per token of verifying ``k`` drafted tokens in one forward.

        Args:
            k: Drafted tokens per round.
            acceptance: Probability that a drafted token is accepted, equal and independent for each.
            context: Cached positions, read by target and draft alike.
            draft: Bytes of a draft forward without its cache; defaults to the int8 copy's; 0 for prompt lookup.
            verify_cost: Time of a forward over k + 1 rows relative to one row; 1 if bandwidth is the limit.
            extra_draft_forward: Whether full acceptance costs one more draft forward, as in gpt-fast.
        """
        kv = context * self.sizes.kv_per_slot
        one_draft = self.sizes.int8_draft + kv if draft is None else draft
        drafts = k + (acceptance**k if extra_draft_forward else 0.0)
        return (drafts * one_draft + verify_cost * (self.sizes.step + kv)) / expected_tokens(k, acceptance)

    def kernels_per_token(self, k: int, acceptance: float) -> float:
        """Returns the kernels launched per token, for k draft forwards and one target forward per round."""
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
        """Returns S(k, a), the ceiling of the speed-up over vanilla."""
        read = self.per_token(
            k, acceptance, context=context, verify_cost=verify_cost, extra_draft_forward=extra_draft_forward
        )
        return (self.sizes.step + context * self.sizes.kv_per_slot) / read

    def break_even(self, k: int) -> float | None:
        """Returns the break-even acceptance of k drafted tokens; ``None`` if even perfect drafts are slower."""
        return _solve(lambda a: self.speedup(k, a) - 1)

    def best_draft_length(self, acceptance: float) -> tuple[int, float]:
        """Returns the fastest k at an acceptance, and its speed-up."""
        speeds = {k: self.speedup(k, acceptance) for k in range(1, MAX_DRAFT + 1)}
        best = max(speeds, key=lambda k: speeds[k])
        return best, speeds[best]

    def acceptance_for(self, speedup: float) -> tuple[float, int] | None:
        """Returns the acceptance at which the best k reaches a speed-up, and that k; ``None`` if none does."""
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
