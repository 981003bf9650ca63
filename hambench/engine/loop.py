"""The only decode loop: it drives a method's session, decides when an answer ends, and times every step.

A step returns host integers, so the wall clock around it is complete without any device synchronisation of our own;
stop strings are looked for outside the timed region. Nothing past EOS, a stop string or the limit is ever counted, as
a token or as an accepted one; forwards and drafted tokens are work that was done, and are counted whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Sequence

import torch

from hambench.decoding import DecodingMethod, KVUsage, SamplingParams, SessionEndedError, Step
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
    clock: Clock = time.perf_counter,
) -> GenerationTrace:
    """Decodes one answer to its end; see :func:`stream` for the arguments."""
    run = stream(
        method,
        prompt_ids,
        params,
        eos_ids=eos_ids,
        stop=stop,
        think_end=think_end,
        decode_text=decode_text,
        max_steps=max_steps,
        clock=clock,
    )
    steps = []
    while True:
        try:
            steps.append(next(run))
        except StopIteration as end:
            return GenerationTrace(prompt_tokens=len(prompt_ids), steps=tuple(steps), finish=end.value)


def stream(
    method: DecodingMethod,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    *,
    eos_ids: Collection[int] = (),
    stop: Sequence[str] = (),
    think_end: str | None = None,
    decode_text: DecodeText | None = None,
    max_steps: int | None = None,
    clock: Clock = time.perf_counter,
) -> Generator[StepRecord, None, FinishReason]:
    """Decodes one answer, yielding each step as it is measured; returns why it ended.

    Args:
        method: The method, already built.
        prompt_ids: The prompt; at least one id.
        params: Limit and sampling; the limit counts EOS.
        eos_ids: Ids that end the answer (counted); empty to ignore EOS.
        stop: Strings that end the answer: the token completing the first of them is the last one counted.
        think_end: String that ends the model's thinking; before it no stop string is looked for.
        decode_text: Turns ids into text; needed when ``stop`` is given.
        max_steps: Most steps, the prefill included.
        clock: Seconds from any fixed point.
    """
    if not prompt_ids:
        raise ValueError("prompt_ids must hold at least one id, got none")
    if stop and decode_text is None:
        raise ValueError("stop strings need decode_text to look for them, got None")
    ends_text = _StopStrings(stop, decode_text, think_end) if stop and decode_text else None
    session = method.start(prompt_ids, params)
    num_emitted = 0
    num_steps = 0
    while True:
        with torch.inference_mode():
            began = clock()
            try:
                step = session.prefill() if num_steps == 0 else session.step()
            except SessionEndedError as end:
                return end.finish
            seconds = clock() - began if step.seconds is None else step.seconds
        num_steps += 1
        kept, finish = _trim(step.tokens, params.max_new_tokens - num_emitted, eos_ids, ends_text)
        num_emitted += len(kept)
        yield _measured(step, kept, seconds, session.kv)
        if finish is not None:
            return finish
        if max_steps is not None and num_steps >= max_steps:
            return "steps"


def _trim(
    tokens: Sequence[int], room: int, eos_ids: Collection[int], ends_text: _StopStrings | None
) -> tuple[tuple[int, ...], FinishReason | None]:
    """The part of a step's tokens that counts, and why the answer ends there, if it does."""
    for index, token in enumerate(tokens[:room]):
        if token in eos_ids:
            return tuple(tokens[: index + 1]), "eos"
        if ends_text is not None and ends_text.after(token):
            return tuple(tokens[: index + 1]), "stop"
    return tuple(tokens[:room]), "length" if len(tokens) >= room else None


def _measured(step: Step, kept: tuple[int, ...], seconds: float, kv: KVUsage) -> StepRecord:
    return StepRecord(
        tokens=kept,
        seconds=seconds,
        target_forwards=step.target_forwards,
        draft_forwards=step.draft_forwards,
        micro_forwards=step.micro_forwards,
        drafted=step.drafted,
        # drafted tokens come first: of those kept, only a bonus token is none of them
        accepted=None if step.accepted is None else min(step.accepted, len(kept)),
        kv_slots=kv.slots,
        kv_bytes=kv.bytes,
        peak_kv_bytes=step.peak_kv_bytes,
        discarded=len(step.tokens) - len(kept),
        continue_probs=step.continue_probs[: len(kept)],
    )


class _StopStrings:
    """Says after which token the answer's text first holds one of the stop strings."""

    def __init__(self, stop: Sequence[str], decode_text: DecodeText, think_end: str | None = None) -> None:
        if "" in stop:
            raise ValueError("stop strings must not be empty, got ''")
        self._stop, self._think_end = tuple(stop), think_end
        self._decode_text = decode_text
        # a token is at least one byte, so a stop string can't begin earlier than this many tokens ago
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
