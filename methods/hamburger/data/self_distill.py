"""Generates training data from the base model's own answers, in batches and without a data set.

Answers are greedy, because a benchmark decodes greedy answers. The segmentation's entropies on them are then the
model's own.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hambench.engine.chat import render_chat
from hambench.engine.text import encode_text
from hambench.errors import ModelError
from hambench.files import replacing
from hambench.methods.hamburger.base import tokenizer_of
from hambench.methods.hamburger.data.batched import COHORT_ROWS, ROWS, decode_answers

if TYPE_CHECKING:
    from hambench.methods.hamburger.data.prompts import Prompt
    from hambench.methods.hamburger.training.trainer import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfDistillation:
    """How many prompts the base answers itself if there is no data."""

    num_prompts: int = 2000
    num_user_turns: int = 400
    """How many of them are user turns that the instruct model generates first."""
    max_new_tokens: int = 160
    max_prompt_tokens: int = 512


def default_amounts(minutes: float | None) -> tuple[int, int]:
    """Returns how many prompts and windows a run takes that is given no data.

    These are more than two Sapphire Rapids cores are through with in a recipe's time for data (2,816 of 4,200 prompts
    and 1,664 of 2,100 windows in an hour's run). A run trains on those that are ready by then.
    """
    prompts = SelfDistillation().num_prompts if minutes is None else max(40, round(70 * minutes))
    return prompts, prompts // 2


def answer_prompts(
    trainer: Trainer,
    base: Any,
    settings: SelfDistillation,
    path: Path,
    report: Callable[[str], None],
) -> None:
    """Writes the base's answers to generated prompts, as many as are ready in half of the time for data.

    Args:
        trainer: The run that needs them.
        base: The base as it was before any training.
        settings: Number and lengths of prompts and answers.
        path: The JSONL file to write.
        report: Receives lines on the progress.

    Raises:
        ModelError: If the base has no tokenizer.
    """
    from hambench.methods.hamburger.data.prompts import Prompt, build_prompts

    tokenizer, eos_ids = tokenizer_of(trainer.folder)
    if tokenizer is None:
        raise ModelError(f"{trainer.model_name} has no tokenizer, so it can't be asked anything; give --data")
    seed, clock = trainer.options.seed, trainer.clock
    # the base's reading takes the other half of the time for data
    share = trainer.recipe.data_share / 2
    turns: list[str] = []
    if tokenizer.chat_template and settings.num_user_turns:
        report(f"sampling {settings.num_user_turns} user turns")
        turns = sample_user_turns(
            base,
            tokenizer,
            settings.num_user_turns,
            eos_ids=eos_ids,
            seed=seed,
            may_begin=lambda: not clock.is_past(share / 4),
        )
    built_prompts = build_prompts(max(0, settings.num_prompts - len(turns)), seed=seed)
    prompts = [*built_prompts, *(Prompt(turn, "self", chat=True) for turn in turns)]
    # where time ends early, all kinds have to have had their turn
    random.Random(f"prompts {seed}").shuffle(prompts)
    asked_ids = [
        ids for p in prompts if 0 < len(ids := prompt_ids(tokenizer, p)) <= settings.max_prompt_tokens
    ]
    report(f"answering {len(asked_ids)} prompts")
    answers: list[tuple[int, list[int]]] = []
    answered = generate(
        base,
        asked_ids,
        max_new_tokens=settings.max_new_tokens,
        eos_ids=eos_ids,
        may_begin=lambda: not clock.is_past(share),
    )
    for answer in answered:
        answers.append(answer)
        if len(answers) % 64 == 0:
            report(f"{len(answers)} answers, {clock.seconds:.0f} s")
    # short answers end first, so the file is in the order of the prompts: its first rows are a fair sample
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for index, response in sorted(answers):
            file.write(json.dumps({"prompt_ids": asked_ids[index], "response_ids": response}) + "\n")


def prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Encodes a prompt, inside the model's chat template if it has one and the prompt asks for it."""
    if not (prompt.chat and tokenizer.chat_template):
        return encode_text(prompt.text, tokenizer)
    text = render_chat(tokenizer, [{"role": "user", "content": prompt.text}])
    return encode_text(text, tokenizer, add_special_tokens=False)


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: frozenset[int],
    temperature: float = 0.0,
    rows: int = ROWS,
    may_begin: Callable[[], bool] = lambda: True,
) -> Iterator[tuple[int, list[int]]]:
    """Yields ``(prompt index, response ids)`` as answers end; a response includes its end-of-sequence id, if reached.

    Prompts of similar length begin together, but only within a window of twice ``rows`` prompts and in random order, so
    that a run whose time is over has a fair sample of prompts that are in random order themselves. For the same reason
    an answer that has begun is finished when ``may_begin`` returns False; see
    :func:`~hambench.methods.hamburger.data.batched.decode_answers`.
    """
    window, rng = 2 * rows, random.Random(0)
    order: list[int] = []
    for start in range(0, len(prompts), window):
        near = sorted(range(start, min(start + window, len(prompts))), key=lambda i: len(prompts[i]))
        together = [near[first : first + COHORT_ROWS] for first in range(0, len(near), COHORT_ROWS)]
        rng.shuffle(together)
        order += [index for cohort in together for index in cohort]
    answers = decode_answers(
        model,
        [prompts[i] for i in order],
        max_new_tokens=max_new_tokens,
        eos_ids=eos_ids,
        temperature=temperature,
        rows=rows,
        may_begin=may_begin,
    )
    for place, answer in answers:
        yield order[place], answer


def sample_user_turns(
    model: Any,
    tokenizer: Any,
    count: int,
    *,
    eos_ids: frozenset[int],
    seed: int = 0,
    may_begin: Callable[[], bool] = lambda: True,
) -> list[str]:
    """Samples user turns from the instruct model, prompted with its template up to the start of a user's turn.

    Once ``may_begin`` returns False, only those that have begun are finished.
    """
    marker = "\u2402"
    text = tokenizer.apply_chat_template([{"role": "user", "content": marker}], tokenize=False)
    opening = encode_text(text.partition(marker)[0], tokenizer, add_special_tokens=False)
    torch.manual_seed(seed)
    turns = []
    sampled = generate(
        model,
        [opening] * count,
        max_new_tokens=80,
        eos_ids=eos_ids,
        temperature=0.9,
        may_begin=may_begin,
    )
    for _, ids in sampled:
        if ids and ids[-1] in eos_ids:
            turns.append(tokenizer.decode(ids[:-1], skip_special_tokens=True).strip())
    return [turn for turn in dict.fromkeys(turns) if len(turn) > 10]
