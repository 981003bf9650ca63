"""The OpenAI wire format: requests as they are checked, replies as they are built."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from hambench.analysis.metrics import acceptance_rate, num_tokens, tokens_per_target_forward
from hambench.decoding import SamplingParams
from hambench.records import FinishReason, GenerationTrace, StepRecord

MAX_STOP_STRINGS = 16
STEP_FIELDS = (
    "target_forwards",
    "draft_forwards",
    "micro_forwards",
    "drafted",
    "accepted",
    "kv_slots",
    "kv_bytes",
)
"""What the extension ``hambench`` of a streamed choice says of its step."""

TokenIds = Annotated[list[int], Field(min_length=1)]


class StreamOptions(BaseModel):
    """``stream_options``."""

    include_usage: bool = False


class GenerationRequest(BaseModel):
    """What both kinds of request share. Fields this server can't honour are refused rather than ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float = Field(default=0.0, ge=0)
    """Greedy unless asked otherwise: this server is for comparisons."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0
    stop: list[str] = []
    ignore_eos: bool = False
    """As in vLLM: decode to the limit."""
    return_token_ids: bool = False
    """As in vLLM: ids of prompt and pieces beside their text; here also each piece's counts."""
    n: Literal[1] | None = 1
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: dict[str, float] | None = Field(default=None, max_length=0)

    @field_validator("stop", mode="before")
    @classmethod
    def _list_of_stops(cls, value: object) -> object:
        """``None``, one string or a list of strings."""
        return [] if value is None else [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _usable_stops(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("a stop string must not be empty")
        if len(value) > MAX_STOP_STRINGS:
            raise ValueError(f"at most {MAX_STOP_STRINGS} stop strings, got {len(value)}")
        return value

    @field_validator("seed", "temperature", "top_p", mode="before")
    @classmethod
    def _null_is_default(cls, value: object, info: Any) -> object:
        return cls.model_fields[info.field_name].default if value is None else value

    def params(self, max_new_tokens: int) -> SamplingParams:
        """How tokens are chosen."""
        return SamplingParams(
            max_new_tokens=max_new_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed
        )

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(GenerationRequest):
    """``POST /v1/completions``."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[TokenIds], Field(min_length=1)]
    )
    max_tokens: int | None = Field(default=16, ge=1)
    add_special_tokens: bool = True
    """As in vLLM: whether the tokenizer adds what it adds by itself."""
    echo: Literal[False] | None = None
    logprobs: None = None
    """No log-probabilities here: a method's steps don't all have them."""
    best_of: Literal[1] | None = None
    suffix: None = None


class TextPart(BaseModel):
    """One part of a message's content."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn."""

    role: Literal["system", "user", "assistant", "developer"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(GenerationRequest):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: Literal[False] | None = None
    tools: None = None
    functions: None = None


@dataclasses.dataclass(frozen=True)
class Reply:
    """What is the same in every piece of one reply."""

    chat: bool
    model: str
    reply_id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def envelope(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        """The outer object."""
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
        """One streamed choice."""
        base: dict[str, Any] = {"index": index, "finish_reason": finish_reason(finish), "logprobs": None}
        if not self.chat:
            return base | {"text": text}
        delta = ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})
        return base | {"delta": delta}

    def whole(self, index: int, text: str, finish: FinishReason) -> dict[str, Any]:
        """One finished choice."""
        base: dict[str, Any] = {"index": index, "finish_reason": finish_reason(finish), "logprobs": None}
        return base | ({"message": {"role": "assistant", "content": text}} if self.chat else {"text": text})


def finish_reason(finish: FinishReason | None) -> str | None:
    """OpenAI's word for why an answer ended."""
    return None if finish is None else "stop" if finish in ("eos", "stop") else "length"


def step_extension(step: StepRecord) -> dict[str, int | None]:
    """A step's counts, as the ``hambench`` extension carries them."""
    return {name: getattr(step, name) for name in STEP_FIELDS}


def usage(traces: Sequence[GenerationTrace], method: str) -> dict[str, Any]:
    """Token counts, with m and the acceptance rate as an extension; what can't be known is ``null``."""
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
            "seconds": sum(step.seconds for trace in traces for step in trace.steps),
        },
    }


def error_body(
    message: str, *, kind: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
