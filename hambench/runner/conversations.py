"""Conversations: each turn is asked after the method's own answers to the turns before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from hambench.engine.chat import TemplateValue, render_chat
from hambench.errors import HambenchError
from hambench.records import Sample
from hambench.store import RecordKey


class Conversations:
    """What each cell has been asked and has answered so far.

    Args:
        tokenizer: Its chat template puts the turns together; without one they are joined by blank lines.
        arguments: Variables of the template.
    """

    def __init__(self, tokenizer: Any, arguments: Mapping[str, TemplateValue]) -> None:
        self._tokenizer, self._arguments = tokenizer, arguments
        # messages up to and with the answer to a turn, by (cell, conversation, repeat) and turn
        self._said: dict[tuple[str, str, int], dict[int, list[dict[str, str]]]] = {}

    def ask(self, sample: Sample, cell: str, repeat: int) -> Sample:
        """The sample with its prompt as a cell is asked it now.

        Raises:
            HambenchError: If the turn before has no answer, or the template refuses the messages.
        """
        if sample.turn <= 1:
            return sample
        messages = self._messages(sample, (cell, sample.conversation, repeat))
        return dataclasses.replace(sample, prompt=self._render(messages))

    def note(self, sample: Sample, cell: str, repeat: int, answer: str) -> None:
        """Keeps a cell's answer for the turns after it; a newer answer to the same turn takes its place."""
        if not sample.turn:
            return
        key = (cell, sample.conversation, repeat)
        messages = [*self._messages(sample, key), {"role": "assistant", "content": answer}]
        self._said.setdefault(key, {})[sample.turn] = messages

    def _messages(self, sample: Sample, key: tuple[str, str, int]) -> list[dict[str, str]]:
        if sample.turn == 1:
            return list(sample.messages)
        before = self._said.get(key, {}).get(sample.turn - 1)
        if before is None:
            raise HambenchError(
                f"turn {sample.turn - 1} of this conversation has no answer, so this one was not asked"
            )
        return [*before, *sample.messages]

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        if getattr(self._tokenizer, "chat_template", None):
            return render_chat(self._tokenizer, messages, self._arguments)
        return "\n\n".join(message["content"] for message in messages)


def without_begun(done: Collection[RecordKey], samples: Mapping[str, Sample]) -> set[RecordKey]:
    """Records of a run that need not be made again: conversations that lack a turn are asked again from the first.

    A later turn needs the answers before it where it is asked, which may be another machine.

    Args:
        done: Keys of the records that are there.
        samples: Of the run, by id.
    """
    sizes: dict[str, int] = {}
    for sample in samples.values():
        if sample.turn:
            sizes[sample.conversation] = sizes.get(sample.conversation, 0) + 1
    there: dict[tuple[str, str, int], int] = {}
    for cell, sample_id, repeat in done:
        if conversation := samples[sample_id].conversation:
            place = (cell, conversation, repeat)
            there[place] = there.get(place, 0) + 1
    return {
        (cell, sample_id, repeat)
        for cell, sample_id, repeat in done
        if not (conversation := samples[sample_id].conversation)
        or there[cell, conversation, repeat] == sizes[conversation]
    }


def prompt_sizes(
    samples: Sequence[Sample], count_tokens: Callable[[Sample], int], *, longest_answer: int = 0
) -> dict[str, int]:
    """Prompt tokens of each sample by id: of a later turn the most there can be, answers before it at their limits.

    Args:
        samples: Turns of a conversation in order.
        count_tokens: Tokens of a sample's own prompt.
        longest_answer: The longest limit that a cell sets, where that is more than the sample's own.
    """
    sizes: dict[str, int] = {}
    so_far: dict[str, int] = {}
    for sample in samples:
        size = count_tokens(sample) + so_far.get(sample.conversation, 0)
        sizes[sample.sample_id] = size
        if sample.conversation:
            so_far[sample.conversation] = size + max(sample.max_new_tokens, longest_answer)
    return sizes
