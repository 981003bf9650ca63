"""Computes every metric of :mod:`hambench.analysis.metrics` for every cell and group of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from hambench.analysis import fidelity
from hambench.analysis.baselines import baseline_of
from hambench.analysis.batches import figures
from hambench.analysis.cautions.shared_prompts import Key, compared_prefills
from hambench.analysis.cost import machine_tps
from hambench.analysis.drafts.acceptance import (
    acceptance_conditional,
    acceptance_joint,
    drafted_histogram,
)
from hambench.analysis.metrics import (
    METRICS,
    acceptance_rate,
    accuracy,
    burst_p50_s,
    burst_p99_s,
    end_to_end_tps,
    kv_bytes,
    kv_bytes_per_position,
    kv_compression_output,
    kv_compression_total,
    mean_acceptance_length,
    num_accepted,
    num_decode_steps,
    num_draft_forwards,
    num_drafted,
    num_kv_slots,
    num_micro_forwards,
    num_relaxed,
    num_target_forwards,
    num_tokens,
    peak_memory_bytes,
    prefill_tps,
    tokens_per_step_histogram,
    tokens_per_target_forward,
    tpot_p50_s,
    tpot_p90_s,
    tpot_p99_s,
    tps,
    ttft_s,
)
from hambench.analysis.verdicts import decodes_on_gpu
from hambench.groups import ALL, group_names, in_group
from hambench.records import Estimate, Fidelity, Sample, SampleRecord, Score
from hambench.registry import is_lossless
from hambench.store import Run

MORE_REPETITIVE = 0.1
"""Share of a cell's samples by which its repetitive answers must outnumber the baseline's to be said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One cell's metrics over one group of samples: derived, never stored; ``None`` if not available."""

    cell: str
    group: str
    num_samples: int
    num_errors: int
    num_tokens: int
    tps: float | None
    ttft_s: float | None
    num_ttfts: int
    """Answers that ``ttft_s`` and ``end_to_end_tps`` rest on; 0 where cells timed different prompts."""
    tpot_p50_s: float | None
    tpot_p90_s: float | None
    tpot_p99_s: float | None
    tokens_per_target_forward: float | None
    acceptance_rate: float | None
    mean_acceptance_length: float | None
    kv_bytes: float | None
    kv_compression_output: float | None
    kv_compression_total: float | None
    peak_memory_bytes: int | None
    accuracy: Estimate | None
    """Points, 0 to 100."""
    num_answers: int = 0
    """Answers given, all repeats of a sample."""
    regret: Estimate | None = None
    agreement: float | None = None
    target_logprob_per_token: float | None = None
    distinct_4grams: float | None = None
    num_repetitive: int = 0
    """Answers of which fewer than half of the 4-grams are distinct."""
    num_judged: int = 0
    """Answers that the target has judged."""
    kv_bytes_per_position: float | None = None
    user_tps: float | None = None
    mean_batch: float | None = None
    batch_kv_bytes: float | None = None
    prefill_tps: float | None = None
    end_to_end_tps: float | None = None
    machine_tps: float | None = None
    burst_p50_s: float | None = None
    burst_p99_s: float | None = None
    num_truncated: int = 0
    num_score_errors: int = 0
    """Samples that were answered but whose primary scorer failed."""
    num_decode_steps: int = 0
    num_target_forwards: int | None = 0
    num_draft_forwards: int | None = 0
    num_micro_forwards: int | None = 0
    num_drafted: int | None = 0
    num_accepted: int | None = 0
    num_relaxed: int | None = 0
    num_kv_slots: int | None = 0
    num_thinking_tokens: int | None = None
    """Of ``num_tokens``, those up to the end of the thinking; ``None`` where the run did not say what ends it."""
    other_load: float | None = None
    """Mean share of the machine's CPU time that other processes took, 0..1."""
    tokens_per_step_histogram: dict[int, int] = field(default_factory=dict)
    acceptance_conditional: dict[int, float] = field(default_factory=dict)
    """By place in the draft, see :mod:`hambench.analysis.drafts.acceptance`."""
    acceptance_joint: dict[int, float] = field(default_factory=dict)
    drafted_histogram: dict[int, int] = field(default_factory=dict)


def metric_value(measurement: Measurement, name: str) -> float | None:
    """Returns the plain number of a metric, e.g. the value of the accuracy estimate."""
    value = getattr(measurement, METRICS[name].name)
    return value.value if isinstance(value, Estimate) else value


def measure_run(run: Run, groups: Iterable[str] | None = None) -> list[Measurement]:
    """Measures every cell over each of these groups; by default over all samples, each suite, category and task."""
    groups = group_names(run.samples.values()) if groups is None else tuple(groups)
    measurements = []
    on_gpu = decodes_on_gpu(run)
    timed = compared_prefills(run)
    for cell in run.header.cells:
        records = run.of_cell(cell.label)
        if not on_gpu:
            # old runs stored the process's peak, which is that of every cell before
            records = tuple(dataclasses.replace(record, peak_memory_bytes=None) for record in records)
        scores = [score for score in run.scores if score.cell == cell.label]
        measurements += [
            measure(
                records,
                scores,
                run.samples,
                cell=cell.label,
                group=group,
                judged=run.judged,
                timed=timed[cell.label],
            )
            for group in groups
        ]
    return measurements


