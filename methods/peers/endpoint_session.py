"""One answer of a server: sends the request, interprets its events and reports mismatches."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hambench.decoding import KVUsage, SamplingParams, SessionEndedError, Step
from hambench.engine.chat import render_chat
from hambench.engine.text import encode_text
from hambench.serving.client import Chunk, EndpointClient, EndpointError
from hambench.serving.dialect import Dialect

if TYPE_CHECKING:
    from hambench.decoding import Target
    from hambench.methods.peers.endpoint import EndpointConfig

log = logging.getLogger(__name__)

PROBE = "Tokenizers differ:  naïve café,\n\tx += 0x1F; 東京 №7…"
"""Accents, spaces, code, digits and other scripts: where vocabularies part."""
THINK_END = "</think>"
"""Marks the end of the thinking where a server keeps it in a field of its own: that is what the model had written."""


class Talk:
    """The communication with one server, and the messages already printed about it.

    Args:
        config: The method's knobs.
        client: The server.
        target: The target, whose tokenizer converts text to ids.
        model: The model's name on the server.
    """

    def __init__(self, config: EndpointConfig, client: EndpointClient, target: Target, model: str) -> None:
        assert target.tokenizer is not None
        self.config, self.target, self.tokenizer = config, target, target.tokenizer
        self._client, self._model = client, model
        self._said: set[str] = set()
        self._dialect = Dialect(lambda line: self.say_once(line, line))

    def say_once(self, kind: str, message: str) -> None:
        """Prints one line about the server, once per run."""
        if kind not in self._said:
            self._said.add(kind)
            log.warning("%s: %s", self.config.label, message)

    def check_tokenizer(self) -> None:
        """Compares the server's tokens of a difficult text with the target's, by ids or by count."""
        ids = encode_text(PROBE, self.tokenizer, add_special_tokens=False)
        for chunk in self.ask(ids, SamplingParams(max_new_tokens=4)):
            self.compare_prompt(ids, chunk)

    def compare_prompt(self, ids: Sequence[int], chunk: Chunk) -> None:
        """Reports if the server read a different prompt from the intended one."""
        if self.config.api == "chat":
            return
        reported = chunk.usage["prompt_tokens"] if chunk.usage else None
        theirs = None if chunk.prompt_token_ids is None else len(chunk.prompt_token_ids)
        differs = chunk.prompt_token_ids is not None and list(chunk.prompt_token_ids) != list(ids)
        if differs or (reported is not None and reported != len(ids)):
            self.say_once(
                "tokenizer",
                f"the server reads {theirs or reported} tokens where {self.target.name} has {len(ids)}: another "
                "tokenizer, or it adds tokens of its own; counts and speeds per token are then not comparable",
            )

    def ask(self, ids: Sequence[int], params: SamplingParams) -> Iterator[Chunk]:
        """Yields the events of one answer; sends the request when the first event is requested.

        If the server refuses a form of the request, later requests use another one.
        """
        return self._dialect.ask(self._client, *self._request(ids, params))

    def _request(self, ids: Sequence[int], params: SamplingParams) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        # what a default or a greedy answer does without is not sent: some servers refuse it
        if not params.greedy:
            body["seed"] = params.seed
        if params.top_p < 1:
            body["top_p"] = params.top_p
        if self.config.ignore_eos:
            body["ignore_eos"] = True
        if self.config.api == "chat":
            if self.target.chat_arguments:
                body["chat_template_kwargs"] = dict(self.target.chat_arguments)
            return "/v1/chat/completions", body | {"messages": self._messages(self._text(ids))}
        if self.config.prompt == "ids":
            return "/v1/completions", body | {"prompt": list(ids)}
        # the text has the special tokens that the ids had
        return "/v1/completions", body | {"prompt": self._text(ids), "add_special_tokens": False}

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids))
        if encode_text(text, self.tokenizer, add_special_tokens=False) != list(ids):
            self.say_once("prompt", "the prompt's ids change when it is sent as text; try prompt=ids")
        return text

    def _messages(self, text: str) -> list[dict[str, str]]:
        """Extracts the user's turn from a chat-templated prompt; sends other text unchanged."""
        if getattr(self.tokenizer, "chat_template", None):
            mark = "\x00user\x00"
            turn = {"role": "user", "content": mark}
            wrapped = render_chat(self.tokenizer, [turn], self.target.chat_arguments)
            opening, _, closing = wrapped.partition(mark)
            if (
                text.startswith(opening)
                and text.endswith(closing)
                and len(text) >= len(opening) + len(closing)
            ):
                text = text[len(opening) : len(text) - len(closing)]
        return [{"role": "user", "content": text}]


