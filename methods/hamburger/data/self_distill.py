"""Generates training data from the base model's own answers, in batches and without a data set.

Answers are greedy, because a benchmark decodes greedy answers. The segmentation's entropies on them are then the
model's own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hambench.engine.chat import render_chat
from hambench.engine.text import encode_text
from hambench.methods.hamburger.data.batched import COHORT_ROWS, ROWS, decode_answers

if TYPE_CHECKING:
    from hambench.methods.hamburger.data.prompts import Prompt


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
