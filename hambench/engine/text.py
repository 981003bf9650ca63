"""Converts a sample's text to prompt ids and output ids back to text, by the same rules for every method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from hambench.errors import ContextOverflowError, HambenchError
from hambench.records import GenerationTrace, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"


class Prompt(NamedTuple):
    """A prompt ready for decoding."""

    ids: list[int]
    num_truncated: int
    """Tokens that the suite's own rule cut."""


def encode_prompt(sample: Sample, tokenizer: PreTrainedTokenizerBase, *, context_length: int) -> Prompt:
    """Encodes a sample's prompt, and cuts its middle if the suite's rule says so.

    A chat-templated prompt contains its special tokens; the tokenizer adds them to other prompts.

    Raises:
        ContextOverflowError: If the prompt does not fit and the suite has no rule to cut it.
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
    """Applies LongBench's rule: keeps the first and last half of what fits, and a chat turn's wrapping whole."""
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
        # joined text can have a token or two more than its halves
        half -= max(1, (len(ids) - room + 1) // 2)
    return None


def encode_text(
    text: str, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool = True
) -> list[int]:
    """Encodes a plain text; does not add a beginning-of-text token that it already has."""
    return _encode(text, tokenizer, chat=not add_special_tokens)


def count_tokens(text: str, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool = True) -> int:
    """Counts the tokens of a text as :func:`encode_text` encodes it; estimates them for a text that it refuses."""
    text = text.encode("utf-8", "replace").decode()
    return len(encode_text(text, tokenizer, add_special_tokens=add_special_tokens))


def _encode(text: str, tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> list[int]:
    bos = tokenizer.bos_token
    has_bos = isinstance(bos, str) and text.startswith(bos)
    special = not (chat or has_bos)
    try:
        ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
        if special and ids and ids[-1] == tokenizer.eos_token_id:
            plain: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            return _without_end(ids, plain, tokenizer)
    # the Rust tokenizers raise TypeError for text that is not Unicode
    except (TypeError, UnicodeError) as error:
        raise HambenchError(f"the prompt is not Unicode text: {_where_not_unicode(text)}") from error
    return ids


def _without_end(ids: list[int], plain: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Removes an end-of-text token that the tokenizer appended, because the model must continue the prompt."""
    if plain and ids[-len(plain) :] == plain:
        return ids
    if not plain and tokenizer.bos_token_id == tokenizer.eos_token_id:
        return ids
    return ids[:-1]


def _where_not_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a surrogate pair, \\u{ord(text[error.start]):04x}, at character {error.start}"
    return repr(text[:40])


def answer_text(
    trace: GenerationTrace,
    tokenizer: PreTrainedTokenizerBase,
    stop: Sequence[str],
    *,
    think_end: str | None = None,
) -> str:
    """Returns the answer that a scorer sees, cut before a stop string and without special or ending tokens.

    With ``think_end``, the answer begins after the last such string, like with lm-eval's ``think_end_token``.
    """
    ids = list(trace.token_ids)
    ids = ids[:-1] if trace.finish == "eos" else ids
    # if it is a single token, it may be a special one, which the text would lack
    end_id = None if think_end is None else tokenizer.get_vocab().get(think_end)
    if end_id in ids:
        ids = ids[len(ids) - ids[::-1].index(end_id) :]
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    if think_end is not None:
        text = (
            text.rpartition(think_end)[2].lstrip() if think_end in text or end_id in trace.token_ids else text
        )
    ends = [position for position in (text.find(string) for string in stop) if position >= 0]
    return text[: min(ends)] if ends else text


def count_thinking(trace: GenerationTrace, tokenizer: PreTrainedTokenizerBase, think_end: str) -> int:
    """Counts an answer's tokens up to the last ``think_end``, its own included; 0 where the answer has none."""
    ids = list(trace.token_ids)
    end_id = tokenizer.get_vocab().get(think_end)
    if end_id in ids:
        return len(ids) - ids[::-1].index(end_id)
    num_ends = str(tokenizer.decode(ids)).count(think_end)
    if num_ends == 0:
        return 0
    # the shortest beginning that has all of them
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        if str(tokenizer.decode(ids[:middle])).count(think_end) < num_ends:
            low = middle + 1
        else:
            high = middle
    return low


def step_texts(trace: GenerationTrace, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Returns the text that each step added; joined, they are the whole answer, special tokens included."""
    stream = TextStream(tokenizer)
    pieces = [stream.add(step.tokens) for step in trace.steps]
    if pieces:
        pieces[-1] += stream.rest()
    return tuple(pieces)


class TextStream:
    """Text of a growing sequence, piece by piece; a character split over several pieces comes with the last of them.

    Args:
        tokenizer: Its ``decode`` receives only tokens whose text is not final, so a piece of a long answer costs no
            more than one of a short answer.
        skip_special_tokens: Leave out the tokenizer's special tokens, as a scorer does.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, skip_special_tokens: bool = False) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        # ids whose text is not fully returned yet, preceded by some left context, which decides about leading
        # spaces; and the number of characters already returned
        self._context: list[int] = []
        self._new: list[int] = []
        self._num_given = 0

    def add(self, tokens: Sequence[int]) -> str:
        """Returns the text that these tokens complete; holds back a character whose bytes are incomplete."""
        self._new += tokens
        text = self._decode(self._context + self._new)
        whole = text.rstrip(_REPLACEMENT)
        if len(whole) == len(text):
            return self._give(text)
        piece = whole[self._num_given :]
        self._num_given = max(self._num_given, len(whole))
        return piece

    def rest(self) -> str:
        """Returns the remaining text at the end; bytes that never became a character show as U+FFFD."""
        return self._give(self._decode(self._context + self._new)) if self._new else ""

    def _give(self, text: str) -> str:
        piece = text[self._num_given :]
        self._context, self._new = self._new, []
        self._num_given = len(self._decode(self._context))
        return piece

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=self._skip)
        return text
