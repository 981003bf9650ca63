"""Comparisons of two cells of a run, paired by sample; the words are defined in :mod:`hambench.analysis.verdicts`.

Speed and KV memory are compared over the answers that both gave. In accuracy a sample that one side failed to answer
counts as 0 points for it: dropped, a method would gain by failing what is hard. A sample that both failed, or whose
scorer failed, is in neither. Each comparison says how many samples this concerned; where they are more than
:data:`MOST_ONE_SIDED` of what was asked, the rest no longer stands for it and the two are not comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hambench.analysis.baselines import baseline_of
from hambench.analysis.metrics import METRICS, decode_seconds, num_decode_tokens, peak_kv_bytes
from hambench.analysis.paired_tests import log_ratio_of_sums, mean_difference
from hambench.analysis.verdicts import (
    MIN_BLOCKS,
    Margins,
    control_false_discoveries,
    exact_verdict,
    join_reasons,
    verdict_of,
)
from hambench.groups import ALL, group_kind, group_names, in_group
from hambench.records import BUSY_LOAD, Comparison, Estimate, GenerationTrace, Sample, SampleRecord, Score
from hambench.store import Run

COMPARED = ("tps", "kv_bytes", "accuracy")
"""Metrics that every comparison gives."""

MOST_ONE_SIDED = 0.2
"""Share of the samples that may have an answer of one of the two only."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a comparison: what a cell answered."""

    cell: str
    records: dict[tuple[str, int], SampleRecord]
    """By sample id and repeat."""
    points: dict[str, float]
    """Primary score of each sample, 0 to 100, mean over repeats."""
    _work: dict[tuple[str, int], tuple[int, float]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, run: Run, cell: str) -> Arm:
        """What a cell of a run answered, warm-ups left out."""
        records = {(r.sample_id, r.repeat): r for r in run.of_cell(cell)}
        return cls(cell, records, _points(score for score in run.scores if score.cell == cell))

    def decode_work(self, key: tuple[str, int], trace: GenerationTrace) -> tuple[int, float]:
        """Decode tokens and seconds of one answer; summed once, though each answer is in several groups."""
        if key not in self._work:
            self._work[key] = (num_decode_tokens([trace]), decode_seconds([trace]))
        return self._work[key]


@dataclass(frozen=True, slots=True)
class _Overlap:
    """What two arms have in common over the samples of a group."""

    asked: Mapping[str, Sample]
    one_sided: tuple[str, ...]
    """Samples with an answer that one side gave and the other failed to."""
    refused: str
    """Why the arms can't be compared over these samples; empty if they can."""
    most_one_sided: float


def compare_run(run: Run, *, baseline: str | None = None, margins: Margins | None = None) -> list[Comparison]:
    """Compares every cell with a baseline.

    Args:
        run: The run.
        baseline: Label of the cell to judge all others against; by default each cell's own (see
            :mod:`hambench.analysis.baselines`), or the first cell in a run without vanilla.
        margins: Smallest effects worth a word; by default those of the run's machine.
    """
    cells = run.header.cells
    rows = []
    for cell in cells:
        own = baseline_of(cell, cells) or cells[0]
        against = own.label if baseline is None else baseline
        if cell.label != against:
            rows += compare_cells(run, cell.label, against, margins=margins)
    return rows


def compare_cells(
    run: Run,
    candidate: str,
    baseline: str,
    *,
    metrics: Sequence[str] = COMPARED,
    groups: Sequence[str] | None = None,
    margins: Margins | None = None,
) -> list[Comparison]:
    """Compares two cells of one run, over all samples first, then over each suite and task.

    Rows of single tasks are many: a difference there is called only if it stands Benjamini and Hochberg's
    correction over the tasks.

    Args:
        run: The run.
        candidate: Label of the cell that is judged.
        baseline: Label of the cell that it is judged against.
        metrics: Which of :data:`COMPARED` to give.
        groups: Groups to give; by default all, suites (if there are several) and tasks.
        margins: Smallest effects worth a word; by default those of the run's machine.

    Raises:
        ValueError: If the run has no such cell.
    """
    for label in (candidate, baseline):
        if label not in {cell.label for cell in run.header.cells}:
            raise ValueError(f"run {run.header.run_id} has no cell {label!r}")
    return compare_arms(
        Arm.of(run, candidate),
        Arm.of(run, baseline),
        run.samples,
        metrics=metrics,
        groups=groups,
        margins=margins or Margins.of(run),
    )


