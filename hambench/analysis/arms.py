"""One side of a comparison, and what two sides have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hambench.analysis.metrics import decode_seconds, held_kv_bytes, num_decode_tokens
from hambench.analysis.statistics.intervals import Array
from hambench.analysis.statistics.paired_tests import MIN_BLOCKS
from hambench.analysis.verdicts import join_reasons
from hambench.errors import count
from hambench.records import Comparison, GenerationTrace, Sample, SampleRecord, Score
from hambench.registry import is_lossless
from hambench.store import Run

Key = tuple[str, int]
"""Sample id and repeat: what pairs the answers of two cells."""
Parts = tuple[float | None, float | None]

RATES: dict[str, Callable[[GenerationTrace], Parts]] = {
    "tps": lambda trace: (num_decode_tokens([trace]), decode_seconds([trace])),
    "prefill_tps": lambda trace: (trace.prompt_tokens, trace.ttft_s),
    "end_to_end_tps": lambda trace: (len(trace.token_ids), trace.seconds),
    "kv_bytes_per_position": lambda trace: held_kv_bytes(trace) or (None, None),
}
"""Numerator and denominator of one answer in each metric that is a ratio of sums over answers."""


NEEDED = {
    "tps": "a token after its first step",
    "prefill_tps": "a timed prefill",
    "end_to_end_tps": "a timed token",
    "kv_bytes_per_position": "a KV cache of known size",
    "accuracy": "a score",
    "regret": "the target's judgement",
}
"""What an answer must have to be in a metric."""


@dataclass(frozen=True, slots=True)
class Arm:
    """The answers of a cell."""

    cell: str
    records: dict[Key, SampleRecord]
    points: dict[Key, float]
    """Primary score of each answer, 0 to 100."""
    lossless: bool = False
    """Whether the method's answers follow the target's own distribution by design."""
    judged: dict[Key, tuple[float, int]] = field(default_factory=dict)
    """Regret in nats and tokens of each answer that the target has judged."""
    is_speed_only: bool = False
    """Whether its answers have fixed lengths and no scores."""
    _parts: dict[tuple[str, Key], Parts] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, run: Run, cell: str) -> Arm:
        """What a cell of a run answered, warm-ups left out."""
        records = {(r.sample_id, r.repeat): r for r in run.of_cell(cell)}
        own = next((c for c in run.header.cells if c.label == cell), None)
        points = points_of(score for score in run.scores if score.cell == cell)
        judged = {
            key: (item.regret, len(item.regrets))
            for key, record in records.items()
            if (item := run.judged(record)) is not None
        }
        return cls(cell, records, points, own is not None and is_lossless(own), judged, run.header.ignore_eos)

    def parts(self, metric: str, key: Key) -> Parts:
        """Numerator and denominator of one answer; computed once, though each answer is in several groups."""
        found = self._parts.get((metric, key))
        if found is None:
            record = self.records.get(key)
            trace = record.trace if record is not None else None
            found = (None, None) if trace is None else RATES[metric](trace)
            self._parts[metric, key] = found
        return found


@dataclass(frozen=True, slots=True)
class Overlap:
    """The common answers of two arms over the samples of a group."""

    asked: Mapping[str, Sample]
    failed: tuple[Key, ...]
    """Answers that one side gave and the other failed to."""
    refused: str
    """Why the arms can't be compared over these samples; empty if they can."""
    most_one_sided: float

    @property
    def one_sided(self) -> tuple[str, ...]:
        """Samples with such an answer."""
        return tuple(dict.fromkeys(sample_id for sample_id, _ in self.failed))


@dataclass(frozen=True, slots=True)
class PairedWork:
    """The parts of a rate over the blocks that all arms have."""

    terms: Array
    """Numerator and denominator of each arm in turn, shape ``(2 · arms, blocks)``."""
    num_left_out: int
    """Answers that all arms gave and that have no such parts in one of them."""
    note: str
    """What a block is, where it is not a sample."""


def paired_work(arms: Sequence[Arm], metric: str, asked: Mapping[str, Sample]) -> PairedWork:
    """Sums the parts of a rate by block, over the answers that every arm has them for.

    Args:
        arms: Two or more.
        metric: Key of :data:`RATES`.
        asked: Samples of the group, by id.
    """
    keys: list[Key] = []
    rows: list[list[float]] = []
    num_left_out = 0
    for key, record in arms[0].records.items():
        records = [arm.records.get(key) for arm in arms]
        if key[0] not in asked or record.trace is None or any(r is None or r.trace is None for r in records):
            continue
        parts = [part for arm in arms for part in arm.parts(metric, key)]
        if all(part is not None and part > 0 for part in parts):
            keys.append(key)
            rows.append([float(part or 0) for part in parts])
        else:
            num_left_out += 1
    blocks, note = _blocks(keys)
    terms = np.zeros((2 * len(arms), max(blocks, default=-1) + 1))
    for block, row in zip(blocks, rows, strict=True):
        terms[:, block] += row
    return PairedWork(terms, num_left_out, note)


