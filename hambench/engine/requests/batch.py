"""Several sequences decoded together, round by round: continuous batching without padding.

In a *round* each sequence that has read its prompt takes one step, and one prompt is read on by a piece. The requests
of the steps are collected; those that one forward can serve share it. So a user waits for a round, and a round reads
each model's weights about once. A sequence that ends leaves its place to the next one.

Within a round the cheap requests go first: a sequence that is ready to be verified waits for the drafts of the others,
because the target's weights are then read once for all (docs/adr/0022-batches.md).
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Collection, Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from hambench.decoding import Asking, DecodeSession, DecodingMethod, KVUsage, Request, SamplingParams, Step
from hambench.engine.loop import Clock, DecodeText, Ending, measured
from hambench.errors import HambenchError
from hambench.records import FinishReason, StepRecord

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One answer that is asked for; see :func:`hambench.engine.loop.stream` for the fields."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    eos_ids: Collection[int] = ()
    stop: Sequence[str] = ()
    think_end: str | None = None
    decode_text: DecodeText | None = None


@dataclass(frozen=True, slots=True)
class StepTaken(Generic[K]):
    """A step of one sequence, with why its answer ended (``None`` while it goes on)."""

    key: K
    step: StepRecord
    finish: FinishReason | None


@dataclass(frozen=True, slots=True)
class SequenceFailed(Generic[K]):
    """What ended one sequence; the others go on."""

    key: K
    error: Exception


class Batch(Generic[K]):
    """Up to ``size`` sequences of one method.

    Args:
        method: The built method; its sessions ask for their forwards.
        size: Most sequences at once.
        clock: Returns seconds from any fixed point.
    """

    def __init__(self, method: DecodingMethod, size: int, *, clock: Clock = time.perf_counter) -> None:
        if size < 1:
            raise ValueError(f"size must be >= 1, got {size}")
        self.method, self.size = method, size
        self._clock = clock
        self._sequences: list[_Sequence[K]] = []
        # seconds of all rounds so far: what happens between rounds is nobody's step
        self._elapsed = 0.0

    @property
    def num_sequences(self) -> int:
        """Sequences that are not done."""
        return len(self._sequences)

    @property
    def has_room(self) -> bool:
        """Whether a sequence can be added."""
        return len(self._sequences) < self.size

    def add(self, key: K, ask: Ask) -> None:
        """Opens a session, whose prompt is read from the next round on.

        Raises:
            ContextOverflowError: If the request doesn't fit the context.
            HambenchError: If the method refuses the request.
        """
        if not self.has_room:
            raise ValueError(f"the batch is full: it takes {self.size} sequences")
        if not ask.prompt_ids:
            raise ValueError("prompt_ids must hold at least one id, got none")
        ending = Ending(
            ask.params, ask.eos_ids, stop=ask.stop, think_end=ask.think_end, decode_text=ask.decode_text
        )
        session = self.method.start(ask.prompt_ids, ask.params)
        self._sequences.append(_Sequence(key, session, ending))

    def drop(self, key: K) -> None:
        """Forgets a sequence that nobody waits for any more; does nothing if it is done."""
        for sequence in self._sequences:
            if sequence.key == key:
                sequence.close()
        self._sequences = [sequence for sequence in self._sequences if sequence.key != key]

    def round(self) -> list[StepTaken[K] | SequenceFailed[K]]:
        """Lets every sequence take a step, or its prompt's next piece; returns what came of it."""
        began = self._clock()
        with torch.inference_mode():
            for sequence in self._sequences:
                if sequence.asking is None:
                    sequence.began = self._elapsed
                    sequence.round_share += self._seconds_of(sequence.begin)
            self._read_on()
            while group := self._next_group():
                self._answer(group)
        seconds = self._clock() - began
        self._elapsed += seconds
        taking_part = [sequence for sequence in self._sequences if sequence.took_part]
        # what is in nobody's share (collecting, this loop) is an even part of each
        spent = sum(sequence.round_share for sequence in taking_part)
        for sequence in taking_part:
            sequence.share += sequence.round_share + (seconds - spent) / len(taking_part)
        for sequence in self._sequences:
            sequence.round_share, sequence.took_part = 0.0, False
        return self._events(len(taking_part))

    def _events(self, in_round: int) -> list[StepTaken[K] | SequenceFailed[K]]:
        for sequence in self._sequences:
            sequence.end_round()
        # sequences that share a forward hold their drafts at the same time, so their peaks add up
        each = [
            None if sequence.kv.bytes is None else max(sequence.kv.bytes, sequence.peak_in_step)
            for sequence in self._sequences
        ]
        round_kv = None if None in each else sum(number for number in each if number is not None)
        events: list[StepTaken[K] | SequenceFailed[K]] = []
        left = []
        for sequence in self._sequences:
            if sequence.error is not None:
                events.append(SequenceFailed(sequence.key, sequence.error))
                continue
            if sequence.step is None or sequence.kept is None:
                left.append(sequence)
                continue
            step, seconds, share = sequence.step, self._elapsed - sequence.began, sequence.share
            tokens, finish = sequence.kept
            record = dataclasses.replace(
                measured(step, tokens, seconds, sequence.kv),
                share_s=share,
                in_round=in_round,
                round_kv_bytes=round_kv,
                # the method's own clock would count the others' work
                draft_seconds=None,
            )
            events.append(StepTaken(sequence.key, record, finish))
            if finish is None:
                sequence.next_step()
                left.append(sequence)
        self._sequences = left
        return events

    def _read_on(self) -> None:
        """Reads the next piece of the prompt that has waited longest."""
        for sequence in self._sequences:
            if sequence.request is not None and sequence.request.in_pieces:
                sequence.took_part = True
                sequence.round_share += self._seconds_of(sequence.read_piece)
                return

    def _next_group(self) -> list[_Sequence[K]]:
        """The sequences that the next forward serves: those with the cheapest request, and who can share it."""
        waiting = [
            (sequence, sequence.request)
            for sequence in self._sequences
            if sequence.request is not None and not sequence.request.in_pieces
        ]
        if not waiting:
            return []
        first, cheapest = min(waiting, key=lambda pair: pair[1].cost)
        if cheapest.together is None:
            return [first]
        kind = (type(cheapest), cheapest.together)
        return [sequence for sequence, request in waiting if (type(request), request.together) == kind]

    def _answer(self, group: Sequence[_Sequence[K]]) -> None:
        requests = [sequence.request for sequence in group if sequence.request is not None]
        began = self._clock()
        answers: list[Any]
        try:
            # one alone runs the very call that it would make outside a batch
            answers = (
                [requests[0].answer()] if len(requests) == 1 else type(requests[0]).answer_together(requests)
            )
        except Exception as error:
            answers = [error] * len(requests)
        part = (self._clock() - began) / len(group)
        for sequence, answer in zip(group, answers, strict=True):
            sequence.took_part = True
            sequence.round_share += part + self._seconds_of(functools.partial(sequence.go_on, answer))

    def _seconds_of(self, work: Callable[[], None]) -> float:
        began = self._clock()
        work()
        return self._clock() - began


