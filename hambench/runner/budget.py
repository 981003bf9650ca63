"""How long a run will take, and how many samples fit into a time: an estimate from a short calibration."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from hambench.decoding import DecodingMethod, SamplingParams
from hambench.engine.warmup import MAX_PASSES, NUM_PROMPT_TOKENS, NUM_STEPS, made_up_steps
from hambench.errors import HambenchError
from hambench.records import Cell, Sample
from hambench.runner.generator import interleave_tasks

CALIBRATION_PROMPT, CALIBRATION_STEPS = 256, 12
MARGIN = 1.25
"""Time kept for real samples over what calibration foretells: a judgement. In one run of ten cells on two Zen 3 cores
(a scratch script compared them) samples took 1.11 times the foretold time, though their answers ended early."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Rough speeds of one cell."""

    prefill_s_per_token: float
    decode_s_per_token: float
    step_s: float
    """One decode step, however many tokens it gives."""

    def seconds(self, num_prompt_tokens: int, num_new_tokens: int) -> float:
        """Time of one sample."""
        return self.prefill_s_per_token * num_prompt_tokens + self.decode_s_per_token * num_new_tokens

    @property
    def warm_up_s(self) -> float:
        """Time of a warm-up that does not settle."""
        return MAX_PASSES * (self.prefill_s_per_token * NUM_PROMPT_TOKENS + self.step_s * NUM_STEPS)


def calibrate(
    method: DecodingMethod, context_length: int, *, temperature: float = 0.0, top_p: float = 1.0
) -> Speed:
    """Measures a method's speeds on a made-up prompt, sampled as the answers will be, after a warm-up of its own."""
    method.warmup()
    num_prompt = min(CALIBRATION_PROMPT, context_length // 2)
    # a made-up prompt that does not repeat: lookups and drafts then look no better than they are
    prompt = [1 + (index * index) % 211 for index in range(num_prompt)]
    limit = min(8 * CALIBRATION_STEPS, context_length - num_prompt)
    num_tokens = num_steps = 0
    with torch.inference_mode():
        began = time.perf_counter()
        params = SamplingParams(max_new_tokens=limit, temperature=temperature, top_p=top_p)
        steps = made_up_steps(method, prompt, params, num_steps=CALIBRATION_STEPS)
        next(steps)
        prefilled = time.perf_counter()
        for step in steps:
            num_tokens += len(step.tokens)
            num_steps += 1
        done = time.perf_counter()
    return Speed(
        prefill_s_per_token=(prefilled - began) / num_prompt,
        decode_s_per_token=(done - prefilled) / max(1, num_tokens),
        step_s=(done - prefilled) / max(1, num_steps),
    )


def sample_seconds(
    sample: Sample, num_prompt_tokens: int, cells: Sequence[Cell], speeds: Mapping[str, Speed]
) -> float:
    """Longest time that one sample takes over all cells: every answer as long as its cell or task allows."""
    total = 0.0
    for cell in cells:
        num_new = cell.asks(sample).max_new_tokens
        num_prompt = max(0, min(num_prompt_tokens, cell.positions(num_prompt_tokens + num_new) - num_new))
        total += speeds[cell.label].seconds(num_prompt, num_new)
    return total


def fit_budget(
    samples: Sequence[Sample],
    cells: Sequence[Cell],
    speeds: Mapping[str, Speed],
    budget_s: float,
    *,
    repeats: int,
    count_tokens: Callable[[str], int],
    spent_s: float = 0.0,
) -> tuple[Sample, ...]:
    """The samples that surely fit into a time, tasks taking turns, in the order given.

    A task whose next sample no longer fits is closed, and the others go on; every task gets the same chance.
    ``spent_s`` of the time went into loading and calibration; the warm-ups to come are counted here.

    Raises:
        HambenchError: If not even one sample fits.
    """
    fixed_s = spent_s + sum(speeds[cell.label].warm_up_s for cell in cells)
    left = (budget_s - fixed_s) / (MARGIN * repeats)
    chosen: set[str] = set()
    closed: set[tuple[str, str]] = set()
    cheapest = float("inf")
    for sample in interleave_tasks(samples):
        task = (sample.suite, sample.task)
        if task in closed:
            continue
        seconds = sample_seconds(sample, count_tokens(sample.prompt), cells, speeds)
        cheapest = min(cheapest, seconds)
        if seconds > left:
            closed.add(task)
            continue
        left -= seconds
        chosen.add(sample.sample_id)
    if not chosen:
        raise HambenchError(
            f"a budget of {budget_s:.0f} s fits no sample: {fixed_s:.0f} s go into loading and warming up, and the "
            f"cheapest sample takes up to {cheapest * repeats * MARGIN:.0f} s over {len(cells)} cells; raise --budget, "
            f"name fewer methods, or lower --max-new-tokens"
        )
    return tuple(sample for sample in samples if sample.sample_id in chosen)
