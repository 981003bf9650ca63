"""The text of an answer to send, without special tokens and without any part of a stop string."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from hambench.engine.text import TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class AnswerText:
    """Splits an answer's text into pieces that, joined, equal :func:`hambench.engine.text.answer_text`.

    It holds back text that may be the beginning of a stop string until later text decides.

    Args:
        tokenizer: The target's tokenizer.
        stop: Strings that end the answer.
        end_ids: Ids that end the answer; they are not text, even if the tokenizer does not mark them as special.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], *, end_ids: Collection[int] = ()
    ) -> None:
        self._text = TextStream(tokenizer, skip_special_tokens=True)
        self._stop = tuple(stop)
        self._end_ids = frozenset(end_ids)
        self._held = ""
        self._ended = False

    def add(self, tokens: Sequence[int]) -> str:
        """Adds tokens; returns the text that can be sent now."""
        visible = [token for token in tokens if token not in self._end_ids]
        return self._release(self._text.add(visible)) if visible else ""

    def rest(self) -> str:
        """Returns the held-back text at the end of the answer."""
        shown = self._release(self._text.rest())
        shown, self._held = shown + self._held, ""
        return shown

    def _release(self, new: str) -> str:
        if self._ended:
            return ""
        text = self._held + new
        ends = [position for position in (text.find(stop) for stop in self._stop) if position >= 0]
        if ends:
            self._ended, self._held = True, ""
            return text[: min(ends)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest suffix of ``text`` that is a prefix of ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
