"""Metrics: pure functions from stored counts and seconds to numbers.

The docstring of a metric is its definition, the one that ``hambench ls metrics`` and every report print. All
of them read answered records only (a failed sample has no numbers; it is counted in ``num_errors``), leave
warm-ups out, and return ``None`` where there is nothing to derive the number from, or where a count it needs
can't be known (of a peer). Sums run over samples and repeats before any division: a rate is never an average
of rates. *Decode* means every step after the first; the first step is the prefill.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from hambench.analysis import fidelity
from hambench.analysis.batches import figures
from hambench.analysis.statistics.intervals import macro_average
from hambench.records import Estimate, GenerationTrace, SampleRecord, StepRecord

Traces = Sequence[GenerationTrace]
Better = Literal["higher", "lower"]
MetricClass = Literal["exact", "near-exact", "speed", "accuracy", "fidelity"]
METRIC_CLASSES: tuple[MetricClass, ...] = get_args(MetricClass)


# speed


def tps(traces: Traces) -> float | None:
    """Decode tokens per second: Σ tokens / Σ seconds of the steps after the first; in a batch, of all sequences.

    A step of a batch counts its part of the rounds, so that each round counts once.
    """
    return _ratio(num_decode_tokens(traces), decode_seconds(traces))


def prefill_tps(traces: Traces) -> float | None:
    """Prompt tokens processed per second of prefill: Σ prompt tokens / Σ seconds of the first step, where timed."""
    timed = [trace for trace in traces if trace.ttft_s is not None]
    return _ratio(sum(trace.prompt_tokens for trace in timed), sum(_ttfts(timed)))


def end_to_end_tps(traces: Traces) -> float | None:
    """Tokens per second as a user waits for them: Σ tokens / Σ seconds of all steps, over the answers of ``ttft_s``."""
    timed = [(trace, seconds) for trace in traces if (seconds := trace.seconds) is not None]
    return _ratio(num_tokens([trace for trace, _ in timed]), sum(seconds for _, seconds in timed))


def ttft_s(traces: Traces) -> float | None:
    """Time to first token: median seconds from a request to its first tokens, over answers that every cell timed.

    Cells that share prompts each time the first few. They have no TTFT if there is no answer that every cell timed.
    """
    return percentile(_ttfts(traces), 50)


def tpots(traces: Traces) -> list[float]:
    """Decode seconds / tokens after the first step, of each answer that has such tokens."""
    each = (_ratio(figures.waited_seconds([trace]), num_decode_tokens([trace])) for trace in traces)
    return [value for value in each if value is not None]


def tpot_p50_s(traces: Traces) -> float | None:
    """Median over answers of decode seconds / tokens after the first step."""
    return percentile(tpots(traces), 50)


def tpot_p90_s(traces: Traces) -> float | None:
    """90th percentile over answers of decode seconds / tokens after the first step; from 29 answers on."""
    return percentile(tpots(traces), 90)


def tpot_p99_s(traces: Traces) -> float | None:
    """99th percentile over answers of decode seconds / tokens after the first step; from 299 answers on."""
    return percentile(tpots(traces), 99)


def burst_p50_s(traces: Traces) -> float | None:
    """Median seconds of one decode step: how long a reader waits between bursts of tokens."""
    return percentile([step.timed_s for step in decode_steps(traces)], 50)


def burst_p99_s(traces: Traces) -> float | None:
    """99th percentile of the seconds of one decode step, the longest waits between bursts; from 299 steps on."""
    return percentile([step.timed_s for step in decode_steps(traces)], 99)


# what a method did


def num_tokens(traces: Traces) -> int:
    """Tokens kept: the end-of-sequence token when it was emitted, nothing past it or past the limit."""
    return sum(len(step.tokens) for trace in traces for step in trace.steps)


def tokens_per_target_forward(traces: Traces) -> float | None:
    """m: Σ tokens kept / Σ forwards of the target, in the decode phase; comparable over all methods."""
    return _ratio(num_decode_tokens(traces), num_target_forwards(traces))


def acceptance_rate(traces: Traces) -> float | None:
    """Σ accepted / Σ drafted tokens; the bonus token is in neither. Never a mean of per-sample rates."""
    return _ratio(num_accepted(traces), num_drafted(traces))


def mean_acceptance_length(traces: Traces) -> float | None:
    """1 + Σ accepted / Σ rounds of drafting: tokens that one round of drafting and verifying yields."""
    rounds = _total(map(_num_rounds, traces))
    per_round = _ratio(num_accepted(traces), rounds)
    return None if per_round is None else 1 + per_round


def tokens_per_step_histogram(traces: Traces) -> dict[int, int]:
    """How many decode steps kept 1, 2, 3, … tokens."""
    return dict(sorted(Counter(len(step.tokens) for step in decode_steps(traces)).items()))


def num_decode_steps(traces: Traces) -> int:
    """Steps after the first; for HAMburger, macro-steps."""
    return sum(1 for _ in decode_steps(traces))


def num_target_forwards(traces: Traces) -> int | None:
    """Forwards of the target in the decode phase, whatever their width."""
    return _total(step.target_forwards for step in decode_steps(traces))


def num_draft_forwards(traces: Traces) -> int | None:
    """Forwards of the draft model in the decode phase."""
    return _total(step.draft_forwards for step in decode_steps(traces))


def num_micro_forwards(traces: Traces) -> int | None:
    """Forwards of the micro-step decoder in the decode phase."""
    return _total(step.micro_forwards for step in decode_steps(traces))


def num_drafted(traces: Traces) -> int | None:
    """Tokens proposed by a drafter in the decode phase."""
    return _total(_counted(trace, "drafted") for trace in traces)


def num_accepted(traces: Traces) -> int | None:
    """Proposed tokens that were kept, in the decode phase."""
    return _total(map(_num_kept, traces))


def num_relaxed(traces: Traces) -> int | None:
    """Kept proposals that are not the target's own tokens: a relaxed rule of acceptance kept them; 0 where exact."""
    return _total(step.relaxed for step in decode_steps(traces))


