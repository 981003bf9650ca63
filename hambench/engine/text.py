"""From a sample's text to prompt ids and from output ids back to text: the same rules for every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def encode_prompt(sample: Sample, tokenizer: PreTrainedTokenizerBase, *, context_length: int) -> Prompt:
    """Token ids of a sample's prompt, its middle cut where the suite's rule says so.

    A chat-templated prompt carries its special tokens in the text; others get what the tokenizer adds by itself.

    Raises:
        ContextOverflowError: If the prompt does not fit and the suite has no rule for it.
    """
    ids = _encode(sample.prompt, tokenizer, chat=sample.chat)
    room = context_length - sample.max_new_tokens
    if len(ids) <= room:
        return Prompt(ids, 0)
    if sample.truncation == "middle" and room > 0:
        cut = _cut_middle(sample, tokenizer, room)
        if cut is not None:
            return Prompt(cut, len(ids) - len(cut))
    raise ContextOverflowError(
        f"{sample.sample_id}: a prompt of {len(ids)} tokens and max_new_tokens = {sample.max_new_tokens} exceed the "
        f"context of {context_length} tokens"
    )


def _cut_middle(sample: Sample, tokenizer: PreTrainedTokenizerBase, room: int) -> list[int] | None:
    """LongBench's rule: the first and last half of what fits are asked; a chat turn's wrapping stays whole."""
    start, end = sample.keep_start, len(sample.prompt) - sample.keep_end
    opening, body, closing = sample.prompt[:start], sample.prompt[start:end], sample.prompt[end:]
    wrapping = len(_encode(opening, tokenizer, chat=True)) + len(_encode(closing, tokenizer, chat=True))
    body_ids = _encode(body, tokenizer, chat=True)
    half = (room - wrapping) // 2
    while half > 0:
        head, tail = tokenizer.decode(body_ids[:half]), tokenizer.decode(body_ids[-half:])
        ids = _encode(f"{opening}{head}{tail}{closing}", tokenizer, chat=sample.chat)
        if len(ids) <= room:
            return ids
        # joined text can take a token or two more than its halves did
        half -= max(1, (len(ids) - room + 1) // 2)
    return None


def encode_text(
    text: str, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool = True
) -> list[int]:
    """Ids of a plain text; a beginning-of-text token that is in it already is not added again."""
    return _encode(text, tokenizer, chat=not add_special_tokens)


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
    """The piece of text each step added; joined they are the whole answer, special tokens included."""
    stream = TextStream(tokenizer)
    pieces = [stream.add(step.tokens) for step in trace.steps]
    if pieces:
        pieces[-1] += stream.rest()
    return tuple(pieces)


class TextStream:
    """Text of a growing sequence, piece by piece; a character spread over several pieces comes with its last one.

    Args:
        tokenizer: Its ``decode`` is given only the tokens not yet shown for good, so a long answer costs no more per
            piece than a short one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._decode: Callable[[list[int]], str] = tokenizer.decode
        # ids whose text is not given out yet, after those kept as left context, which decides about leading spaces
        self._context: list[int] = []
        self._context_text = ""
        self._new: list[int] = []

    def add(self, tokens: Sequence[int]) -> str:
        """The text that these tokens complete; empty while a character's bytes are still coming."""
        self._new += tokens
        text = self._decode(self._context + self._new)
        return "" if text.endswith(_REPLACEMENT) else self._give(text)

    def rest(self) -> str:
        """What is left at the end: bytes that never became a character show as U+FFFD."""
        return self._give(self._decode(self._context + self._new)) if self._new else ""

    def _give(self, text: str) -> str:
        piece = text[len(self._context_text) :]
        self._context, self._new = self._new, []
        self._context_text = self._decode(self._context)
        return piece