class _Sequence(Generic[K]):
    """One session and where its step is."""

    def __init__(self, key: K, session: DecodeSession, ending: Ending) -> None:
        self.key, self.session, self.ending = key, session, ending
        self.asking: Asking[Step] | None = None
        self.request: Request | None = None
        self.step: Step | None = None
        self.error: Exception | None = None
        self.began = self.share = self.round_share = 0.0
        self.took_part = False
        # after a round: the caches, and the tokens that count of a step that is over, with why the answer ends there
        self.kv = KVUsage(None, None)
        self.kept: tuple[tuple[int, ...], FinishReason | None] | None = None
        self._pieces: Iterator[Any] | None = None
        self._has_read = False

    @property
    def peak_in_step(self) -> int:
        """Most bytes in use at once during the step that has just ended; 0 where that is not more than after it."""
        return 0 if self.step is None else self.step.peak_kv_bytes or 0

    def begin(self) -> None:
        """Begins a step: the prompt's, then the others'."""
        try:
            asking = self.session.step() if self._has_read else self.session.prefill()
        except Exception as error:
            self.error = error
            return
        if not isinstance(asking, Generator):
            self.error = HambenchError(
                "this method decodes with an engine of its own, whose forwards a batch can't share: use batch 1"
            )
            return
        self._has_read, self.asking = True, asking
        self._advance(lambda: next(asking))

    def read_piece(self) -> None:
        """Reads one piece of the prompt."""
        assert self.request is not None
        answer: Any = None
        try:
            if self._pieces is None:
                self._pieces = self.request.pieces()
            answer = next(self._pieces)
        except Exception as error:
            answer = error
        if answer is not None:
            self._pieces = None
            self.go_on(answer)

    def go_on(self, answer: Any) -> None:
        """Gives the step its answer, up to its next request or its end."""
        asking = self.asking
        assert asking is not None
        if isinstance(answer, Exception):
            self._advance(lambda: asking.throw(answer))
        else:
            self._advance(lambda: asking.send(answer))

    def end_round(self) -> None:
        """Takes stock after a round; an error is this sequence's alone."""
        try:
            self.kv = self.session.kv
            if self.step is not None and self.error is None:
                self.kept = self.ending.trim(self.step.tokens)
        except Exception as error:
            self.error = error

    def next_step(self) -> None:
        """Gets ready for the next step."""
        self.asking = self.step = self.kept = None
        self.share = 0.0

    def close(self) -> None:
        """Ends the session in the middle of whatever it does."""
        if self.asking is not None:
            self.asking.close()

    def _advance(self, move: Callable[[], Request]) -> None:
        self.request = None
        try:
            self.request = move()
        except StopIteration as end:
            self.step = end.value
        except Exception as error:
            self.error = error
