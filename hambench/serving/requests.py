"""Request schema of the OpenAI wire format.

The schema is closed. It rejects fields that this server does not have, and fields that it does not support, unless
their value has no effect (``top_k: -1``, ``tools: []``). So an answered request was honoured completely.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from hambench.decoding import LARGEST_SEED, SMALLEST_SEED, SamplingParams

MAX_STOP_STRINGS = 16
MAX_PROMPTS = 128
"""Maximum number of prompts per request; they are answered in sequence while other requests wait."""


def _refuse_lone_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text is not Unicode: half a surrogate pair, \\u{ord(text[error.start]):04x}, at character "
            f"{error.start}"
        ) from error
    return text


Text = Annotated[str, AfterValidator(_refuse_lone_surrogates)]
TokenIds = Annotated[list[int], Field(min_length=1)]
StopString = Annotated[str, Field(min_length=1), AfterValidator(_refuse_lone_surrogates)]
Zero = Annotated[float, Field(ge=0, le=0)]
One = Annotated[float, Field(ge=1, le=1)]
Empty = Annotated[list[Any], Field(max_length=0)]
EmptyObject = Annotated[dict[str, Any], Field(max_length=0)]


class _Closed(BaseModel):
    """Rejects unknown fields, and does not convert between JSON types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Closed):
    """``stream_options``."""

    include_usage: bool | None = None
    continuous_usage_stats: Literal[False] | None = None
    include_obfuscation: Literal[False] | None = None


class GenerationRequest(_Closed):
    """Fields that both kinds of requests share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    """Defaults to 0 (greedy), because this server is for comparisons."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=SMALLEST_SEED, le=LARGEST_SEED)] | None = None
    """Seed of a sampled request; without one, every prompt is an independent draw."""
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    ignore_eos: bool | None = None
    """Whether to decode up to the limit, as in vLLM."""
    return_token_ids: bool | None = None
    """Whether to add ids of prompt and pieces, as in vLLM, and each piece's counts."""

    # fields about the caller or the service level, which have no effect here
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None

    # about a cache of prompts, as in vLLM and llama.cpp: none is kept from one request to the next
    cache_salt: str | None = None
    cache_prompt: bool | None = None

    # values that have no effect
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    repetition_penalty: One | None = None
    logit_bias: EmptyObject | None = None
    top_k: Annotated[int, Field(ge=-1, le=0)] | None = None
    min_p: Zero | None = None
    min_tokens: Annotated[int, Field(ge=0, le=0)] | None = None
    stop_token_ids: Empty | None = None
    bad_words: Empty | None = None
    skip_special_tokens: Literal[True] | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_object(cls, value: object) -> object:
        if not isinstance(value, dict):
            raise ValueError("the body must be a JSON object, sent as application/json")
        return value

    def params(self, max_new_tokens: int) -> SamplingParams:
        """Returns the sampling parameters of one answer; without a seed, each call is a new draw."""
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return SamplingParams(
            max_new_tokens=max_new_tokens,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=seed,
        )

    @property
    def stops(self) -> list[str]:
        """Returns the strings that end the answer."""
        return [] if self.stop is None else [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def include_usage(self) -> bool:
        """Returns whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class CompletionRequest(GenerationRequest):
    """``POST /v1/completions``."""

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    add_special_tokens: bool | None = None
    """Whether the tokenizer adds its default special tokens, as in vLLM; defaults to true."""
    echo: Literal[False] | None = None
    logprobs: None = None
    """Log-probabilities are not supported, because not all methods' steps have them."""
    suffix: None = None


class TextPart(_Closed):
    """One part of a message's content."""

    type: Literal["text"]
    text: Text


class Message(_Closed):
    """One turn, in a client's form or in the form in which OpenAI's client stores an answer."""

    role: Literal["system", "user", "assistant", "developer"]
    content: Text | list[TextPart] | None = None
    name: None = None
    refusal: None = None
    reasoning: None = None
    reasoning_content: None = None
    annotations: Empty | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Empty | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"content of role {self.role!r} must be text; only the assistant's may be null")
        return self

    @property
    def text(self) -> str:
        """Returns the content as one string, empty for an answer without content."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content)


class TextFormat(_Closed):
    """A ``response_format`` of plain text."""

    type: Literal["text"]


class ChatRequest(GenerationRequest):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    response_format: TextFormat | None = None
    tools: Empty | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    functions: Empty | None = None
    chat_template_kwargs: dict[str, str | int | float | bool | None] | None = None
    """Variables of the chat template, as in vLLM; rejects those that the template does not use."""
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    """Whether to go on with the last message, which is the assistant's, as in vLLM."""

    @model_validator(mode="after")
    def _opens_or_continues(self) -> ChatRequest:
        if bool(self.continue_final_message) != (self.add_generation_prompt is False):
            raise ValueError(
                "continue_final_message=true and add_generation_prompt=false go together: the answer either opens a "
                "turn or goes on with the last message"
            )
        if self.continue_final_message and (
            self.messages[-1].role != "assistant" or not self.messages[-1].text
        ):
            raise ValueError("continue_final_message=true needs a last message of the assistant with text")
        return self

    @property
    def limit(self) -> int | None:
        """Returns the maximum number of tokens of the answer; OpenAI's newer name takes precedence."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def explain(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Returns the wrong field and the reason, from pydantic's errors.

    A value that matches none of several types has an error per type; one about a value is more
    specific than one about a type.
    """
    field = errors[0]["loc"][1:2]
    same = [error for error in errors if error["loc"][1:2] == field]
    chosen = min(same, key=lambda error: (error["type"].endswith("_type"), -len(error["loc"])))
    inside = [part for part in chosen["loc"][2:] if isinstance(part, int) or part in _INNER_FIELDS]
    where = ".".join(map(str, [*field, *inside])) or "body"
    said = "this server has no such field" if chosen["type"] == "extra_forbidden" else str(chosen["msg"])
    return where, said


_INNER_FIELDS = frozenset(
    name for model in (StreamOptions, Message, TextPart, TextFormat) for name in model.model_fields
)
