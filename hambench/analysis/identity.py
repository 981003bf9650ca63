"""How far a cell's answers are the baseline's, token by token."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hambench.records import SampleRecord
from hambench.store import Run


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """How far a cell's answers are the baseline's, token by token."""

    num_samples: int
    """Answers both have."""
    num_identical: int
    first_difference: int | None
    """Smallest token index at which an answer differs; ``None`` when none does."""
    share_before: float | None
    """Tokens before the first difference, as a share of all the baseline's tokens."""


def token_identity(run: Run, cell: str, baseline: str) -> Identity | None:
    """Compares a cell's tokens with the baseline's; ``None`` when they share no answered sample."""
    theirs = {(r.sample_id, r.repeat): r for r in run.answered(baseline)}
    pairs: list[tuple[SampleRecord, SampleRecord]] = [
        (record, theirs[record.sample_id, record.repeat])
        for record in run.measured
        if record.cell == cell and record.trace and (record.sample_id, record.repeat) in theirs
    ]
    if not pairs:
        return None
    firsts = []
    num_before = num_tokens = 0
    for mine, other in pairs:
        assert mine.trace is not None
        assert other.trace is not None
        a, b = mine.trace.token_ids, other.trace.token_ids
        first = first_difference(a, b)
        num_before += len(b) if first is None else first
        num_tokens += len(b)
        if first is not None:
            firsts.append(first)
    return Identity(
        num_samples=len(pairs),
        num_identical=len(pairs) - len(firsts),
        first_difference=min(firsts, default=None),
        share_before=num_before / num_tokens if num_tokens else None,
    )


def first_difference(tokens: Sequence[int], others: Sequence[int]) -> int | None:
    """Index of the first token that differs (the shorter length when one is the other's beginning), or ``None``."""
    for index, (mine, other) in enumerate(zip(tokens, others, strict=False)):
        if mine != other:
            return index
    return None if len(tokens) == len(others) else min(len(tokens), len(others))