class EndpointSession:
    """One answer, event by event.

    Args:
        talk: The server.
        prompt_ids: The prompt.
        params: Limit and sampling.
    """

    def __init__(self, talk: Talk, prompt_ids: list[int], params: SamplingParams) -> None:
        self._state = _State(talk, prompt_ids, params)
        # the rest of the answer is read, and the connection given back, when nobody times it any more
        weakref.finalize(self, self._state.settle)

    def prefill(self) -> Step:
        """Sends the prompt and waits for the first tokens, including the wait for a busy server."""
        return self._state.next_step()

    def step(self) -> Step:
        """Waits for the next tokens.

        Raises:
            SessionEndedError: If the server has ended its answer.
            EndpointError: If it broke off.
        """
        return self._state.next_step()

    @property
    def kv(self) -> KVUsage:
        """The cache usage that the server reports, which only hambench does."""
        return self._state.kv


class _State:
    """State that outlives a session until the rest of the stream is read."""

    def __init__(self, talk: Talk, prompt_ids: list[int], params: SamplingParams) -> None:
        self._talk, self._prompt_ids = talk, prompt_ids
        self._chunks = talk.ask(prompt_ids, params)
        self._finish: str | None = None
        self._limit = params.max_new_tokens
        self._num_ids = 0
        self._read_at: float | None = None
        self._num_counted: int | None = None
        self._gives_ids = self._thinking = False
        self.kv = KVUsage(None, None)

    def next_step(self) -> Step:
        """Returns the next tokens, reading as many events as needed.

        Raises:
            SessionEndedError: If there are no more.
        """
        # the server works on while its last tokens are looked at: a step lasts from one arrival to the next
        since = time.perf_counter() if self._read_at is None else self._read_at
        while self._finish is None and (chunk := next(self._chunks, None)) is not None:
            self._note(chunk)
            ids = (*self._ids_of(chunk), *self._hidden_end())
            if ids:
                self._num_ids += len(ids)
                self._read_at = time.perf_counter()
                counts = chunk.step or {}
                return Step(
                    tokens=ids,
                    target_forwards=counts.get("target_forwards"),
                    draft_forwards=counts.get("draft_forwards"),
                    micro_forwards=counts.get("micro_forwards"),
                    drafted=counts.get("drafted"),
                    accepted=counts.get("accepted"),
                    peak_kv_bytes=counts.get("peak_kv_bytes"),
                    seconds=self._read_at - since,
                )
        raise SessionEndedError("length" if self._finish == "length" else "stop")

    def _hidden_end(self) -> Sequence[int]:
        """Returns the end token that a server without ids counts but does not send."""
        ends = self._finish == "stop" and not self._gives_ids
        return sorted(self._talk.target.eos_ids)[:1] if ends else ()

    def settle(self) -> None:
        """Reads the rest of a finished answer for the server's counts; aborts an unfinished one."""
        complete = self._finish is not None or self._num_ids >= self._limit
        try:
            while complete and (chunk := next(self._chunks, None)) is not None:
                self._note(chunk)
            # the end token is counted by some servers and not by others
            if complete and self._num_counted is not None and abs(self._num_counted - self._num_ids) > 1:
                self._talk.say_once(
                    "count",
                    f"the server counts {self._num_counted} tokens where {self._num_ids} were seen: "
                    "rates use the latter",
                )
        except EndpointError:
            pass  # the answer was complete: what comes after it is not worth a word
        finally:
            self._chunks.close()  # type: ignore[attr-defined]

    def _note(self, chunk: Chunk) -> None:
        self._finish = chunk.finish or self._finish
        if chunk.token_ids is not None:
            self._gives_ids = True
        if chunk.step is not None:
            self.kv = KVUsage(chunk.step.get("kv_slots"), chunk.step.get("kv_bytes"))
        if chunk.usage or chunk.prompt_token_ids is not None:
            self._talk.compare_prompt(self._prompt_ids, chunk)
        if chunk.usage:
            self._num_counted = chunk.usage["completion_tokens"]

    def _ids_of(self, chunk: Chunk) -> Sequence[int]:
        if chunk.token_ids is not None:
            return chunk.token_ids
        text = self._as_written(chunk)
        if not text:
            return ()
        tokenizer = self._talk.tokenizer
        ids = encode_text(text, tokenizer, add_special_tokens=False)
        if tokenizer.decode(ids) != text:
            self._talk.say_once(
                "pieces",
                "pieces of text give different ids when tokenised one by one: counts are approximate",
            )
        return ids

    def _as_written(self, chunk: Chunk) -> str:
        """Returns the text as the model wrote it, with reasoning and answer joined."""
        self._thinking = self._thinking or bool(chunk.reasoning)
        if not (self._thinking and chunk.text):
            return chunk.reasoning or chunk.text
        self._thinking = False
        return f"{chunk.reasoning}{THINK_END}{chunk.text}"
