"""The spine of every run: Cell → StepRecord → GenerationTrace → SampleRecord → Measurement → Comparison.

Frozen dataclasses of plain values; counts are stored and rates derived (see :mod:`hambench.analysis.metrics`).
``msgspec`` reads and writes them as JSON and checks types on the way in. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from hambench.method_facts import AnswerTotals, KnobValue
from hambench.run_notes import Note

SCHEMA_VERSION = 1
"""Version of the run folder. 1 - (0.1.0) header, prompts, samples, scores."""

BUSY_LOAD = 0.10
"""Share of the machine that others may take before a timing counts as disturbed, everywhere."""
ALONE_SHARE = 0.05
"""Share of an answer's native calls that may run on one thread before its timing counts as disturbed."""

Truncation = Literal["error", "middle"]
FinishReason = Literal["eos", "stop", "length", "steps"]
Edition = Literal["official", "offline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One configuration of a sweep: one point of the Pareto plot."""

    method: str
    """Registry name of the method."""
    label: str
    """Display name with knobs, unique within a run."""
    knobs: dict[str, KnobValue]
    """All knobs of the method."""
    model: str
    """Model name as given."""
    dtype: str
    """``float32``, ``bfloat16`` or ``float16``."""
    regime: str = "eager"
    """How the engine launches work: ``eager`` or ``graph``."""
    kernels: str = "reference"
    """``reference`` (torch's own operations), ``native`` (the CPU engine) or ``fused`` (hambench's Triton kernels)."""
    threads: int | None = None
    """Intra-op threads of torch, where the sweep sets them."""
    context: int | None = None
    """Positions that prompt and answer may take, where the sweep sets them; else all that the model has."""
    max_new_tokens: int | None = None
    """Limit of every answer, where the sweep sets one; else the sample's own."""
    batch: int = 1
    """Sequences that are decoded together at most."""
    own_sizes: dict[str, KnobValue] = field(default_factory=dict)
    """Sizes of what the method adds to the model, as it stated them when the run began."""
    run: str = ""
    """Run that the cell was measured in, where a report joins several; empty in a run of its own."""

    @property
    def conditions(self) -> tuple[str | int | None, ...]:
        """What is not the method's own: cells that agree in it differ by their method and its knobs alone."""
        limits = (self.threads, self.context, self.max_new_tokens, self.batch)
        return (self.regime, self.kernels, *limits, self.run)

    def asks(self, sample: Sample) -> Sample:
        """The sample as this cell is asked it: with the cell's own limit, if it has one."""
        return sample.limited(self.max_new_tokens)

    def positions(self, context_length: int) -> int:
        """Positions that prompt and answer may take on a model of ``context_length`` positions."""
        return context_length if self.context is None else min(self.context, context_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request of a suite, as captured from its task: everything generation needs, nothing of the model."""

    sample_id: str
    """``suite/task/doc_id``: the key that pairs methods."""
    suite: str
    task: str
    category: str
    """Category within the suite, e.g. ``code`` or ``single-doc``."""
    doc_id: int
    prompt: str
    """Final text, the chat template already applied where ``chat`` is set."""
    stop: tuple[str, ...]
    """Strings that end the answer; the text is cut before the first of them."""
    max_new_tokens: int
    cluster: str = ""
    """Shared by samples of a suite that are not independent (questions about one document); empty for one alone."""
    chat: bool = False
    """Whether the prompt is chat-templated: special tokens are in the text and none are added."""
    truncation: Truncation = "error"
    """What to do with a prompt longer than the context: record an error, or cut its middle (LongBench's rule)."""
    references: tuple[str, ...] = ()
    """Gold answers, for reading only; scoring goes through the task."""
    edition: Edition = "official"
    keep_start: int = 0
    """Characters at the start of the prompt that the middle cut must not touch (a chat template's opening)."""
    keep_end: int = 0
    """The same at the end: LongBench cuts its own prompt first and wraps it in a chat turn afterwards."""
    doc: dict[str, Any] = field(default_factory=dict)
    """The task's row, long contexts left out: what the scorer needs, so that scores need no data set."""
    conversation: str = ""
    """What the turns of one conversation share; empty for a question by itself."""
    turn: int = 0
    """Place of the turn in its conversation, from 1; 0 for a question by itself."""
    messages: tuple[dict[str, str], ...] = ()
    """Messages that this turn adds; a later turn's prompt is theirs alone, and the record has the prompt as asked."""

    def limited(self, max_new_tokens: int | None) -> Sample:
        """The sample with this limit of its answer; with its own if ``None``."""
        return self if max_new_tokens is None else dataclasses.replace(self, max_new_tokens=max_new_tokens)

    @property
    def prompt_hash(self) -> str:
        """First 16 hex digits of the prompt's sha256."""
        return hashlib.sha256(self.prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its interval; ``low``/``high`` are ``None`` where n does not allow one."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0


Verdict = Literal["better", "worse", "equivalent", "inconclusive", "not comparable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One metric of a candidate against the baseline, paired by sample."""

    candidate: str
    baseline: str
    group: str
    metric: str
    effect: Estimate | None
    """A ratio (candidate / baseline) for speeds and bytes, a difference in points for accuracy."""
    verdict: Verdict
    p_value: float | None = None
    adjusted_p_value: float | None = None
    """The p-value after correcting for the settings of the run, or for its tasks; what the verdict rests on."""
    minimum_detectable_effect: float | None = None
    standard_error: float | None = None
    """Of the effect, of its logarithm for a ratio."""
    degrees_of_freedom: float | None = None
    num_left_out: int = 0
    """Pairs that could not be compared, e.g. answers without a token after the first step."""
    num_equal: int | None = None
    """Pairs of answers that are equal token by token; ``None`` where tokens were not compared."""
    num_answers: int | None = None
    """Pairs of answers whose tokens were compared."""
    reason: str = ""
    """Why the verdict is what it is, in one clause, where the numbers don't say it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHeader:
    """What a run was asked to do and where: written first, never changed."""

    schema_version: int
    run_id: str
    created_at: str
    """UTC, ISO 8601."""
    hambench_version: str
    commit: str | None
    command: tuple[str, ...]
    suites: tuple[str, ...]
    edition: Edition
    data_source: str
    """Where the rows came from: ``folder``, ``hub`` or ``offline edition``."""
    data_hashes: dict[str, str]
    """sha256 per task of its captured prompts, in order."""
    cells: tuple[Cell, ...]
    num_samples: int  # at the beginning: with a budget, a run may add others
    limit: int | None
    repeats: int
    seed: int
    temperature: float
    top_p: float
    max_new_tokens: int | None
    """Override of the tasks' own limits."""
    model: dict[str, str | int | float | bool | None]
    """Identity of the target: name, source, sha256 of the weights, note (e.g. de-quantised), context length, bytes."""
    environment: dict[str, str | int | float | bool | None]
    ignore_eos: bool = False
    """Answers of full length whatever was emitted: speed only, no scores."""
    fidelity: bool = True
    """Whether every answer is judged by the target after it was made."""
    think_end: str | None = None
    """String behind which the scored text begins, where the model's thinking was cut."""
    chat_template_args: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    """Variables that were given to the model's chat template."""
    prefill: Literal["shared", "each"] = "each"
    """Whether cells with the same weights copied a prompt that one of them had read; see ``--prefill``."""
    prefill_chunk: int | None = None  # rows of a prompt's pieces, by default the engine's own number
    max_remeasured: int = 2  # how often a contaminated timing was taken again
    suite_spec: dict[str, Any] = field(default_factory=dict)
    """What the suites need to build the same requests again: scores can be rebuilt from the stored text."""
    price_per_hour: float | None = None
    """Dollars per hour of the machine, if given: costs per token follow from it."""
    weights: dict[str, str] = field(default_factory=dict)
    """sha256 of the weights that methods loaded next to the target's (a draft, grafts), by what they are."""
    num_whole: int | None = None  # samples once a budget leaves none out; None where a limit does
    notes: tuple[Note, ...] = ()
    """Warnings that every report must show first: offline edition, de-quantised model, CPU, forced or partial runs."""
