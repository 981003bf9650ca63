"""What a run stores of its answers: steps, traces, records, scores and the target's judgements."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

from hambench.method_facts import AnswerTotals

BUSY_LOAD = 0.10
"""Share of the machine that others may take before a timing counts as disturbed, everywhere."""
ALONE_SHARE = 0.05
"""Share of an answer's native calls that may run on one thread before its timing counts as disturbed."""

FinishReason = Literal["eos", "stop", "length", "steps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """A step as measured: counts, wall time, and the cache after it; ``None`` is what can't be known of a peer."""

    tokens: tuple[int, ...]
    """Ids kept: nothing past the end of the answer."""
    seconds: float | None
    """``None`` for a prefill whose keys and values were copied from another cell: nothing was timed."""
    target_forwards: int | None = 1
    draft_forwards: int | None = 0
    micro_forwards: int | None = 0
    drafted: int | None = 0
    accepted: int | None = 0
    relaxed: int | None = 0
    """Accepted tokens that are not the target's own."""
    draft_seconds: float | None = None
    """Seconds of the step that its drafts took, where a method drafts with a model."""
    kv_slots: int | None = 0
    kv_bytes: int | None = 0
    peak_kv_bytes: int | None = None
    """Most bytes in use at once during the step, where that is more than ``kv_bytes`` after it."""
    discarded: int = 0
    """Ids the step emitted past EOS, a stop string or the limit: never counted as output."""
    continue_probs: tuple[float, ...] = ()
    share_s: float | None = None
    """In a batch, the machine's time for this step, shared forwards in even parts: its sum counts each round once."""
    in_round: int | None = None
    """Sequences that took part in the step's last round; ``None`` outside a batch."""
    round_kv_bytes: int | None = None
    """Most bytes of the batch's caches in use in that round: the sum of its sequences' peaks."""

    @property
    def timed_s(self) -> float:
        """Seconds of a step that was timed: every one after the first; another one raises a ``ValueError``."""
        if self.seconds is None:
            raise ValueError("the step was not timed: its prompt was copied from another cell")
        return self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationTrace:
    """One answer, step by step. ``steps[0]`` is the prefill."""

    prompt_tokens: int
    steps: tuple[StepRecord, ...]
    finish: FinishReason
    totals: AnswerTotals | None = None
    """Only of a peer that gives any."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All ids kept, in order (EOS included when it was emitted)."""
        return tuple(token for step in self.steps for token in step.tokens)

    @property
    def ttft_s(self) -> float | None:
        """Seconds to the first tokens; ``None`` where the prompt was copied from another cell."""
        return self.steps[0].seconds if self.steps else None

    @property
    def seconds(self) -> float | None:
        """Seconds of all steps; ``None`` where the prompt was copied from another cell."""
        if any(step.seconds is None for step in self.steps):
            return None
        return math.fsum(step.timed_s for step in self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRecord:
    """One sample decoded by one cell: a trace and its text, or the error that kept it from being made."""

    cell: str
    """``Cell.label``."""
    sample_id: str
    prompt_hash: str
    repeat: int = 0
    warmup: bool = False
    """Kept, but left out of every statistic."""
    trace: GenerationTrace | None = None
    text: str | None = None
    step_texts: tuple[str, ...] = ()
    """Text piece of each step: joined, the answer before a stop string was cut. Empty where there is no tokenizer."""
    error: str | None = None
    truncated_tokens: int = 0
    """Prompt tokens cut by the suite's own rule."""
    thinking_tokens: int | None = None
    """Tokens of the answer up to the end of its thinking; ``None`` where the run did not say what ends it."""
    peak_memory_bytes: int | None = None
    """Peak of the GPU's allocator during this answer, all weights included; ``None`` on a CPU."""
    other_load: float | None = None
    """Share of the machine's CPU time that other processes took meanwhile, 0..1."""
    native_calls: int | None = None
    """Calls of the native engine during this answer; ``None`` where other kernels ran."""
    native_calls_alone: int | None = None
    """How many of them ran on one thread, although more were asked for, because others held a core."""
    throttles: tuple[str, ...] = ()
    """Why the GPU held its clocks down when the answer was done."""
    contaminated: bool = False
    """Whether others took more than :data:`BUSY_LOAD` meanwhile, more than :data:`ALONE_SHARE` of the native calls went
    alone, or the GPU held its clocks down; superseded where it could be measured again."""
    started_at: float | None = None
    """Unix time."""
    worker: str | None = None
    """Which worker of a cluster made it; its fingerprint is in the telemetry."""
    prompt: str | None = None
    """The prompt as asked, where the cell's own earlier answers are part of it; ``None`` where it is the sample's."""

    @property
    def share_alone(self) -> float:
        """Share of the native calls that went alone, 0..1."""
        return (self.native_calls_alone or 0) / self.native_calls if self.native_calls else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One metric of one answer, as its task's official scorer gave it."""

    cell: str
    sample_id: str
    repeat: int
    metric: str
    value: float | None
    """``None`` when the scorer failed; see ``error``."""
    primary: bool = True
    """Whether this is the task's headline metric (others are shown, not pooled)."""
    scale: float = 1.0
    """Largest possible value: accuracy in points is 100 * value / scale."""
    scorer: str = ""
    """Scorer and version, e.g. ``lm-eval 0.4.13``."""
    error: str | None = None

    @property
    def points(self) -> float | None:
        """From 0 to 100; ``None`` where the scorer failed: it says so, gives nothing, or gives NaN."""
        if self.value is None or self.error is not None or not math.isfinite(self.value):
            return None
        return 100 * self.value / self.scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """One distinct answer under its target, teacher-forced over the answer as it stands.

    Cells that gave the same answer to the same prompt share it: :func:`answer_key` finds it for a record.
    """

    sample_id: str
    answer: str
    """:func:`answer_key` of the records that it judges."""
    regrets: tuple[float, ...] = ()
    """For each answer token, the target's highest log-probability at its place less that of the token, in nats."""
    logprobs: tuple[float, ...] = ()
    """Log-probability of each answer token, in nats."""
    gaps: tuple[float, ...] = ()
    """The target's best logit less its second best, at the place of each answer token."""
    error: str | None = None
    """Why the answer could not be judged."""

    def __post_init__(self) -> None:
        if not len(self.regrets) == len(self.logprobs) == len(self.gaps):
            lengths = len(self.regrets), len(self.logprobs), len(self.gaps)
            raise ValueError(f"regrets, logprobs and gaps must have the same length, got {lengths}")

    @property
    def regret(self) -> float:
        """Summed over the answer, in nats."""
        return sum(self.regrets)

    @property
    def num_agreed(self) -> int:
        """Tokens that are the target's own choice at their place."""
        return sum(regret == 0 for regret in self.regrets)


def answer_key(record: SampleRecord) -> str:
    """What identifies a record's prompt and answer, whichever cell made them; it must have one."""
    if record.trace is None:
        raise ValueError(f"record must have a trace, got an error: {record.error}")
    trace = record.trace
    asked = f"{record.sample_id}\0{record.prompt_hash}\0{trace.prompt_tokens}\0{record.truncated_tokens}\0"
    asked += "" if record.prompt is None else f"{record.prompt}\0"
    answer = ",".join(map(str, trace.token_ids))
    return hashlib.sha256(f"{asked}{answer}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
