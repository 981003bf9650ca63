"""Reliability of the stop head: what it says about continuing against how often continuing was right."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

NUM_BINS = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Decisions whose P(continue) lies in one tenth of 0 to 1."""

    low: float
    high: float
    count: int
    mean_probability: float | None
    """Mean P(continue); ``None`` without a decision, like the share."""
    share_right: float | None
    """Share of the decisions where the next token was right."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Reliability curve, and its expected calibration error."""

    bins: tuple[ReliabilityBin, ...]
    count: int
    ece: float
    """Σ over bins of their share of the decisions times the distance between mean P(continue) and share right."""


def reliability(decisions: Sequence[tuple[float, bool]]) -> Reliability | None:
    """Sorts decisions, as P(continue) and whether continuing was right, into ten bins of equal width.

    A probability on the border of two bins belongs to the upper one, and 1 to the last. Without a decision there is no
    curve: ``None``.
    """
    if not decisions:
        return None
    parts: list[list[tuple[float, bool]]] = [[] for _ in range(NUM_BINS)]
    for probability, is_right in decisions:
        parts[min(NUM_BINS - 1, int(probability * NUM_BINS))].append((probability, is_right))
    bins = []
    ece = 0.0
    for number, part in enumerate(parts):
        mean = sum(p for p, _ in part) / len(part) if part else None
        share = sum(is_right for _, is_right in part) / len(part) if part else None
        if mean is not None and share is not None:
            ece += len(part) / len(decisions) * abs(mean - share)
        bins.append(
            ReliabilityBin(
                low=number / NUM_BINS,
                high=(number + 1) / NUM_BINS,
                count=len(part),
                mean_probability=mean,
                share_right=share,
            )
        )
    return Reliability(bins=tuple(bins), count=len(decisions), ece=ece)


def markdown_table(curve: Reliability) -> list[str]:
    """Returns the lines of the curve as a Markdown table."""
    lines = ["| P(continue) | decisions | mean P(continue) | continuing was right |", "|---|---|---|---|"]
    for part in curve.bins:
        mean, share = ("–" if x is None else f"{x:.3f}" for x in (part.mean_probability, part.share_right))
        lines.append(f"| {part.low:.1f} to {part.high:.1f} | {part.count:,} | {mean} | {share} |")
    lines.append(f"| all | {curve.count:,} | expected calibration error | {curve.ece:.3f} |")
    return lines
