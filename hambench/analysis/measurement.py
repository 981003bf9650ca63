"""The values of one cell over one group of samples: derived from a run's records, never stored."""

from __future__ import annotations

from dataclasses import dataclass, field

from hambench.records import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one cell measured over one group of samples (a task, a suite, or all): derived, never stored.

    ``None`` means that there was nothing to derive it from.
    """

    cell: str
    group: str
    num_samples: int
    num_errors: int
    num_tokens: int
    tps: float | None
    ttft_s: float | None
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
    regret: Estimate | None = None
    agreement: float | None = None
    target_logprob_per_token: float | None = None
    distinct_4grams: float | None = None
    num_repetitive: int = 0
    """Answers of which fewer than half of the 4-grams are distinct."""
    num_judged: int = 0
    """Answers that the target has judged."""
    kv_bytes_per_position: float | None = None
    prefill_tps: float | None = None
    end_to_end_tps: float | None = None
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
    num_kv_slots: int | None = 0
    other_load: float | None = None
    """Mean share of the machine's CPU time that other processes took, 0..1."""
    tokens_per_step_histogram: dict[int, int] = field(default_factory=dict)