def compare_arms(
    candidate: Arm,
    baseline: Arm,
    samples: Mapping[str, Sample],
    *,
    metrics: Sequence[str] = COMPARED,
    groups: Sequence[str] | None = None,
    margins: Margins,
    most_one_sided: float = MOST_ONE_SIDED,
) -> list[Comparison]:
    """Compares two arms, which may come from two runs of the same prompts.

    Args:
        candidate: The arm that is judged.
        baseline: The arm that it is judged against.
        samples: What was asked, by id.
        metrics: Which of :data:`COMPARED` to give.
        groups: Groups to give; by default all, suites (if there are several) and tasks.
        margins: Smallest effects worth a word.
        most_one_sided: Largest share of a group's samples that only one of the two may have answered.
    """
    names = group_names(samples.values()) if groups is None else list(groups)
    if groups is None:
        several = sum(group_kind(name) == "suite" for name in names) > 1
        names = [n for n in names if group_kind(n) in ({ALL, "suite", "task"} if several else {ALL, "task"})]
    rows = []
    for metric in metrics:
        compare = _COMPARE[metric]
        of_metric = []
        for group in names:
            asked = {sid: sample for sid, sample in samples.items() if in_group(sample, group)}
            overlap = _overlap(candidate, baseline, asked, most_one_sided)
            of_metric.append(compare(candidate, baseline, overlap, group, margins))
        rows += control_false_discoveries(of_metric)
    return rows


def _compare_tps(a: Arm, b: Arm, overlap: _Overlap, group: str, margins: Margins) -> Comparison:
    pairs = []
    for key, ours, theirs in _paired_traces(a, b, overlap.asked):
        our_tokens, our_seconds = a.decode_work(key, ours)
        their_tokens, their_seconds = b.decode_work(key, theirs)
        if our_tokens and their_tokens:
            pairs.append((key, (our_tokens, our_seconds, their_tokens, their_seconds)))
    blocks, note = _blocks([key for key, _ in pairs])
    sums = np.zeros((4, max(blocks, default=-1) + 1))
    for block, (_, work) in zip(blocks, pairs, strict=True):
        sums[:, block] += work
    loads = [
        load
        for arm in (a, b)
        for key, record in arm.records.items()
        if key[0] in overlap.asked and (load := record.other_load) is not None
    ]
    if loads and np.mean(loads) > BUSY_LOAD:
        note = join_reasons(note, f"others took {np.mean(loads):.0%} of the machine meanwhile")
    throttled = {
        (arm.cell, key): reason
        for arm in (a, b)
        for key, record in arm.records.items()
        if key[0] in overlap.asked
        for reason in record.throttles
    }
    if throttled:
        why = ", ".join(sorted(set(throttled.values())))
        note = join_reasons(note, f"the GPU held its clocks down in {len(throttled)} answers ({why})")
    return _ratio_comparison(a, b, overlap, group, "tps", sums, margins.tps, note)


def _compare_kv_bytes(a: Arm, b: Arm, overlap: _Overlap, group: str, margins: Margins) -> Comparison:
    sums: dict[str, list[float]] = {}
    for (sample_id, _), ours, theirs in _paired_traces(a, b, overlap.asked):
        mine, other = peak_kv_bytes(ours), peak_kv_bytes(theirs)
        if not mine or not other:
            continue
        block = sums.setdefault(sample_id, [0.0, 0.0, 0.0, 0.0])
        for i, value in enumerate((mine, 1.0, other, 1.0)):
            block[i] += value
    columns = np.array(list(sums.values())).T if sums else np.zeros((4, 0))
    return _ratio_comparison(a, b, overlap, group, "kv_bytes", columns, margins.kv_bytes, "")


