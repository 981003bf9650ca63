"""Views of the target's judgements, and of the answers' identity with the baseline's, token by token.

``hambench.runner.judge`` writes the judgements; this module runs no model. Limitation: a fluent wrong answer that the
target would have given itself costs nothing. Repetition is detected from the tokens alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hambench.analysis.baselines import baseline_of
from hambench.analysis.statistics.intervals import ratio_of_sums
from hambench.records import Cell, Estimate, Fidelity, GenerationTrace, SampleRecord
from hambench.store import RecordKey, Run, record_key

NGRAM = 4
REPETITIVE = 0.5
"""Share of distinct 4-grams below which an answer repeats itself."""
FEWEST_NGRAMS = 8
"""4-grams of the shortest answer that can be called repetitive."""


REGRET_WORDS = (
    "regret: nats per token that the target gives up by the answer's tokens, 0 where they are its own choice."
)


SAMPLED_SAME = (
    "same: answers were drawn at a temperature, and two draws part by chance: few equal ones say nothing of "
    "a method."
)


@dataclass(frozen=True, slots=True)
class Divergence:
    """An answer's first difference from the baseline's, and the target's judgement there."""

    index: int
    """Of the first token that differs, from 0."""
    gap: float
    """The target's best logit less its second best: near 0, rounding decided."""
    regret: float | None
    """Of the token taken instead, in nats; ``None`` where the answer ends there."""


def regret(judged: Sequence[Fidelity]) -> Estimate | None:
    """Σ over answer tokens of the target's highest log-probability there less that of the token taken / Σ tokens.

    In nats per token; 0 is what the target would have chosen itself. The answer is followed as it stands
    (teacher-forced), so an early slip is charged once, and what follows is judged as a continuation of it. The 95 %
    interval is that of a ratio of sums over samples.
    """
    by_sample: dict[str, list[float]] = {}
    for item in judged:
        sums = by_sample.setdefault(item.sample_id, [0.0, 0.0])
        sums[0] += item.regret
        sums[1] += len(item.regrets)
    if not by_sample:
        return None
    above, below = zip(*by_sample.values(), strict=True)
    return ratio_of_sums(above, below)


def agreement(judged: Sequence[Fidelity]) -> float | None:
    """Σ answer tokens that are the target's own choice at their place / Σ answer tokens."""
    return _share(sum(item.num_agreed for item in judged), sum(len(item.regrets) for item in judged))


def target_logprob_per_token(judged: Sequence[Fidelity]) -> float | None:
    """Σ log-probability of the answer tokens under the target / Σ answer tokens, in nats."""
    return _share(sum(sum(item.logprobs) for item in judged), sum(len(item.logprobs) for item in judged))


def distinct_4grams(traces: Sequence[GenerationTrace]) -> float | None:
    """Σ distinct 4-grams of tokens within each answer / Σ 4-grams: near 1 for prose, near 0 for one line repeated."""
    counts = [ngram_counts(trace) for trace in traces]
    return _share(sum(distinct for distinct, _ in counts), sum(total for _, total in counts))


def ngram_counts(trace: GenerationTrace) -> tuple[int, int]:
    """Distinct 4-grams of one answer's tokens, and all of them."""
    return _ngram_counts(trace.token_ids)


def _ngram_counts(tokens: Sequence[int]) -> tuple[int, int]:
    grams = [tuple(tokens[index : index + NGRAM]) for index in range(len(tokens) - NGRAM + 1)]
    return len(set(grams)), len(grams)


def is_repetitive(trace: GenerationTrace) -> bool:
    """Returns whether an answer repeats itself; see :func:`repeats_itself`."""
    return repeats_itself(trace.token_ids)


def repeats_itself(tokens: Sequence[int]) -> bool:
    """Returns whether fewer than half of the 4-grams of an answer are distinct; false for very short answers."""
    distinct, total = _ngram_counts(tokens)
    return total >= FEWEST_NGRAMS and distinct < REPETITIVE * total


def divergences(run: Run, *, cells: Sequence[Cell] | None = None) -> dict[RecordKey, Divergence]:
    """Returns first differences from the baseline's answers by record, if the target has judged both answers."""
    wanted = run.header.cells if cells is None else cells
    by_cell: dict[str, dict[tuple[str, int], SampleRecord]] = {}
    for record in run.measured:
        if record.trace is not None:
            by_cell.setdefault(record.cell, {})[record.sample_id, record.repeat] = record
    found: dict[RecordKey, Divergence] = {}
    for cell in wanted:
        baseline = baseline_of(cell, run.header.cells)
        if baseline is None or baseline.label == cell.label:
            continue
        theirs = by_cell.get(baseline.label, {})
        for key, record in by_cell.get(cell.label, {}).items():
            if key in theirs and (divergence := _divergence(run, record, theirs[key])) is not None:
                found[record_key(record)] = divergence
    return found


def _divergence(run: Run, record: SampleRecord, base: SampleRecord) -> Divergence | None:
    assert record.trace is not None
    assert base.trace is not None
    index = first_difference(record.trace.token_ids, base.trace.token_ids)
    mine, theirs = run.judged(record), run.judged(base)
    if index is None or mine is None or theirs is None or index >= len(theirs.gaps):
        return None
    regret = mine.regrets[index] if index < len(mine.regrets) else None
    return Divergence(index, theirs.gaps[index], regret)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def failures(run: Run) -> list[str]:
    """Returns the reasons that answers could not be judged, each with its number of distinct answers."""
    reasons = Counter(item.error for item in run.fidelity.values() if item.error is not None)
    return [
        f"{number} distinct answer{'s' * (number != 1)} could not be judged: {why}"
        for why, number in reasons.items()
    ]


def time_line(run: Run) -> str:
    """Returns the cost of judging in one line; empty if nothing was judged."""
    passes = [item for item in run.telemetry if item.get("kind") == "fidelity"]
    if not passes:
        return ""
    seconds = sum(item["seconds"] for item in passes)
    num_distinct = sum(item["num_distinct"] for item in passes)
    # of the whole run: a resumed one was judged in parts
    num_answers = sum(record.trace is not None for record in run.measured)
    return (
        f"fidelity: {num_distinct} distinct answers of {num_answers} judged by the target in {seconds:.1f} s, outside "
        "the timed part"
    )


@dataclass(frozen=True, slots=True)
class Identity:
    """Identity of a cell's answers with the baseline's, token by token."""

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
