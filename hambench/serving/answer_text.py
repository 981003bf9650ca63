"""Text of an answer as it is sent: no special tokens, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from hambench.engine.text import TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class AnswerText:
    """Pieces of text that joined are what :func:`hambench.engine.text.answer_text` gives a scorer.

    What could be the beginning of a stop string is held back until more text shows whether it is.

    Args:
        tokenizer: The target's.
        stop: Strings that end the answer.
        end_ids: Ids that end it; they are not text, whether the tokenizer calls them special or not.
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
        """The text that can be shown once these tokens are known."""
        visible = [token for token in tokens if token not in self._end_ids]
        return self._release(self._text.add(visible)) if visible else ""

    def rest(self) -> str:
        """The text that was held back, at the end of the answer."""
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
    """Length of the longest end of ``text`` that is a beginning of ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
