"""Dialects of the OpenAI API: which names and fields one server takes, learnt from what it refuses.

A refused request is asked again without the field that the server blames, or with the other name of it; that is kept
only once a request has gone through. Every change that could alter the answers is told.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from hambench.serving.client import EndpointClient
from hambench.serving.events import Chunk, EndpointError

EXTENSIONS = ("return_token_ids", "ignore_eos", "add_special_tokens")
"""Fields that only some servers know."""
_DROPPABLE = (*EXTENSIONS, "stream_options", "seed", "top_p", "temperature")
_TOLD = {
    "temperature": "answers are sampled at the server's own temperature",
    "top_p": "answers are sampled with the server's own top_p",
    "seed": "sampled answers can't be repeated",
    "ignore_eos": "answers end where the server ends them",
}
_MOST_CHANGES = 8


@dataclasses.dataclass(frozen=True)
class _Manner:
    """One way to ask."""

    without: frozenset[str] = frozenset()
    new_limit: bool = False
    """``max_completion_tokens`` instead of ``max_tokens``."""

    def body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        said = {name: value for name, value in body.items() if name not in self.without}
        if self.new_limit and "max_tokens" in said:
            said["max_completion_tokens"] = said.pop("max_tokens")
        return said

    def after(self, error: EndpointError, said: Collection[str]) -> _Manner | None:
        """Another way to ask, after a refusal of a body with the fields ``said``; ``None`` if there is none left."""
        if error.status not in (400, 422):
            return None
        words = [error.param] if error.param in said else re.findall(r"\w+", str(error))
        blamed = {word for word in words if word is not None and word in said}
        if "max_tokens" in said and ("max_tokens" in blamed or "max_completion_tokens" in str(error)):
            return dataclasses.replace(self, new_limit=True)
        dropped = blamed & set(_DROPPABLE)
        if not dropped:
            # the server names none: what few know goes first
            unsure = (set(EXTENSIONS), {"stream_options"})
            dropped = next((fields & set(said) for fields in unsure if fields & set(said)), set())
        return dataclasses.replace(self, without=self.without | dropped) if dropped else None


class Dialect:
    """How one server is asked.

    Args:
        tell: Gets one line about each change that could alter the answers.
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
        """The events of one answer; the request is sent when the first is asked for.

        Args:
            client: The server.
            path: What is asked.
            body: The request in OpenAI's older names.
            before_sending: Called before each try, for a clock that times the last one alone.

        Raises:
            EndpointError: If the server refuses whatever is changed, or breaks off.
        """
        manner = self._manner
        for _ in range(_MOST_CHANGES):
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
        raise EndpointError(f"{client.root} refuses the request however it is asked")

    def _adopt(self, manner: _Manner, body: Mapping[str, Any]) -> None:
        for name in sorted(manner.without - self._manner.without):
            if name in body and name in _TOLD:
                self._tell(f"the server refuses {name}={body[name]}: {_TOLD[name]}")
        self._manner = manner