def measure(
    records: Iterable[SampleRecord],
    scores: Iterable[Score],
    samples: Mapping[str, Sample],
    *,
    cell: str,
    group: str = ALL,
    judged: Callable[[SampleRecord], Fidelity | None] = lambda record: None,
    timed: Collection[Key] | None = None,
) -> Measurement:
    """Measures one cell over one group of samples.

    ``num_samples`` counts the samples answered at least once, ``num_errors`` those with a failed record.

    Args:
        records: Records, also of other cells.
        scores: Scores, also of other cells.
        samples: Samples by id.
        cell: The cell's label.
        group: The group's name.
        judged: Returns the target's judgement of an answer.
        timed: Answers whose prefill times count; all that were timed by default.
    """
    wanted = {sample_id for sample_id, sample in samples.items() if in_group(sample, group)}
    mine = [r for r in records if r.cell == cell and not r.warmup and r.sample_id in wanted]
    answered = [record for record in mine if record.trace is not None]
    traces = [record.trace for record in answered if record.trace is not None]
    answers = {(record.sample_id, record.repeat) for record in answered}
    waits = [
        record.trace
        for record in answered
        if record.trace is not None and (timed is None or (record.sample_id, record.repeat) in timed)
    ]
    primary = [s for s in scores if s.cell == cell and s.primary and (s.sample_id, s.repeat) in answers]
    loads = [record.other_load for record in answered if record.other_load is not None]
    judgements = [item for record in answered if (item := judged(record)) is not None]
    return Measurement(
        cell=cell,
        group=group,
        num_samples=len({record.sample_id for record in answered}),
        num_errors=len({record.sample_id for record in mine if record.trace is None}),
        num_score_errors=len({score.sample_id for score in primary if score.points is None}),
        num_truncated=len({record.sample_id for record in answered if record.truncated_tokens}),
        num_tokens=num_tokens(traces),
        tps=tps(traces),
        user_tps=figures.user_tps(traces),
        mean_batch=figures.mean_batch(traces),
        batch_kv_bytes=figures.batch_kv_bytes(traces),
        prefill_tps=prefill_tps(traces),
        end_to_end_tps=end_to_end_tps(waits),
        machine_tps=machine_tps(traces),
        ttft_s=ttft_s(waits),
        num_ttfts=sum(trace.ttft_s is not None for trace in waits),
        num_answers=len(answered),
        tpot_p50_s=tpot_p50_s(traces),
        tpot_p90_s=tpot_p90_s(traces),
        tpot_p99_s=tpot_p99_s(traces),
        burst_p50_s=burst_p50_s(traces),
        burst_p99_s=burst_p99_s(traces),
        tokens_per_target_forward=tokens_per_target_forward(traces),
        tokens_per_step_histogram=tokens_per_step_histogram(traces),
        acceptance_rate=acceptance_rate(traces),
        mean_acceptance_length=mean_acceptance_length(traces),
        num_decode_steps=num_decode_steps(traces),
        num_target_forwards=num_target_forwards(traces),
        num_draft_forwards=num_draft_forwards(traces),
        num_micro_forwards=num_micro_forwards(traces),
        num_drafted=num_drafted(traces),
        num_accepted=num_accepted(traces),
        num_relaxed=num_relaxed(traces),
        acceptance_conditional=acceptance_conditional(traces),
        acceptance_joint=acceptance_joint(traces),
        drafted_histogram=drafted_histogram(traces),
        kv_bytes=kv_bytes(traces),
        kv_bytes_per_position=kv_bytes_per_position(traces),
        num_kv_slots=num_kv_slots(traces),
        kv_compression_output=kv_compression_output(traces),
        kv_compression_total=kv_compression_total(traces),
        peak_memory_bytes=peak_memory_bytes(answered),
        other_load=float(np.mean(loads)) if loads else None,
        accuracy=accuracy(points_by_task(primary, samples)),
        regret=fidelity.regret(judgements),
        agreement=fidelity.agreement(judgements),
        target_logprob_per_token=fidelity.target_logprob_per_token(judgements),
        distinct_4grams=fidelity.distinct_4grams(traces),
        num_repetitive=sum(map(fidelity.is_repetitive, traces)),
        num_judged=len(judgements),
        num_thinking_tokens=_thinking(answered),
    )


def points_by_task(scores: Iterable[Score], samples: Mapping[str, Sample]) -> dict[str, list[float]]:
    """Points (0 to 100) of each sample of each ``suite/task``: primary scores only, averaged over repeats."""
    by_sample: dict[str, list[float]] = {}
    for score in scores:
        if score.primary and score.points is not None:
            by_sample.setdefault(score.sample_id, []).append(score.points)
    by_task: dict[str, list[float]] = {}
    for sample_id, points in by_sample.items():
        sample = samples[sample_id]
        by_task.setdefault(f"{sample.suite}/{sample.task}", []).append(float(np.mean(points)))
    return by_task


def _thinking(answered: Iterable[SampleRecord]) -> int | None:
    counts = [record.thinking_tokens for record in answered if record.thinking_tokens is not None]
    return sum(counts) if counts else None


def repetition_cautions(run: Run, measured: Mapping[str, Measurement]) -> list[str]:
    """Returns one sentence per lossy cell whose answers repeat themselves more than the baseline's.

    Args:
        run: The run.
        measured: Measurements by cell label, over the samples in question.
    """
    found = []
    for cell in run.header.cells:
        mine = measured.get(cell.label)
        baseline = baseline_of(cell, run.header.cells)
        theirs = measured.get(baseline.label) if baseline else None
        if mine is None or is_lossless(cell) or not mine.num_repetitive:
            continue
        # an answer or two more of many is what another text does to a count
        more = mine.num_repetitive - (theirs.num_repetitive if theirs else 0)
        if more < max(1, MORE_REPETITIVE * mine.num_samples):
            continue
        others = f" ({theirs.num_repetitive} of {baseline.label}'s)" if theirs and baseline else ""
        found.append(
            f"{cell.label} repeats itself: in {mine.num_repetitive} of its answers{others} fewer than half of the "
            f"4-grams are distinct, over all answers {mine.distinct_4grams or 0.0:.0%}; its speed is that of such text."
        )
    return found
