"""Estimates from a short calibration how long a run takes and how many samples fit into a time budget."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from hambench.decoding import DecodingMethod, SamplingParams
from hambench.engine.requests.shared_prefill import Reader, ReadPrompts
from hambench.engine.warmup import MAX_PASSES, NUM_PROMPT_TOKENS, NUM_STEPS, made_up_steps
from hambench.errors import HambenchError
from hambench.records import Cell, Sample
from hambench.registry import facts_of, is_lossless
from hambench.runner.conversations import prompt_sizes
from hambench.runner.work import NUM_TIMED_PROMPTS, interleave_tasks

if TYPE_CHECKING:
    from hambench.models.target import TargetModel

CALIBRATION_PROMPT, CALIBRATION_STEPS = 256, 12
_GROWTH_STEPS = 5
_GROWTH_PROMPT = 2048
"""Longest prompt that growth is measured on: attention's share grows in proportion, so longer ones follow from it."""
_JUDGED_ROW = 2.0
"""Prefill tokens that one judged token costs at most: its row of logits reads the head, which a prompt's rows don't."""
PROBES_S = 4.0
"""Bandwidth probes before and after a run, of each number of threads."""
MARGIN = 1.25
"""Time kept for real samples over what calibration foretells: a judgement. In one run of ten cells on two Zen 3 cores
(a scratch script compared them) samples took 1.11 times the foretold time, though their answers ended early."""


class Bound(Protocol):
    """Foretells samples."""

    def __call__(self, sample: Sample, num_before: int, *, is_judged: bool = True) -> float:
        """Returns an upper bound for one sample's seconds over all cells.

        Args:
            sample: The sample.
            num_before: How many samples come before it.
            is_judged: Whether to count the judgement of its answers, if the run has one.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How the target's speed falls with context length, fitted to two lengths."""

    prefill: float = 0.0
    """Relative growth of the seconds per prompt token, for each prompt token past :data:`CALIBRATION_PROMPT`."""
    decode: float = 0.0
    """The same of the seconds per new token, for each position past it."""
    prefill_s_per_token: float = 0.0
    """Seconds per prompt token at that length: what judging an answer costs per token, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Rough speeds of one cell on a prompt of :data:`CALIBRATION_PROMPT` tokens."""

    prefill_s_per_token: float
    """Of a cell that reads its prompt itself."""
    decode_s_per_token: float
    step_s: float
    """One decode step, however many tokens it gives."""
    growth: Growth = Growth()
    """Attention reads all that came before: longer prompts cost more per token."""
    reads: Mapping[Reader, float] = field(default_factory=dict)
    """The part of ``prefill_s_per_token`` that each model's reading takes, which another cell's reading may spare."""

    def seconds(self, num_prompt_tokens: int, num_new_tokens: int) -> float:
        """Returns the seconds of one sample."""
        middle = max(0, num_prompt_tokens + num_new_tokens / 2 - CALIBRATION_PROMPT)
        prefill = self.prompt_seconds(self.prefill_s_per_token, num_prompt_tokens)
        return prefill + self.decode_s_per_token * num_new_tokens * (1 + self.growth.decode * middle)

    def prompt_seconds(self, s_per_token: float, num_prompt_tokens: int) -> float:
        """Returns the seconds of work on a prompt that takes so long per token at the calibration's length."""
        past = max(0, num_prompt_tokens - CALIBRATION_PROMPT)
        return s_per_token * num_prompt_tokens * (1 + self.growth.prefill * past)

    @property
    def warm_up_s(self) -> float:
        """Seconds of a warm-up that never settles (the longest one)."""
        return MAX_PASSES * (self.prefill_s_per_token * NUM_PROMPT_TOKENS + self.step_s * NUM_STEPS)


@torch.inference_mode()
def measure_growth(target: TargetModel, num_tokens: int) -> Growth:
    """Times the target alone on a short prompt and on one as long as the longest of the run, up to 2,048 tokens.

    Args:
        target: The model that all cells decode.
        num_tokens: Number of prompt tokens of the longest sample.
    """
    longest = min(num_tokens, _GROWTH_PROMPT, target.context_length - 2 * _GROWTH_STEPS)
    short = min(CALIBRATION_PROMPT, longest)
    if short < 1:
        return Growth()
    _time_target(target, short)
    prefill, decode = _time_target(target, short)
    if longest <= 2 * short:
        return Growth(prefill_s_per_token=prefill)
    long_prefill, long_decode = _time_target(target, longest)
    more = longest - short
    return Growth(
        prefill=max(0.0, long_prefill / prefill - 1) / more,
        decode=max(0.0, long_decode / decode - 1) / more,
        prefill_s_per_token=prefill,
    )


