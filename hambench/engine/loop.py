"""The only decode loop: it drives a method's session, decides when an answer ends, and times every step.

A step returns host integers, so the wall clock around it covers all its work without further device synchronisation.
The loop searches for stop strings outside the timed region. It counts nothing past EOS, a stop string or the limit, as
a token or as an accepted one. Forwards and drafted tokens are work done, so it counts them whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Sequence
from typing import Protocol

import torch

from hambench.decoding import (
    DecodeSession,
    DecodingMethod,
    KVUsage,
    SamplingParams,
    SessionEndedError,
    Step,
    answered,
)
from hambench.engine.requests.shared_prefill import ReadPrompts
from hambench.records import FinishReason, GenerationTrace, StepRecord

Clock = Callable[[], float]
DecodeText = Callable[[Sequence[int]], str]


def generate(
    method: DecodingMethod,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    *,
    eos_ids: Collection[int] = (),
    stop: Sequence[str] = (),
    think_end: str | None = None,
    decode_text: DecodeText | None = None,
    max_steps: int | None = None,
    prompts: ReadPrompts | None = None,
    clock: Clock = time.perf_counter,
) -> GenerationTrace:
    """Decodes one answer to its end; see :func:`stream` for the arguments."""
    started = _Started(method)
    run = stream(
        started,
        prompt_ids,
        params,
        eos_ids=eos_ids,
        stop=stop,
        think_end=think_end,
        decode_text=decode_text,
        max_steps=max_steps,
        prompts=prompts,
        clock=clock,
    )
    steps = []
    while True:
        try:
            steps.append(next(run))
        except StopIteration as end:
            totals = getattr(started.session, "totals", None)
            return GenerationTrace(
                prompt_tokens=len(prompt_ids), steps=tuple(steps), finish=end.value, totals=totals
            )


class Starts(Protocol):
    """The part of a method that the loop calls."""

    def start(self, prompt_ids: Sequence[int], params: SamplingParams) -> DecodeSession:
        """Opens a session."""


class _Started:
    """A method whose session outlives the loop, to be asked what its peer says of the whole answer."""

    def __init__(self, method: DecodingMethod) -> None:
        self._method = method
        self.session: DecodeSession | None = None

    def start(self, prompt_ids: Sequence[int], params: SamplingParams) -> DecodeSession:
        self.session = self._method.start(prompt_ids, params)
        return self.session


def stream(
    method: Starts,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    *,
    eos_ids: Collection[int] = (),
    stop: Sequence[str] = (),
    think_end: str | None = None,
    decode_text: DecodeText | None = None,
    max_steps: int | None = None,
    prompts: ReadPrompts | None = None,
    clock: Clock = time.perf_counter,
) -> Generator[StepRecord, None, FinishReason]:
    """Decodes one answer and yields each step as it is measured; returns why the answer ended.

    Args:
        method: The built method.
        prompt_ids: The prompt, at least one id.
        params: Limit and sampling; EOS counts towards the limit.
        eos_ids: Ids that end the answer (and count as tokens); empty to ignore EOS.
        stop: Strings that end the answer. The token that completes the first of them is the last one counted.
        think_end: String that ends the model's thinking; the loop searches for stop strings only after it.
        decode_text: Turns ids into text; required with ``stop``.
        max_steps: Most steps, including the prefill.
        prompts: Copies a prompt that the same model has just read for another method; by default each is read. Where
            anything of the prefill was copied, its step has no seconds.
        clock: Returns seconds from any fixed point.
    """
    if not prompt_ids:
        raise ValueError("prompt_ids must hold at least one id, got none")
    ending = Ending(params, eos_ids, stop=stop, think_end=think_end, decode_text=decode_text)
    session = method.start(prompt_ids, params)
    num_steps = 0
    num_copied, keeping_s = (prompts.num_copied, prompts.keeping_s) if prompts is not None else (0, 0.0)
    while True:
        seconds: float | None
        with torch.inference_mode():
            began = clock()
            try:
                if num_steps > 0:
                    step = answered(session.step())
                elif prompts is None:
                    step = answered(session.prefill())
                else:
                    step = answered(session.prefill(), prompts.answer)
            except SessionEndedError as end:
                return end.finish
            seconds = clock() - began if step.seconds is None else step.seconds
            if prompts is not None and num_steps == 0:
                copied = prompts.num_copied > num_copied
                seconds = None if copied else seconds - (prompts.keeping_s - keeping_s)
        num_steps += 1
        tokens, finish = ending.trim(step.tokens)
        yield measured(step, tokens, seconds, session.kv)
        if finish is not None:
            return finish
        if max_steps is not None and num_steps >= max_steps:
            return "steps"


class Ending:
    """Where one answer ends: at its limit, at EOS or at a stop string.

    Args:
        params: The limit.
        eos_ids: Ids that end the answer; they count.
        stop: Strings that end it.
        think_end: String that ends the model's thinking; stop strings are searched only after it.
        decode_text: Turns ids into text; required with ``stop``.
    """

    def __init__(
        self,
        params: SamplingParams,
        eos_ids: Collection[int],
        *,
        stop: Sequence[str] = (),
        think_end: str | None = None,
        decode_text: DecodeText | None = None,
    ) -> None:
        if stop and decode_text is None:
            raise ValueError("stop strings need decode_text to look for them, got None")
        self._room, self._eos_ids = params.max_new_tokens, eos_ids
        self._ends_text = _StopStrings(stop, decode_text, think_end) if stop and decode_text else None

    def trim(self, tokens: Sequence[int]) -> tuple[tuple[int, ...], FinishReason | None]:
        """Returns the part of a step's tokens that counts, and why the answer ends there (``None`` if it does not)."""
        kept = tokens[: self._room]
        for index, token in enumerate(kept):
            if token in self._eos_ids:
                return tuple(kept[: index + 1]), "eos"
            if self._ends_text is not None and self._ends_text.after(token):
                return tuple(kept[: index + 1]), "stop"
        self._room -= len(kept)
        return tuple(kept), None if self._room else "length"


