"""The five words of a comparison, and when each is used.

For a metric with a margin (the smallest effect worth a word):

- *better*, *worse*: the 95 % interval excludes no effect, the permutation test agrees (p ≤ 0.05), and the
  effect itself is at least the margin;
- *equivalent*: the whole interval lies within the margin on both sides;
- *inconclusive*: everything else;
- *not comparable*: the two were not asked the same, or too many samples were answered by one of them only (see
  :mod:`hambench.analysis.comparisons`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hambench.analysis.metrics import Better
from hambench.analysis.paired_tests import PairedResult, adjusted_p_values
from hambench.groups import group_kind
from hambench.records import Comparison, Verdict
from hambench.store import Run

MIN_BLOCKS = 6
"""Fewest blocks that a difference is called on: with five, swapping arms can't reach p = 0.05."""

SIGNIFICANCE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Margins:
    """Smallest effects worth a word: below them a difference is real or not, but does not matter."""

    tps: float = 0.03
    """Relative."""
    kv_bytes: float = 0.01
    """Relative."""
    accuracy: float = 1.5
    """Points."""

    @classmethod
    def of(cls, run: Run) -> Margins:
        """Margins for the machine of a run: 3 % of speed on a GPU, 5 % on a CPU, which is rarely left alone."""
        return cls(tps=0.03 if run.header.environment.get("gpu") else 0.05)


def verdict_of(result: PairedResult, *, margin: float, better: Better) -> tuple[Verdict, str]:
    """The word for an effect, and the reason where the interval alone doesn't give it.

    Args:
        result: The effect, on the scale on which ``margin`` is symmetric (logarithms for ratios).
        margin: Smallest effect worth a word.
        better: Which direction is better.
    """
    low, high = result.low, result.high
    if low is None or high is None or result.p_value is None:
        return "inconclusive", f"{result.num_blocks} paired block gives no interval"
    if -margin < low and high < margin:
        return "equivalent", ""
    excludes_zero = low > 0 or high < 0
    if not excludes_zero or abs(result.effect) < margin:
        half = (high - low) / 2
        needed = math.ceil(result.num_blocks * (half / margin) ** 2) if margin > 0 else 0
        if needed > result.num_blocks:
            return "inconclusive", f"about {needed} paired blocks would tell; there are {result.num_blocks}"
        return "inconclusive", ""
    if result.num_blocks < MIN_BLOCKS:
        return "inconclusive", f"a difference needs {MIN_BLOCKS} paired blocks; there are {result.num_blocks}"
    if result.p_value > SIGNIFICANCE:
        return "inconclusive", f"the interval excludes no effect, the {result.test} test does not"
    return ("better" if (result.effect > 0) == (better == "higher") else "worse"), ""


def exact_verdict(sums: NDArray[np.float64], margin: float, better: Better) -> tuple[Verdict, str]:
    """The word for an exact count on too few samples for statistics.

    Args:
        sums: Numerators and denominators of candidate and baseline, one column per answer.
        margin: Smallest logarithm of a ratio worth a word.
        better: Which direction is better.
    """
    # counts carry no noise: on too few samples for statistics they still are facts about those samples
    logs = np.log(sums[0] / sums[1]) - np.log(sums[2] / sums[3])
    here = f"in each of the {len(logs)} answers"
    if np.all(np.abs(logs) < margin):
        return "equivalent", here
    if np.all(logs >= margin) or np.all(logs <= -margin):
        return ("better" if (logs[0] > 0) == (better == "higher") else "worse"), here
    return "inconclusive", f"differs from answer to answer, and there are {len(logs)}"


def control_false_discoveries(rows: Sequence[Comparison]) -> list[Comparison]:
    """Takes back calls on single tasks that don't stand Benjamini and Hochberg's correction over those tasks."""
    tasks = [row for row in rows if group_kind(row.group) == "task" and row.p_value is not None]
    adjusted = dict(
        zip(
            (row.group for row in tasks),
            adjusted_p_values([row.p_value or 0.0 for row in tasks]),
            strict=True,
        )
    )
    result = []
    for row in rows:
        p = adjusted.get(row.group)
        if row.verdict in ("better", "worse") and p is not None and p > SIGNIFICANCE:
            reason = f"p = {p:.2g} after correcting for {len(tasks)} tasks"
            row = dataclasses.replace(row, verdict="inconclusive", reason=join_reasons(reason, row.reason))
        result.append(row)
    return result


def join_reasons(*parts: str) -> str:
    """One clause of several, the empty ones left out."""
    return "; ".join(part for part in parts if part)