def _ratio_comparison(
    a: Arm,
    b: Arm,
    overlap: _Overlap,
    group: str,
    metric: str,
    sums: np.ndarray,
    margin: float,
    note: str,
) -> Comparison:
    refused = overlap.refused
    if overlap.one_sided and not refused:
        left_out = f"{_count(overlap.one_sided, 'sample')} of {len(overlap.asked)} left out"
        note = join_reasons(note, f"{left_out}: answered by one of the two only")
    if not sums.size or not np.all(sums.sum(axis=1) > 0):
        return _nothing(a, b, group, metric, refused)
    result = log_ratio_of_sums((sums[0], sums[1]), (sums[2], sums[3]))
    log_margin = math.log1p(margin)
    verdict, reason = verdict_of(result, margin=log_margin, better=METRICS[metric].better)
    if METRICS[metric].metric_class == "exact" and result.num_blocks < MIN_BLOCKS:
        verdict, reason = exact_verdict(sums, log_margin, METRICS[metric].better)
    detectable = result.minimum_detectable_effect(log_margin)
    return Comparison(
        candidate=a.cell,
        baseline=b.cell,
        group=group,
        metric=metric,
        effect=Estimate(
            value=math.exp(result.effect),
            low=None if result.low is None else math.exp(result.low),
            high=None if result.high is None else math.exp(result.high),
            n=result.num_blocks,
        ),
        verdict="not comparable" if refused else verdict,
        p_value=result.p_value,
        minimum_detectable_effect=None if detectable is None else math.expm1(detectable),
        reason=join_reasons(refused or reason, note),
    )


def _compare_accuracy(a: Arm, b: Arm, overlap: _Overlap, group: str, margins: Margins) -> Comparison:
    asked, refused = overlap.asked, overlap.refused
    ours, theirs = ({**_zeros(arm, overlap), **arm.points} for arm in (a, b))
    both = [sid for sid in asked if sid in ours and sid in theirs]
    unscored = [sid for sid in asked if (sid in ours) != (sid in theirs)]
    notes = [
        f"{_count(failed, 'answer')} that {arm.cell} failed to give {'count' if len(failed) > 1 else 'counts'} as 0"
        for arm in (a, b)
        if (failed := [sid for sid in _zeros(arm, overlap) if sid in both])
    ]
    if unscored:
        words = f"{_count(unscored, 'sample')} of {len(asked)} scored for one of the two only"
        notes.append(f"{words}: left out")
        if not refused and len(unscored) > overlap.most_one_sided * len(asked):
            refused = words
    if not any(sid in a.points and sid in b.points for sid in both):
        return _nothing(a, b, group, "accuracy", refused)
    result = mean_difference(
        [ours[sid] for sid in both],
        [theirs[sid] for sid in both],
        strata=[(asked[sid].suite, asked[sid].task) for sid in both],
        clusters=[cluster_of(asked[sid]) for sid in both],
    )
    verdict, reason = verdict_of(result, margin=margins.accuracy, better="higher")
    pairs = _paired_traces(a, b, {sid: asked[sid] for sid in both})
    # tokens that are equal settle it, unless an answer is missing on one side
    if pairs and not notes and all(mine.token_ids == other.token_ids for _, mine, other in pairs):
        verdict, reason = "equivalent", f"{_count(both, 'answer')} equal token by token"
    return Comparison(
        candidate=a.cell,
        baseline=b.cell,
        group=group,
        metric="accuracy",
        effect=Estimate(value=result.effect, low=result.low, high=result.high, n=len(both)),
        verdict="not comparable" if refused else verdict,
        p_value=result.p_value,
        minimum_detectable_effect=result.minimum_detectable_effect(margins.accuracy),
        reason=refused or join_reasons(reason, *notes),
    )