# memory


def kv_bytes(traces: Traces) -> float | None:
    """Bytes of all KV caches in use, a draft's included: the peak of each answer, mean over answers."""
    peaks = [peak_kv_bytes(trace) for trace in traces if trace.steps]
    known = [peak for peak in peaks if peak is not None]
    return float(np.mean(known)) if known and len(known) == len(peaks) else None


def peak_kv_bytes(trace: GenerationTrace) -> int | None:
    """Most bytes of KV cache in use during one answer; ``None`` where a step's can't be known."""
    sizes = [step.kv_bytes for step in trace.steps]
    # during a step there may be more than after it: rejected drafts, micro-steps
    known = [max(step.kv_bytes, step.peak_kv_bytes or 0) for step in trace.steps if step.kv_bytes is not None]
    return max(known) if known and len(known) == len(sizes) else None


def kv_bytes_per_position(traces: Traces) -> float | None:
    """Σ over decode steps of the KV bytes in use after each / Σ of the positions (prompt + tokens so far) after each.

    What is compared: the memory that an answer holds while it is written. One that breaks off early holds fewer bytes,
    and no fewer per position; a cache that is cut after the prompt counts as it is then. The peak is ``kv_bytes``.
    """
    held = [held_kv_bytes(trace) for trace in traces if trace.steps]
    known = [pair for pair in held if pair is not None]
    if not known or len(known) < len(held):
        return None
    return _ratio(sum(num_bytes for num_bytes, _ in known), sum(positions for _, positions in known))


def held_kv_bytes(trace: GenerationTrace) -> tuple[int, int] | None:
    """Sums over the decode steps of one answer: KV bytes after each, and positions that a plain cache would hold then.

    An answer of one step gives those after that step; ``None`` where a step's bytes can't be known.
    """
    num_bytes = num_positions_held = 0
    position = trace.prompt_tokens
    for step in trace.steps[1:] or trace.steps[:1]:
        if step.kv_bytes is None:
            return None
        if step is not trace.steps[0]:
            position += len(step.tokens)
        num_bytes += step.kv_bytes
        num_positions_held += position
    return (num_bytes, num_positions_held) if trace.steps else None


