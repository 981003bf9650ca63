"""Builds replies in the OpenAI wire format; requests are in :mod:`.requests`."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from hambench.analysis.metrics import acceptance_rate, machine_s, num_tokens, tokens_per_target_forward
from hambench.records import FinishReason, GenerationTrace, StepRecord

STEP_FIELDS = (
    "target_forwards",
    "draft_forwards",
    "micro_forwards",
    "drafted",
    "accepted",
    "kv_slots",
    "kv_bytes",
    "peak_kv_bytes",
)
"""Fields of a step in the extension ``hambench`` of a streamed choice."""
_LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


@dataclasses.dataclass(frozen=True)
class Reply:
    """The fields that all pieces of one reply share."""

    chat: bool
    model: str
    reply_id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def envelope(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        """Returns the outer object."""
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {
            "id": f"{prefix}-{self.reply_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def piece(
        self, index: int, text: str, finish: FinishReason | None, *, first: bool = False
    ) -> dict[str, Any]:
        """Returns one streamed choice."""
        base: dict[str, Any] = {"index": index, "finish_reason": finish_reason(finish), "logprobs": None}
        if not self.chat:
            return base | {"text": text}
        delta = ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})
        return base | {"delta": delta}

    def whole(self, index: int, text: str, finish: FinishReason) -> dict[str, Any]:
        """Returns one finished choice."""
        base: dict[str, Any] = {"index": index, "finish_reason": finish_reason(finish), "logprobs": None}
        return base | ({"message": {"role": "assistant", "content": text}} if self.chat else {"text": text})


def finish_reason(finish: FinishReason | None) -> str | None:
    """Returns OpenAI's finish reason."""
    return None if finish is None else "stop" if finish in ("eos", "stop") else "length"


def step_extension(step: StepRecord) -> dict[str, int | None]:
    """Returns a step's counts for the ``hambench`` extension."""
    return {name: getattr(step, name) for name in STEP_FIELDS}


def usage(traces: Sequence[GenerationTrace], method: str) -> dict[str, Any]:
    """Returns token counts, with m, the acceptance rate and the machine's seconds as an extension.

    In a batch the seconds are the answers' part of the rounds. Unknown values are ``null``.
    """
    prompt, completion = sum(trace.prompt_tokens for trace in traces), num_tokens(traces)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "hambench": {
            "method": method,
            "steps": sum(len(trace.steps) for trace in traces),
            "tokens_per_target_forward": tokens_per_target_forward(traces),
            "acceptance_rate": acceptance_rate(traces),
            "seconds": math.fsum(machine_s(step) or 0.0 for trace in traces for step in trace.steps),
        },
    }


class ErrorDetail(BaseModel):
    """The error of a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """OpenAI's error object, for the server's API description."""

    error: ErrorDetail


class RefusedError(Exception):
    """Raised for a request that gets an error instead of an answer.

    Args:
        status: HTTP status.
        message: Message for the client, without paths or tracebacks.
        code: OpenAI's error code, if there is one.
        counted: Whether its outcome is counted already, because it was accepted and then failed.
    """

    def __init__(self, status: int, message: str, code: str | None = None, *, counted: bool = False) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.counted = status, message, code, counted


def error_body(
    message: str, *, kind: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """Builds OpenAI's error object; escapes invalid Unicode in the client's own text."""
    return {"error": {"message": _encodable(message), "type": kind, "param": _encodable(param), "code": code}}


def _encodable(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def sse(item: dict[str, Any]) -> bytes:
    """Encodes one server-sent event; escapes Unicode line separators, because many clients split at those as well."""
    text = json.dumps(item, ensure_ascii=False).translate(_LINE_ENDS)
    return f"data: {text}\n\n".encode("utf-8", "replace")