_COMPARE: dict[str, Callable[[Arm, Arm, _Overlap, str, Margins], Comparison]] = {
    "tps": _compare_tps,
    "kv_bytes": _compare_kv_bytes,
    "accuracy": _compare_accuracy,
}


_NEEDED = {"tps": "tokens after its first step", "kv_bytes": "a KV cache", "accuracy": "a score"}


def cluster_of(sample: Sample) -> tuple[str, ...]:
    """What a sample belongs together with, as its suite says: one document, or one question in several languages."""
    return (sample.suite, sample.cluster) if sample.cluster else (sample.sample_id,)


def _paired_traces(
    a: Arm, b: Arm, asked: Mapping[str, Sample]
) -> list[tuple[tuple[str, int], GenerationTrace, GenerationTrace]]:
    pairs = []
    for key, ours in a.records.items():
        theirs = b.records.get(key)
        if key[0] in asked and theirs is not None and ours.trace is not None and theirs.trace is not None:
            pairs.append((key, ours.trace, theirs.trace))
    return pairs


def _blocks(keys: Sequence[tuple[str, int]]) -> tuple[list[int], str]:
    """Number of each pair's block: its sample, or its repeat where samples are too few to be blocks."""
    samples = {sample_id: i for i, sample_id in enumerate(dict.fromkeys(key[0] for key in keys))}
    repeats = {repeat: i for i, repeat in enumerate(dict.fromkeys(key[1] for key in keys))}
    if len(samples) >= MIN_BLOCKS or len(repeats) <= len(samples):
        return [samples[key[0]] for key in keys], ""
    return [
        repeats[key[1]] for key in keys
    ], f"over {len(repeats)} repeats of {_count(samples, 'fixed prompt')}"


def _overlap(a: Arm, b: Arm, asked: Mapping[str, Sample], most_one_sided: float) -> _Overlap:
    ours = {key: record for key, record in a.records.items() if key[0] in asked}
    theirs = {key: record for key, record in b.records.items() if key[0] in asked}
    shared = ours.keys() & theirs.keys()
    failed = [key for key in shared if (ours[key].trace is None) != (theirs[key].trace is None)]
    one_sided = tuple(dict.fromkeys(sid for sid, _ in failed))
    refused = ""
    if any(ours[key].prompt_hash != theirs[key].prompt_hash for key in shared):
        refused = "the prompts differ"
    elif len(one_sided) > most_one_sided * len(asked):
        refused = f"{_count(one_sided, 'sample')} of {len(asked)} answered by one of the two only"
    return _Overlap(asked, one_sided, refused, most_one_sided)


def _zeros(arm: Arm, overlap: _Overlap) -> dict[str, float]:
    """No points for each sample that this arm alone never answered."""
    answered = {sid for (sid, _), record in arm.records.items() if record.trace is not None}
    return {sid: 0.0 for sid in overlap.one_sided if sid not in answered}


def _nothing(a: Arm, b: Arm, group: str, metric: str, refused: str) -> Comparison:
    reason = refused or f"no sample has {_NEEDED[metric]} in both"
    return Comparison(
        candidate=a.cell,
        baseline=b.cell,
        group=group,
        metric=metric,
        effect=None,
        verdict="not comparable",
        reason=reason,
    )


def _points(scores: Iterable[Score]) -> dict[str, float]:
    points: dict[str, list[float]] = {}
    for score in scores:
        if score.primary and score.error is None and score.value is not None and math.isfinite(score.value):
            points.setdefault(score.sample_id, []).append(100 * score.value / score.scale)
    return {sample_id: float(np.mean(values)) for sample_id, values in points.items()}


def _count(things: Sequence[object] | Mapping[str, int], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"
