"""Dialects of the OpenAI API: learns the field names that a server accepts from its refusals.

A refused request is sent again without the field that the server blames, or with the field's other name. The change
is kept only after a request succeeds. Every change that could alter the answers is reported.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from hambench.serving.client import EndpointClient
from hambench.serving.events import Chunk, EndpointError

EXTENSIONS = ("return_token_ids", "ignore_eos", "add_special_tokens", "cache_salt", "cache_prompt")
"""Fields that only some servers support."""
_DROPPABLE = (*EXTENSIONS, "stream_options", "seed", "top_p", "temperature")
_TOLD = {
    "temperature": "answers are sampled at the server's own temperature",
    "top_p": "answers are sampled with the server's own top_p",
    "seed": "sampled answers can't be repeated",
    "ignore_eos": "the server decides where answers end",
    "add_special_tokens": "it may add special tokens to those of the prompt (prompt=ids keeps it from that)",
}
_GUARDS = frozenset({"cache_salt", "cache_prompt"})
"""Fields of different servers against cached prompts: one that is accepted is enough."""


@dataclasses.dataclass(frozen=True)
class _Manner:
    """One way to phrase a request."""

    without: frozenset[str] = frozenset()
    new_limit: bool = False
    """Whether to send ``max_completion_tokens`` instead of ``max_tokens``."""

    def body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        said = {name: value for name, value in body.items() if name not in self.without}
        if self.new_limit and "max_tokens" in said:
            said["max_completion_tokens"] = said.pop("max_tokens")
        return said

    def after(self, error: EndpointError, said: Collection[str]) -> _Manner | None:
        """Returns another manner after a refusal of a body with the fields ``said``; ``None`` if none is left."""
        if error.status not in (400, 422):
            return None
        words = [error.param] if error.param in said else re.findall(r"\w+", str(error))
        blamed = {word for word in words if word is not None and word in said}
        if "max_tokens" in said and ("max_tokens" in blamed or "max_completion_tokens" in str(error)):
            return dataclasses.replace(self, new_limit=True)
        dropped = blamed & set(_DROPPABLE)
        if not dropped:
            # the server names no field, so drop the least supported one first
            unsure = (set(EXTENSIONS), {"stream_options"})
            dropped = next((fields & set(said) for fields in unsure if fields & set(said)), set())
        return dataclasses.replace(self, without=self.without | dropped) if dropped else None


class Dialect:
    """Sends requests in the form that one server accepts.

    Args:
        tell: Receives one line per change that could alter the answers.
    """

    def __init__(self, tell: Callable[[str], None] = lambda _: None) -> None:
        self._manner, self._tell = _Manner(), tell

    def ask(
        self,
        client: EndpointClient,
        path: str,
        body: Mapping[str, Any],
        *,
        before_sending: Callable[[], None] = lambda: None,
    ) -> Iterator[Chunk]:
        """Yields the events of one answer; sends the request when the first event is requested.

        Args:
            client: The server.
            path: Path of the request.
            body: The request with OpenAI's older field names.
            before_sending: Called before each attempt, so that a clock times only the last one.

        Raises:
            EndpointError: If the server refuses every form, or breaks off.
        """
        manner = self._manner
        # each change leaves out a field or renames one, so there is a last one
        while True:
            said = manner.body(body)
            before_sending()
            chunks = client.stream(path, said)
            try:
                first = next(chunks, None)
            except EndpointError as error:
                other = manner.after(error, said)
                if other is None:
                    raise
                manner = other
            else:
                self._adopt(manner, body)
                if first is not None:
                    yield from itertools.chain([first], chunks)
                return

    def _adopt(self, manner: _Manner, body: Mapping[str, Any]) -> None:
        for name in sorted(manner.without - self._manner.without):
            if name in body and name in _TOLD:
                self._tell(f"the server refuses {name}={body[name]}: {_TOLD[name]}")
        guards = _GUARDS & body.keys()
        if guards and guards <= manner.without and not guards <= self._manner.without:
            self._tell(
                f"the server refuses {' and '.join(sorted(guards))}: it may read prompts out of its cache (guard=nonce "
                "keeps it from that)"
            )
        self._manner = manner