def measured(step: Step, tokens: tuple[int, ...], seconds: float | None, kv: KVUsage) -> StepRecord:
    """Returns the record of a step.

    Args:
        step: What the method says.
        tokens: What of its tokens counts.
        seconds: How long it took; ``None`` if it was not timed.
        kv: The caches after it.
    """
    return StepRecord(
        tokens=tokens,
        seconds=seconds,
        target_forwards=step.target_forwards,
        draft_forwards=step.draft_forwards,
        micro_forwards=step.micro_forwards,
        drafted=step.drafted,
        # drafted tokens come first, so only a bonus token can follow them
        accepted=None if step.accepted is None else min(step.accepted, len(tokens)),
        relaxed=None if step.relaxed is None else sum(place < len(tokens) for place in step.relaxed),
        draft_seconds=step.draft_seconds,
        kv_slots=kv.slots,
        kv_bytes=kv.bytes,
        peak_kv_bytes=step.peak_kv_bytes,
        discarded=len(step.tokens) - len(tokens),
        continue_probs=step.continue_probs[: len(tokens)],
    )


class _StopStrings:
    """Finds the token after which the answer's text first holds one of the stop strings."""

    def __init__(self, stop: Sequence[str], decode_text: DecodeText, think_end: str | None = None) -> None:
        if "" in stop:
            raise ValueError("stop strings must not be empty, got ''")
        self._stop, self._think_end = tuple(stop), think_end
        self._decode_text = decode_text
        # a token is at least one byte, so a stop string can't begin more than this many tokens back
        self._window = (
            max(len(text.encode("utf-8", "surrogatepass")) for text in (*stop, think_end or "")) + 4
        )
        self._recent: list[int] = []

    def after(self, token: int) -> bool:
        self._recent.append(token)
        del self._recent[: -self._window]
        text = self._decode_text(self._recent)
        if self._think_end is not None:
            if self._think_end in text:
                self._think_end, self._recent = None, []
            return False
        return any(stop in text for stop in self._stop)
