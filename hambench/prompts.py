"""From a sample's text to prompt ids and from output ids back to text: the same rules for every method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from hambench.errors import ContextOverflowError
from hambench.records import GenerationTrace, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"


class Prompt(NamedTuple):
    """A prompt ready for decoding."""

    ids: list[int]
    num_truncated: int
    """Tokens cut by the suite's own rule."""


def encode_prompt(
    sample: Sample, tokenizer: PreTrainedTokenizerBase, *, context_length: int
) -> Prompt:
    """Token ids of a sample's prompt, its middle cut where the suite's rule says so.

    A chat-templated prompt carries its special tokens in the text; others get what the tokenizer adds by itself.
    The middle cut is LongBench's: the first and the last half of what fits are kept.

    Raises:
        ContextOverflowError: If the prompt does not fit and the suite has no rule for it.
    """
    ids = _encode(sample.prompt, tokenizer, chat=sample.chat)
    room = context_length - sample.max_new_tokens
    excess = len(ids) - room
    if excess <= 0:
        return Prompt(ids, 0)
    if sample.truncation != "middle" or room < 2:
        raise ContextOverflowError(
            f"{sample.sample_id}: a prompt of {len(ids)} tokens and max_new_tokens = {sample.max_new_tokens} exceed the "
            f"context of {context_length} tokens"
        )
    half = room // 2
    return Prompt(ids[:half] + ids[-(room - half) :], excess)


def _encode(text: str, tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> list[int]:
    bos = tokenizer.bos_token
    has_bos = isinstance(bos, str) and text.startswith(bos)
    ids: list[int] = tokenizer(text, add_special_tokens=not (chat or has_bos))["input_ids"]
    return ids


def answer_text(trace: GenerationTrace, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> str:
    """The answer as a scorer sees it: no special tokens, cut before the first stop string."""
    text: str = tokenizer.decode(list(trace.token_ids), skip_special_tokens=True)
    ends = [position for position in (text.find(string) for string in stop) if position >= 0]
    return text[: min(ends)] if ends else text


def step_texts(trace: GenerationTrace, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The piece of text each step added; joined they are the whole answer, special tokens included.

    A character whose bytes are spread over several steps appears with the step that completes it.
    """
    pieces = []
    ids: list[int] = []
    shown = ""
    for step in trace.steps:
        ids += step.tokens
        text: str = tokenizer.decode(ids)
        if text.endswith(_REPLACEMENT) and step is not trace.steps[-1]:
            pieces.append("")
            continue
        pieces.append(text[len(shown) :])
        shown = text
    return tuple(pieces)