def num_positions(traces: Traces) -> int:
    """Σ over answers of the positions whose keys and values a plain cache would hold at the end."""
    return sum(trace.prompt_tokens for trace in traces) + num_decode_tokens(traces)


def num_kv_slots(traces: Traces) -> int | None:
    """Σ over answers of the target's KV slots in use at the end, the prompt's included."""
    return _total(trace.steps[-1].kv_slots for trace in traces if trace.steps)


def kv_compression_output(traces: Traces) -> float | None:
    """Tokens per slot of the answer: Σ tokens kept after the first step / Σ slots added after it.

    The axis of HAMburger's figures. Slots spent on tokens past the end of an answer count, those tokens
    don't: a method that drafts may show a hair under 1.
    """
    return _ratio(num_decode_tokens(traces), _decode_slots(traces))


def kv_compression_total(traces: Traces) -> float | None:
    """Positions per slot: Σ (prompt + tokens kept after the first step) / Σ slots at the end."""
    return _ratio(num_positions(traces), num_kv_slots(traces))


def peak_memory_bytes(records: Iterable[SampleRecord]) -> int | None:
    """Largest peak of the GPU's allocator during one answer, weights included; not available on a CPU."""
    return max((r.peak_memory_bytes for r in records if r.peak_memory_bytes is not None), default=None)


# quality


def accuracy(points: Mapping[str, Sequence[float]]) -> Estimate | None:
    """Points, 0 to 100: the macro-average over tasks of each task's mean primary score / its scale.

    The scores of a sample are averaged over repeats first. The 95 % interval is the cell's own, stratified by task
    (Korn and Graubard 1998); whether two cells differ is asked of their paired difference. A sample that failed, or
    whose scorer failed, is in neither mean nor n; a comparison counts what only one side failed to answer as 0 points
    for it, and says so.
    """
    return macro_average(points)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """What a number is: one row of ``hambench ls metrics``."""

    name: str
    """Field of :class:`~hambench.analysis.measurements.Measurement`."""
    unit: str
    better: Better
    metric_class: MetricClass
    """``exact`` counts must be equal, ``near-exact`` within a whisker; the others are paired statistics."""
    definition: str
    """First paragraph of the metric's docstring."""


def _info(
    function: Callable[..., object], unit: str, better: Better, metric_class: MetricClass
) -> MetricInfo:
    definition = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
    return MetricInfo(
        name=function.__name__, unit=unit, better=better, metric_class=metric_class, definition=definition
    )


METRICS: dict[str, MetricInfo] = {
    info.name: info
    for info in (
        _info(tps, "tokens/s", "higher", "speed"),
        _info(figures.user_tps, "tokens/s", "higher", "speed"),
        _info(figures.mean_batch, "sequences", "higher", "speed"),
        _info(figures.batch_kv_bytes, "bytes", "lower", "near-exact"),
        _info(ttft_s, "s", "lower", "speed"),
        _info(tpot_p50_s, "s/token", "lower", "speed"),
        _info(tpot_p90_s, "s/token", "lower", "speed"),
        _info(tpot_p99_s, "s/token", "lower", "speed"),
        _info(burst_p50_s, "s", "lower", "speed"),
        _info(burst_p99_s, "s", "lower", "speed"),
        _info(prefill_tps, "tokens/s", "higher", "speed"),
        _info(end_to_end_tps, "tokens/s", "higher", "speed"),
        _info(accuracy, "points", "higher", "accuracy"),
        _info(fidelity.regret, "nats/token", "lower", "fidelity"),
        _info(fidelity.agreement, "share", "higher", "fidelity"),
        _info(fidelity.target_logprob_per_token, "nats/token", "higher", "fidelity"),
        _info(fidelity.distinct_4grams, "share", "higher", "fidelity"),
        _info(kv_bytes, "bytes", "lower", "exact"),
        _info(kv_bytes_per_position, "bytes/position", "lower", "exact"),
        _info(num_kv_slots, "slots", "lower", "exact"),
        _info(kv_compression_output, "tokens/slot", "higher", "exact"),
        _info(kv_compression_total, "positions/slot", "higher", "exact"),
        _info(peak_memory_bytes, "bytes", "lower", "near-exact"),
        _info(tokens_per_target_forward, "tokens", "higher", "exact"),
        _info(acceptance_rate, "ratio", "higher", "exact"),
        _info(mean_acceptance_length, "tokens", "higher", "exact"),
        _info(num_tokens, "tokens", "higher", "exact"),
        _info(num_decode_steps, "steps", "lower", "exact"),
        _info(num_target_forwards, "forwards", "lower", "exact"),
        _info(num_draft_forwards, "forwards", "lower", "exact"),
        _info(num_micro_forwards, "forwards", "lower", "exact"),
        _info(num_drafted, "tokens", "lower", "exact"),
        _info(num_accepted, "tokens", "higher", "exact"),
        _info(num_relaxed, "tokens", "lower", "exact"),
    )
}
"""Every metric by name."""