def paired_traces(a: Arm, b: Arm, asked: Iterable[str]) -> list[tuple[Key, GenerationTrace, GenerationTrace]]:
    """Returns the answers that both arms gave."""
    wanted = set(asked)
    pairs = []
    for key, record in a.records.items():
        other = b.records.get(key)
        if key[0] in wanted and other is not None and record.trace is not None and other.trace is not None:
            pairs.append((key, record.trace, other.trace))
    return pairs


def overlap_of(a: Arm, b: Arm, asked: Mapping[str, Sample], most_one_sided: float) -> Overlap:
    """Finds the common answers of two arms over some samples, and any reason not to compare them."""
    ours = {key: record for key, record in a.records.items() if key[0] in asked}
    theirs = {key: record for key, record in b.records.items() if key[0] in asked}
    shared = ours.keys() & theirs.keys()
    failed = [key for key in shared if (ours[key].trace is None) != (theirs[key].trace is None)]
    overlap = Overlap(asked, tuple(failed), "", most_one_sided)
    refused = ""
    if any(ours[key].prompt_hash != theirs[key].prompt_hash for key in shared):
        refused = "the prompts differ"
    elif len(overlap.one_sided) > most_one_sided * len(asked):
        refused = f"{count(len(overlap.one_sided), 'sample')} of {len(asked)} answered by one of the two only"
    return replace(overlap, refused=refused)


def zeros(arm: Arm, overlap: Overlap) -> dict[Key, float]:
    """No points for each answer that this arm alone failed to give, a repeat of a sample included."""
    return {key: 0.0 for key in overlap.failed if arm.records[key].trace is None}


def points_of(scores: Iterable[Score]) -> dict[Key, float]:
    """Returns the primary score of each answer in points, 0 to 100, without failed scorers."""
    return {
        (score.sample_id, score.repeat): score.points
        for score in scores
        if score.primary and score.points is not None
    }


def mean_by_sample(points: Mapping[Key, float], keys: Iterable[Key]) -> dict[str, float]:
    """Averages each sample's points over repeats, for some answers.

    Args:
        points: Points of each answer.
        keys: Answers to average.
    """
    by_sample: dict[str, list[float]] = {}
    for key in keys:
        by_sample.setdefault(key[0], []).append(points[key])
    return {sample_id: float(np.mean(values)) for sample_id, values in by_sample.items()}


def disturbance(arms: Sequence[Arm], asked: Iterable[str], *, busy: float) -> str:
    """Describes disturbances of a group's answers: other processes, or a GPU with throttled clocks."""
    wanted = set(asked)
    records = [
        (arm.cell, key, record) for arm in arms for key, record in arm.records.items() if key[0] in wanted
    ]
    loads = [record.other_load for *_, record in records if record.other_load is not None]
    note = (
        f"others took {np.mean(loads):.0%} of the machine meanwhile" if np.mean(loads or [0]) > busy else ""
    )
    throttled = {(cell, key): reason for cell, key, record in records for reason in record.throttles}
    if throttled:
        why = ", ".join(sorted(set(throttled.values())))
        note = join_reasons(note, f"the GPU held its clocks down in {len(throttled)} answers ({why})")
    return note


def cluster_of(sample: Sample) -> tuple[str, ...]:
    """What a sample belongs together with, as its suite says: one document, or one question in several languages."""
    return (sample.suite, sample.cluster) if sample.cluster else (sample.sample_id,)


def nothing_compared(
    a: Arm,
    b: Arm,
    group: str,
    metric: str,
    refused: str,
    *,
    num_left_out: int = 0,
    pairs: tuple[int, int] | None = None,
) -> Comparison:
    """Returns the comparison for a metric that no common answer of two arms has.

    Args:
        a: The arm that is judged.
        b: The arm that it is judged against.
        group: The group's name.
        metric: The metric.
        refused: Reason that the arms can't be compared; empty if they can.
        num_left_out: Common answers that lack the metric.
        pairs: Equal answers and all common answers.
    """
    return Comparison(
        candidate=a.cell,
        baseline=b.cell,
        group=group,
        metric=metric,
        effect=None,
        verdict="not comparable",
        num_left_out=num_left_out,
        num_equal=pairs[0] if pairs else None,
        num_answers=pairs[1] if pairs else None,
        reason=refused or f"no sample has {NEEDED[metric]} in both",
    )


def _blocks(keys: Sequence[Key]) -> tuple[list[int], str]:
    """Number of each pair's block: its sample, or its repeat where samples are too few to be blocks."""
    samples = {sample_id: i for i, sample_id in enumerate(dict.fromkeys(key[0] for key in keys))}
    repeats = {repeat: i for i, repeat in enumerate(dict.fromkeys(key[1] for key in keys))}
    if len(samples) >= MIN_BLOCKS or len(repeats) <= len(samples):
        return [samples[key[0]] for key in keys], ""
    return [
        repeats[key[1]] for key in keys
    ], f"over {len(repeats)} repeats of {count(len(samples), 'fixed prompt')}"