def _time_target(target: TargetModel, num_tokens: int) -> tuple[float, float]:
    """Returns seconds per prompt token and per new token on a synthetic prompt of this length."""
    model = target.llama
    prompt = torch.tensor(_made_up_prompt(num_tokens), device=target.device)
    cache = model.new_cache(num_tokens + _GROWTH_STEPS)
    began = time.perf_counter()
    token = int(model.prefill(prompt, cache).logits[-1].argmax())
    prefilled = time.perf_counter()
    steps = []
    for _ in range(_GROWTH_STEPS):
        before = time.perf_counter()
        (token,) = model.greedy([token], cache)
        steps.append(time.perf_counter() - before)
    return (prefilled - began) / num_tokens, statistics.median(steps)


def _made_up_prompt(num_tokens: int) -> list[int]:
    # it does not repeat: lookups and drafts then look no better than they are
    return [1 + (index * index) % 211 for index in range(num_tokens)]


def calibrate(
    method: DecodingMethod,
    context_length: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    growth: Growth = Growth(),
    batch: int = 1,
    prompts: ReadPrompts | None = None,
) -> Speed:
    """Measures a warm method's speeds on a synthetic prompt with the run's sampling parameters.

    Args:
        method: The method, warmed up.
        context_length: Number of positions that the model has.
        temperature: Temperature of the answers to come.
        top_p: Nucleus of the answers to come.
        growth: How the target slows with the context.
        batch: Sequences that the cell decodes together.
        prompts: Shared by several calls, so that each model reads the synthetic prompt once.
    """
    prompts = prompts or ReadPrompts(time.perf_counter)
    prompts.take_asked()
    keeping_s = prompts.keeping_s
    num_prompt = min(CALIBRATION_PROMPT, context_length // 2)
    prompt = _made_up_prompt(num_prompt)
    limit = min(8 * CALIBRATION_STEPS, context_length - num_prompt)
    num_tokens = num_steps = 0
    if batch > 1:
        params = SamplingParams(max_new_tokens=limit, temperature=temperature, top_p=top_p)
        return _calibrate_batch(method, prompt, params, batch, growth)
    with torch.inference_mode():
        began = time.perf_counter()
        params = SamplingParams(max_new_tokens=limit, temperature=temperature, top_p=top_p)
        steps = made_up_steps(method, prompt, params, num_steps=CALIBRATION_STEPS, answer=prompts.answer)
        next(steps)
        prefilled = time.perf_counter()
        for step in steps:
            num_tokens += len(step.tokens)
            num_steps += 1
        done = time.perf_counter()
    asked = prompts.take_asked()
    spared = sum(seconds for seconds, was_read in asked.values() if not was_read)
    return Speed(
        prefill_s_per_token=(prefilled - began - (prompts.keeping_s - keeping_s) + spared) / num_prompt,
        decode_s_per_token=(done - prefilled) / max(1, num_tokens),
        step_s=(done - prefilled) / max(1, num_steps),
        growth=growth,
        reads={reader: seconds / num_prompt for reader, (seconds, _) in asked.items()},
    )


def _calibrate_batch(
    method: DecodingMethod, prompt: list[int], params: SamplingParams, size: int, growth: Growth
) -> Speed:
    """Measures a full batch; each sequence counts its part of the rounds."""
    from hambench.engine.requests.batch import Ask, Batch, SequenceFailed

    batch: Batch[int] = Batch(method, size)
    for number in range(size):
        batch.add(number, Ask(prompt_ids=prompt, params=params))
    begun: set[int] = set()
    prefill_s, num_full = 0.0, 0
    partial, full = list[tuple[float, int]](), list[tuple[float, int]]()
    while batch.num_sequences and num_full < CALIBRATION_STEPS:
        events = batch.round()
        # prompts are read one after the other: only rounds of all sequences tell the speed of a full batch
        is_full = len(begun) == size and len(events) == size
        num_full += is_full
        for event in events:
            if isinstance(event, SequenceFailed):
                raise event.error
            share = event.step.share_s or 0.0
            if event.key in begun:
                (full if is_full else partial).append((share, len(event.step.tokens)))
            else:
                begun.add(event.key)
                prefill_s += share
    steps = full or partial
    decode_s, num_tokens = sum(share for share, _ in steps), sum(number for _, number in steps)
    return Speed(
        prefill_s_per_token=prefill_s / (size * len(prompt)),
        decode_s_per_token=decode_s / max(1, num_tokens),
        step_s=decode_s / max(1, len(steps)),
        growth=growth,
    )


def sample_seconds(
    sample: Sample,
    num_prompt_tokens: int,
    cells: Sequence[Cell],
    speeds: Mapping[str, Speed],
    *,
    judge: Growth | None = None,
    judge_reader: Reader | None = None,
    is_shared: bool = False,
    is_greedy: bool = False,
) -> float:
    """Returns an upper bound for one sample over all cells: every answer as long as its cell or task allows.

    Args:
        sample: The sample.
        num_prompt_tokens: Number of tokens of its prompt.
        cells: Cells that answer it.
        speeds: Calibrated speeds by cell label.
        judge: Speed of the target if it judges the answers, equal ones once.
        judge_reader: Who reads the judge's prompts: if a cell's prompt is read by the same, the judge copies it.
        is_shared: Whether cells copy a prompt that another one has read with the same model.
        is_greedy: Whether lossless cells of our engine, and batches of one setting, count as giving equal answers.
    """
    total = 0.0
    were_read: set[tuple[int, Reader | None]] = set()
    prompts: set[int] = set()
    judged: set[tuple[Hashable, int, int]] = set()
    for cell in cells:
        num_new = cell.asks(sample).max_new_tokens
        num_prompt = max(0, min(num_prompt_tokens, cell.positions(num_prompt_tokens + num_new) - num_new))
        speed = speeds[cell.label]
        total += speed.seconds(num_prompt, num_new)
        # turns of a conversation hold the cell's own answers: nobody else has read them
        if is_shared and not sample.conversation:
            for reader, s_per_token in speed.reads.items():
                if (num_prompt, reader) in were_read:
                    total -= speed.prompt_seconds(s_per_token, num_prompt)
                were_read.add((num_prompt, reader))
        prompts.add(num_prompt)
        judged.add((_answer_of(cell) if is_greedy else cell.label, num_prompt, num_new))
    if judge is None:
        return total
    # each distinct prompt once; a row of an answer has logits of its own, which a prompt's rows have not
    longest = max(prompts, default=0)
    rate = judge.prefill_s_per_token * (1 + judge.prefill * max(0, longest - CALIBRATION_PROMPT))
    to_read = sum(size for size in prompts if (size, judge_reader) not in were_read)
    return total + rate * (to_read + _JUDGED_ROW * sum(num_new for _, _, num_new in judged))


def _answer_of(cell: Cell) -> Hashable:
    """What decides a greedy answer; on native kernels threads and batch do not, elsewhere they may round otherwise."""
    # a peer rounds in an engine of its own
    is_targets = is_lossless(cell) and facts_of(cell.method).shares_forwards
    setting = () if is_targets else (cell.method, *sorted(cell.knobs.items()))
    rows = () if cell.kernels == "native" else (cell.threads, cell.batch)
    return setting, cell.regime, cell.kernels, rows


def bound_samples(
    samples: Sequence[Sample],
    cells: Sequence[Cell],
    speeds: Mapping[str, Speed],
    *,
    count_tokens: Callable[[str], int],
    judge: Growth | None = None,
    judge_reader: Reader | None = None,
    is_shared: bool = False,
    is_greedy: bool = False,
) -> Bound:
    """Returns :func:`sample_seconds` of these samples as a function of the sample and of how many come before it.

    Judging the answers is counted here if there is a ``judge``, and each prompt once per reader if prompts are shared.
    """
    longest = max(cell.max_new_tokens or 0 for cell in cells)
    sizes = prompt_sizes(samples, lambda sample: count_tokens(sample.prompt), longest_answer=longest)

    def bound(sample: Sample, num_before: int, *, is_judged: bool = True) -> float:
        return sample_seconds(
            sample,
            sizes[sample.sample_id],
            cells,
            speeds,
            judge=judge if is_judged else None,
            judge_reader=judge_reader,
            # the first few are read by every cell
            is_shared=is_shared and num_before >= NUM_TIMED_PROMPTS,
            is_greedy=is_greedy,
        )

    return bound


def fit_budget(
    samples: Sequence[Sample],
    cells: Sequence[Cell],
    bound: Bound,
    budget_s: float,
    *,
    repeats: int,
    spent_s: float = 0.0,
    share: float = 1.0,
    fewest: int = 1,
) -> tuple[Sample, ...]:
    """Selects the samples that fit into a time by the upper bounds, round-robin over tasks, in the given order.

    A task is closed once its next sample no longer fits; the other tasks go on, so every task gets the same chance.
    ``spent_s`` is the time that goes into everything but samples, from loading to the report. Of what is left
    they get a ``share``, but ``fewest`` of them as long as these fit at all. The first sample beyond the share ends
    the selection: others in its place would be those of short prompts.

    Raises:
        HambenchError: If not even one sample fits.
    """
    left = all_left = (budget_s - spent_s) / (MARGIN * repeats)
    chosen: set[str] = set()
    closed: set[tuple[str, str]] = set()
    cheapest = float("inf")
    for sample in interleave_tasks(samples):
        task = (sample.suite, sample.task)
        if task in closed:
            continue
        seconds = bound(sample, len(chosen))
        cheapest = min(cheapest, seconds)
        if seconds > left:
            closed.add(task)
            continue
        if len(chosen) >= fewest and left - seconds < (1 - share) * all_left:
            break
        left -= seconds
        chosen.add(sample.sample_id)
    if not chosen:
        raise HambenchError(
            f"a budget of {budget_s:.0f} s fits no sample: {spent_s:.0f} s go into loading, warming up, bandwidth "
            f"probes, scoring and the report, and the cheapest sample takes up to "
            f"{cheapest * repeats * MARGIN:.0f} s over {len(cells)} cells; "
            f"raise --budget, name fewer methods, or lower --max-new-tokens"
        )
    return tuple(sample for sample in samples if sample.sample_id in chosen)
