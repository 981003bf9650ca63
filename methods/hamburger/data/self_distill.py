"""Generates training data from the base model's own answers, in batches with transformers and without a data set.

Answers are greedy, because a benchmark decodes greedy answers. The segmentation's entropies on them are then the
model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hambench.engine.chat import render_chat
from hambench.engine.text import encode_text
from hambench.methods.hamburger.data.batched import decode_batch

if TYPE_CHECKING:
    from hambench.methods.hamburger.data.prompts import Prompt


def prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Encodes a prompt, inside the model's chat template if it has one and the prompt asks for it."""
    if not (prompt.chat and tokenizer.chat_template):
        return encode_text(prompt.text, tokenizer)
    text = render_chat(tokenizer, [{"role": "user", "content": prompt.text}])
    return encode_text(text, tokenizer, add_special_tokens=False)


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: frozenset[int],
    batch_size: int = 64,
    temperature: float = 0.0,
) -> Iterator[tuple[int, list[int]]]:
    """Yields ``(prompt index, response ids)`` batch by batch; a response includes its end-of-sequence id, if reached.

    Prompts of similar length share a batch, but only within a window of eight batches, so that an interrupted run has a
    fair sample of all prompts.
    """
    window = 8 * batch_size
    for start in range(0, len(prompts), window):
        order = sorted(range(start, min(start + window, len(prompts))), key=lambda i: len(prompts[i]))
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            decoded = decode_batch(
                model,
                [prompts[i] for i in chosen],
                max_new_tokens=max_new_tokens,
                eos_ids=eos_ids,
                temperature=temperature,
            )
            yield from zip(chosen, decoded, strict=True)


def sample_user_turns(
    model: Any,
    tokenizer: Any,
    count: int,
    *,
    eos_ids: frozenset[int],
    seed: int = 0,
) -> list[str]:
    """Samples user turns from the instruct model, prompted with its template up to the start of a user's turn."""
    marker = "\u2402"
    text = tokenizer.apply_chat_template([{"role": "user", "content": marker}], tokenize=False)
    opening = encode_text(text.partition(marker)[0], tokenizer, add_special_tokens=False)
    torch.manual_seed(seed)
    turns = []
    for _, ids in generate(model, [opening] * count, max_new_tokens=80, eos_ids=eos_ids, temperature=0.9):
        if ids and ids[-1] in eos_ids:
            turns.append(tokenizer.decode(ids[:-1], skip_special_tokens=True).strip())
    return [turn for turn in dict.fromkeys(turns) if len(turn) > 10]
