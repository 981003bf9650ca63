"""When a draft ends: after a fixed number of tokens, where the draft is unsure, or where speed is greatest. No torch.

Whether another token is drafted may depend on the tokens before, on the draft's distributions of the tokens already
drafted, and on earlier rounds; never on how probable the token was that was just drawn and is then dropped. A drafted
token is therefore always proposed, and what is asked is the highest probability, whichever token was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from hambench.engine.requests.rows import ChainStop

MEMORY = 0.1
"""Weight of the newest outcome in a moving average of acceptance."""
PRIOR_ACCEPTANCE = 0.8
"""Acceptance at a place that was never drafted, where no shorter draft tells."""


@dataclass(frozen=True, slots=True)
class DraftCosts:
    """Times of a round's parts, in units of one target forward over one row.

    Args:
        draft: delta, one draft forward.
        verify: v(1), v(2), ...: one target forward over so many rows; the last stands for more.
    """

    draft: float
    verify: tuple[float, ...] = (1.0,)

    def of_round(self, num_drafted: int) -> float:
        """v(k + 1) + k * delta."""
        return self.verify[min(num_drafted, len(self.verify) - 1)] + num_drafted * self.draft


def expected_emitted(acceptance: Sequence[float]) -> float:
    """1 + a1 + a1 a2 + ...: tokens of a round, the bonus token included.

    Args:
        acceptance: Of each drafted place, given that all before it were accepted.
    """
    return 1 + math.fsum(math.prod(acceptance[: length + 1]) for length in range(len(acceptance)))


def best_length(acceptance: Sequence[float], costs: DraftCosts) -> int:
    """The length in 1..len(acceptance) at which a round emits most tokens per second; of equals the shortest."""
    speeds = [
        expected_emitted(acceptance[:length]) / costs.of_round(length)
        for length in range(1, len(acceptance) + 1)
    ]
    return 1 + speeds.index(max(speeds))


@dataclass
class Goodput:
    """The draft length of most tokens per second, from the acceptance of the rounds so far.

    Args:
        most: Longest draft.
        costs: Times of a round's parts.
    """

    most: int
    costs: DraftCosts
    acceptance: list[float] = field(default_factory=list)
    """Moving averages, by place, given that all before were accepted; as many as places were tried."""

    def length(self) -> int:
        """Tokens to draft in the next round; at least one, because a place that is never drafted teaches nothing."""
        last = self.acceptance[-1] if self.acceptance else PRIOR_ACCEPTANCE
        untried = [last] * (self.most - len(self.acceptance))
        return best_length([*self.acceptance, *untried][: self.most], self.costs)

    def learn(self, num_drafted: int, num_accepted: int) -> None:
        """Takes in a round."""
        for place in range(min(num_drafted, num_accepted + 1)):
            kept = float(place < num_accepted)
            if place == len(self.acceptance):
                self.acceptance.append(self.acceptance[-1] if self.acceptance else PRIOR_ACCEPTANCE)
            self.acceptance[place] += MEMORY * (kept - self.acceptance[place])


@dataclass
class DraftLength:
    """Decides how long the drafts of one sequence are.

    Args:
        most: Longest draft.
        rule: One of :data:`hambench.methods.common.verification_rules.DRAFT_STOP`.
        confidence: The rule's least probability.
        costs: For ``goodput``.
    """

    most: int
    rule: str = "none"
    confidence: float = 0.0
    costs: DraftCosts = field(default_factory=lambda: DraftCosts(1.0))
    goodput: Goodput | None = field(default=None, init=False)
    _likely: float = field(default=1.0, init=False)

    def __post_init__(self) -> None:
        if self.rule == "goodput":
            self.goodput = Goodput(self.most, self.costs)

    @property
    def asks(self) -> bool:
        """Whether the draft's probabilities are needed."""
        return self.rule in ("product", "each")

    @property
    def stop(self) -> ChainStop | None:
        """What ends a draft by its probabilities, where they are needed."""
        return ChainStop(self.confidence, self.rule == "product") if self.asks else None

    def begin(self) -> int:
        """Begins a round; returns the most tokens to draft."""
        self._likely = 1.0
        return self.most if self.goodput is None else self.goodput.length()

    def goes_on(self, highest: float) -> bool:
        """Whether another token is drafted after one whose distribution had this highest probability."""
        stop = self.stop
        if stop is None:
            return True
        self._likely = stop.likely(self._likely, highest)
        return stop.goes_on(self._likely)

    def learn(self, num_drafted: int, num_accepted: int) -> None:
        """Takes in what became of a round."""
        if self.goodput is not None:
            self.goodput.learn(num_drafted, num_accepted)
