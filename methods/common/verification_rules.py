"""Names and limits of the rules by which drafts are stopped and verified; configs check them without torch."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ACCEPT = ("exact", "relative", "typical")
"""What is kept of a draft: the target's own tokens only, or also tokens that it finds nearly as probable."""
DraftStop = Literal["none", "product", "each", "goodput"]
DRAFT_STOP: tuple[DraftStop, ...] = ("none", "product", "each", "goodput")
"""What ends a draft before its longest: nothing; the product of the draft's highest probabilities, or each of them,
under a confidence; or the length at which most tokens per second can be expected."""
VERIFICATION = ("token", "block")
"""Whether sampled drafts are verified one token after another, or as a block (arXiv 2403.10444)."""
DEFAULT_CONFIDENCE = 0.7
"""For a rule that is named without one."""


def check_rule(name: str, value: str, known: Sequence[str]) -> None:
    """Refuses a rule that does not exist.

    Raises:
        ValueError: Naming the argument, its value and what comes closest.
    """
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}{hint}")


def check_share(name: str, value: float | None) -> None:
    """Refuses a confidence that is not a share.

    Raises:
        ValueError: If ``value`` is outside 0 to 1.
    """
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


@dataclass(frozen=True, slots=True)
class Relaxed:
    """A rule that keeps drafted tokens that are not the target's own.

    Args:
        kind: ``relative``: keep while p(d) >= threshold * max p. ``typical``: keep while p(d) exceeds
            min(threshold, sqrt(threshold) * exp(-H(p))), H in nats (Cai et al. 2024, Medusa, arXiv 2401.10774).
        threshold: The confidence, in [0, 1).
        exact_first: First tokens of an answer that are kept only where they are the target's own.
    """

    kind: str
    threshold: float
    exact_first: int = 0


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification keeps of a draft."""

    relaxed: Relaxed | None = None
    """``None``: the target's own tokens only."""
    by_block: bool = False
    """Whether an exact verification of a sampled draft takes it as a block."""


EXACT = Verification()


def relaxed_rule(accept: str, confidence: float, exact_first: int) -> Relaxed | None:
    """The rule of these knobs; ``None`` if it keeps the target's own tokens only.

    At confidence 1 nothing is relaxed, whatever the rule: that is the control of a sweep.
    """
    if accept == "exact" or confidence >= 1:
        return None
    return Relaxed(accept, confidence, exact_first)
