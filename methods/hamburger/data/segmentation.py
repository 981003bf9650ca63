"""Cuts a response into segments of at most four tokens, by the published rules and one of our own.

A rule takes one value per token of a response and returns segment lengths that sum to the response's length. Values
are the base's conditional entropies in nats, or one minus the token's probability; in both, small means easy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from hambench.errors import DataError

StrategyName = Literal["decreasing", "decreasing_v2", "sliding", "small_group"]
Metric = Literal["entropy", "probability"]

SLIDING_NATS = 4.139
"""Entropy bound of a distribution over 128,256 tokens whose best has probability 0.7: the published threshold."""
SMALL_GROUP_NATS = 0.787
"""The same bound for probability 0.95."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy:
    """A rule with its thresholds; the defaults are the published values."""

    name: StrategyName = "decreasing_v2"
    max_length: int = 4
    ratio: float = 0.3
    """``decreasing``, ``decreasing_v2``: a token joins if it is below this share of the segment's first or highest
    value."""
    threshold: float | None = None
    """Tokens below this value join. Default: 0.05 (``decreasing_v2``), 4.139 (``sliding``), 0.787 (``small_group``)."""

    def __post_init__(self) -> None:
        if self.name not in get_args(StrategyName):
            raise ValueError(f"name must be one of {', '.join(get_args(StrategyName))}, got {self.name!r}")
        if self.max_length < 1:
            raise ValueError(f"max_length must be >= 1, got {self.max_length}")
        if not self.ratio >= 0:
            raise ValueError(f"ratio must be >= 0, got {self.ratio}")
        if self.threshold is not None and not self.threshold >= 0:
            raise ValueError(f"threshold must be >= 0, got {self.threshold}")

    def cut(self, values: Sequence[float]) -> list[int]:
        """Returns the segment lengths of one response.

        Raises:
            DataError: If the response is empty.
        """
        if not values:
            raise DataError("a response must hold at least one token to be cut in segments, got none")
        return _RULES[self.name](self, values)


def check_lengths(lengths: Sequence[int], num_tokens: int, max_length: int, *, where: str) -> None:
    """Checks that segment lengths fit their response.

    Raises:
        DataError: If they do not; the message says where and why.
    """
    if num_tokens < 1:
        raise DataError(f"{where}: the response is empty")
    if sum(lengths) != num_tokens:
        raise DataError(
            f"{where}: segment lengths sum to {sum(lengths)}, the response has {num_tokens} tokens"
        )
    if min(lengths) < 1 or max(lengths) > max_length:
        raise DataError(
            f"{where}: segment lengths must be 1 to {max_length}, got {min(lengths)} to {max(lengths)}"
        )


def _decreasing(rule: Strategy, values: Sequence[float]) -> list[int]:
    lengths: list[int] = []
    first = 0.0
    for value in values:
        if lengths and lengths[-1] < rule.max_length and value <= rule.ratio * first:
            lengths[-1] += 1
        else:
            lengths.append(1)
            first = value
    return lengths


def _decreasing_v2(rule: Strategy, values: Sequence[float]) -> list[int]:
    low = 0.05 if rule.threshold is None else rule.threshold
    lengths: list[int] = []
    highest = 0.0
    for value in values:
        if lengths and lengths[-1] < rule.max_length and (value < low or value < rule.ratio * highest):
            lengths[-1] += 1
            highest = max(highest, value)
        else:
            lengths.append(1)
            highest = value
    return lengths


def _sliding(rule: Strategy, values: Sequence[float]) -> list[int]:
    low = SLIDING_NATS if rule.threshold is None else rule.threshold
    lengths: list[int] = []
    for value in values:
        if lengths and lengths[-1] < rule.max_length and value < low:
            lengths[-1] += 1
        else:
            lengths.append(1)
    return lengths


def _small_group(rule: Strategy, values: Sequence[float]) -> list[int]:
    low = SMALL_GROUP_NATS if rule.threshold is None else rule.threshold
    lengths: list[int] = []
    is_open = False
    for value in values:
        if is_open and value <= low and lengths[-1] < rule.max_length:
            lengths[-1] += 1
        else:
            lengths.append(1)
        # a hard token stands alone, and the next one starts a segment whatever its value
        is_open = value <= low
    return lengths


_RULES: dict[StrategyName, Callable[[Strategy, Sequence[float]], list[int]]] = {
    "decreasing": _decreasing,
    "decreasing_v2": _decreasing_v2,
    "sliding": _sliding,
    "small_group": _small_group,
}