def decode_steps(traces: Traces) -> Iterable[StepRecord]:
    """All steps after the first of each trace."""
    return (step for trace in traces for step in trace.steps[1:])


def machine_s(step: StepRecord) -> float | None:
    """Seconds that a step took of the machine: in a batch, its part of the rounds. ``None`` if it was not timed."""
    return step.seconds if step.share_s is None else step.share_s


def decode_seconds(traces: Traces) -> float:
    """Σ seconds of the steps after the first; in a batch, of each round once."""
    return sum(step.timed_s if step.share_s is None else step.share_s for step in decode_steps(traces))


def num_decode_tokens(traces: Traces) -> int:
    """Σ tokens kept by the steps after the first."""
    return sum(len(step.tokens) for step in decode_steps(traces))


def percentile(values: Sequence[float] | np.ndarray, q: float) -> float | None:
    """Linear-interpolation percentile; ``None`` for no values, and for too few to know a high one.

    Above the median it takes so many values that the largest lies past the true percentile in 95 of 100 draws, which is
    ln 0.05 / ln q of them (Wilks 1941): 29 for the 90th, 299 for the 99th. Of fewer it would be the largest value under
    another name.
    """
    if not len(values) or (q > 50 and len(values) < math.log(0.05) / math.log(q / 100)):
        return None
    return float(np.percentile(values, q))


def _ttfts(traces: Traces) -> list[float]:
    return [seconds for trace in traces if (seconds := trace.ttft_s) is not None]


def _decode_slots(traces: Traces) -> int | None:
    at_end, at_start = (
        num_kv_slots(traces),
        _total(trace.steps[0].kv_slots for trace in traces if trace.steps),
    )
    return None if at_end is None or at_start is None else at_end - at_start


def _counted(trace: GenerationTrace, name: str) -> int | None:
    """Sums a count over the decode steps; if a step lacks it, takes what the peer says of the whole answer."""
    counts = [getattr(step, name) for step in trace.steps[1:]]
    return getattr(trace.totals, name, None) if None in counts else sum(counts)


def _num_kept(trace: GenerationTrace) -> int | None:
    accepted = _counted(trace, "accepted")
    if accepted is None:
        return None
    # old runs kept the count of a step whose tokens were cut at the end of the answer
    cut = sum(
        max(0, step.accepted - len(step.tokens)) for step in trace.steps[1:] if step.accepted is not None
    )
    return accepted - cut


def _num_rounds(trace: GenerationTrace) -> int | None:
    if any(step.drafted is None for step in trace.steps[1:]):
        return None if trace.totals is None else trace.totals.rounds
    return sum(bool(step.drafted) for step in trace.steps[1:])


def _total(counts: Iterable[int | None]) -> int | None:
    """The sum; ``None`` as soon as one count is unknown, since the rest would pass for all of them."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    if numerator is None or denominator is None or denominator <= 0:
        return None
    return numerator / denominator
