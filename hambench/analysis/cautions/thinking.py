"""Detects reasoning in answers, which a scorer reads as the answer unless it is cut or turned off."""

from __future__ import annotations

from collections.abc import Iterable

from hambench.records import SampleRecord

BEGINNINGS = (
    "<think>",
    "<thinking>",
    "<|channel|>analysis",
    "<seed:think>",
    "<reasoning>",
    "[THINK]",
    "◁think▷",
)
ENDS = (
    "</think>",
    "</thinking>",
    "<|channel|>final",
    "</seed:think>",
    "</reasoning>",
    "[/THINK]",
    "◁/think▷",
)
"""Written by models of Qwen, DeepSeek, OpenAI, ByteDance, Mistral and Moonshot, in this order or another."""


def uncut_thinking(records: Iterable[SampleRecord]) -> tuple[int, str | None]:
    """Counts answers with reasoning in the scored text, and returns the most common marker."""
    markers = [marker for record in records if (marker := _marker(record.text or "")) is not None]
    return len(markers), max(markers, key=markers.count) if markers else None


def advice(num: int, num_answers: int, marker: str) -> str:
    """Returns one sentence with the observation and the fix."""
    return (
        f"{num} of {num_answers} answers hold thinking ({marker}), which the scorer reads as the answer: switch it off "
        "(--chat-template-arg enable_thinking=false, where the template knows it) or cut it (--think-end '</think>')."
    )


def counted_apart(records: Iterable[SampleRecord]) -> str:
    """Returns one sentence with the share of tokens that is cut reasoning; empty if the run cut none."""
    told = [record for record in records if record.thinking_tokens is not None and record.trace is not None]
    if not told:
        return ""
    thinking = sum(record.thinking_tokens or 0 for record in told)
    total = sum(len(record.trace.token_ids) for record in told if record.trace is not None)
    without = sum(not record.thinking_tokens for record in told)
    never = f"; {without} of {len(told)} answers did not end any" if without else ""
    return (
        f"thinking: {thinking} of {total} tokens, timed like all others and cut before scoring{never}"
        if total
        else ""
    )


def _marker(text: str) -> str | None:
    begun = next((marker for marker in BEGINNINGS if text.lstrip().startswith(marker)), None)
    # where the template opens the thinking, an answer shows only its end
    return begun or next((marker for marker in ENDS if marker in text), None)
