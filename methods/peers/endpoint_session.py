"""One answer of a server: sends the request, interprets its events and reports mismatches."""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hambench.decoding import KVUsage, SamplingParams, SessionEndedError, Step
from hambench.engine.text import encode_text
from hambench.method_facts import AnswerTotals
from hambench.methods.peers.endpoint_prompt import messages_of
from hambench.methods.peers.llama_cpp_rounds import Rounds, llama_cpp_body
from hambench.serving.arrivals import Arrivals
from hambench.serving.client import Chunk, EndpointClient, EndpointError
from hambench.serving.counters import read_cached_tokens
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
        self._reads_counters = True
        self.slot_bytes: int | None = None
        """Bytes of a cached token, where one server's cache is known to hold each token once; else unknown."""
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

    def guarded(self, ids: Sequence[int]) -> list[int]:
        """The prompt with a number of its own ahead, where the guard is a nonce."""
        if self.config.guard != "nonce" or self.config.api == "chat":
            return list(ids)
        nonce = encode_text(_nonce(), self.tokenizer, add_special_tokens=False)
        begins = ids[:1] == [self.tokenizer.bos_token_id]
        return [*ids[:begins], *nonce, *ids[begins:]]

    def cached_tokens(self) -> int | None:
        """Prompt tokens that the server has read out of its cache so far, if it counts them and answers don't say."""
        if not self._reads_counters:
            return None
        count = read_cached_tokens(self._client.metrics_text())
        self._reads_counters = count is not None
        return count

    def answers_tell_cached(self) -> None:
        """Answers say themselves what was cached: the server's counters, which others move too, are left alone."""
        self._reads_counters = False

    def _request(self, ids: Sequence[int], params: SamplingParams) -> tuple[str, dict[str, Any]]:
        if self.config.api == "llama.cpp":
            return "/completion", llama_cpp_body(
                ids, params, cached=self.config.guard == "none", ignore_eos=self.config.ignore_eos
            )
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        if self.config.guard == "salt":
            body |= {"cache_salt": uuid.uuid4().hex, "cache_prompt": False}
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
            messages = messages_of(self._text(ids), self.tokenizer, self.target.chat_arguments)
            if self.config.guard == "nonce":
                messages[0]["content"] = _nonce() + messages[0]["content"]
            if messages[-1]["role"] == "assistant":
                # the answer goes on where the prompt begins it: the names of vLLM and SGLang
                body |= {"continue_final_message": True, "add_generation_prompt": False}
            return "/v1/chat/completions", body | {"messages": messages}
        if self.config.prompt == "ids":
            return "/v1/completions", body | {"prompt": list(ids)}
        # the text has the special tokens that the ids had
        return "/v1/completions", body | {"prompt": self._text(ids), "add_special_tokens": False}

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids))
        if encode_text(text, self.tokenizer, add_special_tokens=False) != list(ids):
            self.say_once("prompt", "the prompt's ids change when it is sent as text; try prompt=ids")
        return text


def _nonce() -> str:
    return f"[{uuid.uuid4().hex[:12]}] "


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

    @property
    def totals(self) -> AnswerTotals | None:
        """What the server says of the whole answer; reads what is left of it."""
        self._state.settle()
        return self._state.totals


class _State:
    """State that outlives a session until the rest of the stream is read."""

    def __init__(self, talk: Talk, prompt_ids: list[int], params: SamplingParams) -> None:
        self._talk, self._prompt_ids = talk, talk.guarded(prompt_ids)
        self._cached_before = talk.cached_tokens()
        self._chunks = Arrivals(talk.ask(self._prompt_ids, params))
        self._rounds = Rounds() if talk.config.api == "llama.cpp" else None
        self._finish: str | None = None
        self._limit = params.max_new_tokens
        self._num_ids = 0
        self._read_at: float | None = None
        self._num_counted: int | None = None
        self._gives_ids = self._thinking = self._is_settled = False
        self._last_id: int | None = None
        self.totals: AnswerTotals | None = None
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
            if self._rounds is not None:
                self._rounds.add(ids, chunk)
                if not (ids := self._rounds.taken(ended=self._finish is not None)):
                    continue
            if ids:
                self._num_ids += len(ids)
                self._last_id = ids[-1]
                self._read_at = chunk.arrived
                if self._talk.slot_bytes is not None:
                    slots = len(self._prompt_ids) + self._num_ids - 1
                    self.kv = KVUsage(slots, slots * self._talk.slot_bytes)
                counts = (chunk.step or {}) if self._rounds is None else self._rounds.counts
                return Step(
                    tokens=ids,
                    target_forwards=counts.get("target_forwards"),
                    draft_forwards=counts.get("draft_forwards"),
                    micro_forwards=counts.get("micro_forwards"),
                    drafted=counts.get("drafted"),
                    accepted=counts.get("accepted"),
                    peak_kv_bytes=counts.get("peak_kv_bytes"),
                    seconds=max(0.0, self._read_at - since),
                )
        raise SessionEndedError("length" if self._finish == "length" else "stop")

    def _hidden_end(self) -> Sequence[int]:
        """Returns the end token that a server without ids counts but does not send."""
        ends = self._finish == "stop" and not self._gives_ids
        return sorted(self._talk.target.eos_ids)[:1] if ends else ()

    def settle(self) -> None:
        """Reads the rest of a finished answer for the server's counts; aborts an unfinished one."""
        if self._is_settled:
            return
        self._is_settled = True
        complete = self._finish is not None or self._num_ids >= self._limit
        complete = complete or self._last_id in self._talk.target.eos_ids
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
            self._chunks.close()
        if self._cached_before is not None and not (
            self.totals and self.totals.cached_prompt_tokens is not None
        ):
            after = self._talk.cached_tokens()
            if after is not None:
                cached = max(0, after - self._cached_before)
                self.totals = dataclasses.replace(self.totals or AnswerTotals(), cached_prompt_tokens=cached)

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
        if chunk.totals is not None:
            before = {} if self.totals is None else _known(self.totals)
            self.totals = AnswerTotals(**{**before, **_known(chunk.totals)})
            if chunk.totals.cached_prompt_tokens is not None:
                self._talk.answers_tell_cached()

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


def _known(totals: AnswerTotals) -> dict[str, int]:
    return {name: count for name, count in dataclasses.asdict(totals).items() if count is not None}
