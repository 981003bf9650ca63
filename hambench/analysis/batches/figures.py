"""Metrics of answers that were decoded in a batch; only memory is known outside one too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hambench.records import GenerationTrace, StepRecord

Traces = Sequence[GenerationTrace]


def user_tps(traces: Traces) -> float | None:
    """In a batch, decode tokens per second of one user: Σ tokens / Σ seconds that each waited for its steps."""
    waited = waited_seconds(traces)
    if not is_batched(traces) or waited <= 0:
        return None
    return sum(len(step.tokens) for step in _decode_steps(traces)) / waited


def mean_batch(traces: Traces) -> float | None:
    """In a batch, the number of sequences that took part in a round: mean over the time of decoding."""
    if not is_batched(traces):
        return None
    parts = [(step.share_s or 0.0, step.in_round or 1) for step in _decode_steps(traces)]
    total = sum(share for share, _ in parts)
    return sum(share * number for share, number in parts) / total if total > 0 else None


def batch_kv_bytes(traces: Traces) -> float | None:
    """Most bytes of KV cache in use at once, also during a step: by all sequences of a batch, else by one answer."""
    steps = [step for trace in traces for step in trace.steps]
    if any(step.share_s is not None for step in steps):
        sums = [step.round_kv_bytes for step in steps]
    else:
        sums = [
            None if step.kv_bytes is None else max(step.kv_bytes, step.peak_kv_bytes or 0) for step in steps
        ]
    known = [number for number in sums if number is not None]
    return float(max(known)) if known and len(known) == len(sums) else None


def is_batched(traces: Traces) -> bool:
    """Whether the answers were decoded in a batch."""
    return any(step.share_s is not None for step in _decode_steps(traces))


def waited_seconds(traces: Traces) -> float:
    """Σ seconds that users waited for the steps after the first."""
    return sum(step.timed_s for step in _decode_steps(traces))


def _decode_steps(traces: Traces) -> Iterator[StepRecord]:
    return (step for trace in traces for step in trace.steps[1:])
