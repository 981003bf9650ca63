"""Parses stream events of completions and chat, including the fields that some servers add."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hambench.errors import HambenchError
from hambench.method_facts import AnswerTotals
from hambench.serving.wire import STEP_FIELDS

COUNTS = ("prompt_tokens", "completion_tokens")
LARGEST_COUNT = 2**53
"""Largest integer that a JSON number represents exactly."""


class EndpointError(HambenchError):
    """Raised if a server can't be reached, refuses, or breaks off.

    Args:
        message: One line for the user.
        status: HTTP status of a refusal.
        param: Field that the server blames, if it names one.
    """

    def __init__(self, message: str, *, status: int | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """One event of a stream."""

    text: str = ""
    """Text of the answer, including refusals and arguments of tool calls, which are tokens too."""
    reasoning: str = ""
    """Text of the reasoning, if the server separates it from the answer."""
    token_ids: tuple[int, ...] | None = None
    """Token ids, if the server sends them (vLLM, hambench)."""
    prompt_token_ids: tuple[int, ...] | None = None
    finish: str | None = None
    usage: Mapping[str, int | None] | None = None
    """The counts of :data:`COUNTS`, if the server sends them."""
    step: Mapping[str, int | None] | None = None
    """The counts of a step, if the server is hambench."""
    totals: AnswerTotals | None = None
    """What the server says of this answer so far: vLLM's metrics, llama.cpp's timings, details of a usage."""
    arrived: float = 0.0
    """When its last byte was there, by :func:`time.perf_counter`, before it was parsed."""


def parse_event(text: str) -> Chunk:
    """Parses one event of a completion or chat stream.

    Raises:
        EndpointError: If it is not such an event, or reports an error.
    """
    try:
        event = json.loads(text)
        if not isinstance(event, dict):
            raise TypeError
        if event.get("error"):
            message = " ".join(str(error_message(event)).split())[:400]
            raise EndpointError(f"the server failed: {message}")
        if "choices" not in event and isinstance(event.get("stop"), bool):
            return _native(event)
        choices = event.get("choices") or [{}]
        choice: dict[str, Any] = choices[0]
        delta = choice.get("delta") or choice.get("message") or {}
        reasoning = [_text(delta.get(name)) for name in ("reasoning_content", "reasoning")]
        return Chunk(
            text=_text(choice.get("text"))
            + _text(delta.get("content"))
            + _text(delta.get("refusal"))
            + _calls(delta),
            # servers in transition send the same text under both names
            reasoning=reasoning[0] or reasoning[1],
            token_ids=_ids(choice.get("token_ids")),
            prompt_token_ids=_ids(choice.get("prompt_token_ids") or event.get("prompt_token_ids")),
            finish=_text(choice.get("finish_reason")) or None,
            usage=_counts(event.get("usage"), COUNTS),
            step=_step(choice.get("hambench")),
            totals=_totals(event),
        )
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise EndpointError(f"the server sent an invalid event: {text[:80]!r}") from error


def _native(event: Mapping[str, Any]) -> Chunk:
    """An event of llama.cpp's own ``/completion``."""
    ends = {"eos": "stop", "word": "stop", "limit": "length"}
    return Chunk(
        text=_text(event.get("content")),
        token_ids=_ids(event.get("tokens") or []),
        finish=ends.get(str(event.get("stop_type")), "stop") if event["stop"] else None,
        totals=_totals(event),
    )


def _totals(event: Mapping[str, Any]) -> AnswerTotals | None:
    """The counts of one answer, wherever a server puts them; ``None`` without any."""
    usage = event.get("usage") or {}
    timings = _counts(event.get("timings"), ("cache_n", "draft_n", "draft_n_accepted")) or {}
    read = _counts(usage.get("prompt_tokens_details"), ("cached_tokens",)) or {}
    wrote = _counts(usage.get("completion_tokens_details"), _PREDICTED) or {}
    spoken = (event.get("metrics") or {}).get("speculative_decoding")
    drafts = _counts(spoken, ("num_draft_tokens", "num_accepted_draft_tokens", "num_spec_steps")) or {}
    accepted, rejected = (wrote.get(name) for name in _PREDICTED)
    drafted = None if accepted is None or rejected is None else accepted + rejected
    # llama.cpp names drafts only once there are some
    none_yet = 0 if timings and timings.get("cache_n") is not None else None
    totals = AnswerTotals(
        drafted=_first(drafts.get("num_draft_tokens"), timings.get("draft_n"), drafted, none_yet),
        accepted=_first(
            drafts.get("num_accepted_draft_tokens"), timings.get("draft_n_accepted"), accepted, none_yet
        ),
        rounds=drafts.get("num_spec_steps"),
        cached_prompt_tokens=_first(timings.get("cache_n"), read.get("cached_tokens")),
    )
    if (totals.accepted or 0) > (totals.drafted or 0):
        raise ValueError
    return None if totals == AnswerTotals() else totals


_PREDICTED = ("accepted_prediction_tokens", "rejected_prediction_tokens")


def _first(*counts: int | None) -> int | None:
    return next((count for count in counts if count is not None), None)


def error_message(body: Any) -> str | None:
    """Returns the message of an error object in any of the forms that servers use."""
    if not isinstance(body, dict):
        return None
    error = body.get("error", body.get("detail", body.get("message")))
    if isinstance(error, dict):
        error = error.get("message")
    return None if error is None else str(error)


def error_param(body: Any) -> str | None:
    """Returns the field that an error object blames."""
    error = body.get("error") if isinstance(body, dict) else None
    param = error.get("param") if isinstance(error, dict) else None
    return param if isinstance(param, str) else None


def _text(value: object) -> str:
    """Returns a piece of text; replaces halves of surrogate pairs that a server split by U+FFFD."""
    if value is None:
        return ""
    if isinstance(value, list):
        # some servers send the content in parts
        return "".join(_text(part.get("text")) for part in value)
    if not isinstance(value, str):
        raise TypeError
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _calls(delta: Mapping[str, Any]) -> str:
    calls = [call.get("function") for call in delta.get("tool_calls") or []]
    functions = [call for call in (*calls, delta.get("function_call")) if call is not None]
    return "".join(_text(each.get("name")) + _text(each.get("arguments")) for each in functions)


def _ids(value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 2**31 for item in value):
        raise TypeError
    return tuple(value)


def _counts(value: Any, names: tuple[str, ...]) -> dict[str, int | None] | None:
    """Returns whole numbers by name; missing ones are ``None``."""
    if value is None:
        return None
    counts = {name: value.get(name) for name in names}
    for count in counts.values():
        if count is not None and (type(count) is not int or not 0 <= count <= LARGEST_COUNT):
            raise TypeError
    return counts


def _step(value: Any) -> dict[str, int | None] | None:
    counts = _counts(value, STEP_FIELDS)
    if counts is not None:
        drafted, accepted = counts["drafted"], counts["accepted"]
        if drafted is not None and accepted is not None and accepted > drafted:
            raise ValueError
    return counts
