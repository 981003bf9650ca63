"""A server as a peer: any OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, ``hambench serve``).

Times are measured at the client. A step is the wait for the next event with tokens, so a server that sends bursts shows
bursts. Counts that a server does not report (forwards, cache) are missing from the record. Ids are the server's own if
it sends them. Otherwise the target's tokenizer encodes each piece of text, and a mismatch is reported once.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from hambench.decoding import SamplingParams
from hambench.errors import HambenchError
from hambench.methods.peers.base import PeerConfig
from hambench.serving.address import check_timeout, check_url, is_loopback

if TYPE_CHECKING:
    from hambench.decoding import Target
    from hambench.methods.peers.endpoint_session import EndpointSession, Talk

APIS, PROMPTS = ("completions", "chat", "llama.cpp"), ("text", "ids")
GUARDS = ("salt", "nonce", "none")


@dataclass(frozen=True, kw_only=True)
class EndpointConfig(PeerConfig):
    """Asks an OpenAI-compatible server for its tokens, as a peer to compare with.

    No knob is secret: the key stays in the environment.
    """

    method: ClassVar[str] = "endpoint"

    url: str = "http://127.0.0.1:8000/v1"
    """Its address; by default that of ``hambench serve``."""
    served_model: str | None = None
    """The model's name there; by default the target's, or the only one."""
    api: str = "completions"
    """``completions``; ``chat``: the messages are taken out of the prompt's template and sent as such; ``llama.cpp``:
    the own route of llama-server, with ids and the counts of every round."""
    prompt: str = "text"
    """``text``, or ``ids`` where the server takes them (vLLM, llama.cpp, ``hambench serve``)."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key, if there is one."""
    timeout_s: float = 60.0
    """Longest wait for a connection and for each next event."""
    retries: int = 3
    """How often a busy server is asked again before the first event; never after it."""
    ignore_eos: bool = False
    """Ask the server to decode to the limit (vLLM's field), for runs with ``--ignore-eos``."""

    guard: str = "salt"
    """Against prompts that the server has cached of earlier answers. ``salt``: ask it not to use them (by the fields of
    vLLM and llama.cpp); ``nonce``: begin each prompt with a number of its own, which changes it; ``none``."""

    def __post_init__(self) -> None:
        if self.guard not in GUARDS:
            raise ValueError(f"guard must be one of {', '.join(GUARDS)}, got {self.guard!r}")
        if self.api not in APIS:
            raise ValueError(f"api must be one of {', '.join(APIS)}, got {self.api!r}")
        if self.prompt not in PROMPTS:
            raise ValueError(f"prompt must be one of {', '.join(PROMPTS)}, got {self.prompt!r}")
        if self.api == "chat" and self.prompt == "ids":
            raise ValueError("prompt='ids' needs api='completions': a chat message is text")
        check_timeout(self.timeout_s)
        if self.retries < 0:
            raise ValueError(f"retries must be >= 0, got {self.retries}")
        check_url(self.url)

    def unavailable_for(self, model: str) -> str | None:
        """Returns why the client is unavailable; ``None`` if it is installed."""
        if importlib.util.find_spec("httpx2") is None:
            return "endpoint needs httpx2, which is not installed: pip install 'hambench[endpoint]'"
        return None

    def build(self, target: Target) -> Endpoint:
        """Asks the server for its model, and checks that its tokenizer is the target's."""
        from hambench.methods.peers.endpoint_session import Talk
        from hambench.serving.client import EndpointClient

        if target.tokenizer is None:
            raise HambenchError(f"{target.name} has no tokenizer, which an endpoint's text needs")
        key = os.environ.get(self.key_env) or None
        client = EndpointClient(self.url, key=key, timeout_s=self.timeout_s, retries=self.retries)
        return Endpoint(
            self.label, Talk(self, client, target, client.choose_model(self.served_model, target.name))
        )


@dataclass(frozen=True)
class Endpoint:
    """A server that answered."""

    name: str
    talk: Talk
    lossless: bool = False
    """Unknown, so not claimed."""
    extra_weight_bytes: int = 0

    @property
    def local_port(self) -> int | None:
        """Port of a server on this machine, whose work does not count as other load."""
        parts = urlsplit(self.talk.config.url)
        if not is_loopback(parts.hostname or ""):
            return None
        return parts.port or (443 if parts.scheme == "https" else 80)

    def warmup(self) -> None:
        """Asks for a few tokens, and for the server's ids of a text that tokenizers encode differently."""
        self.talk.check_tokenizer()

    def start(self, prompt_ids: Sequence[int], params: SamplingParams) -> EndpointSession:
        """Opens a session; the request is sent by ``prefill``."""
        from hambench.methods.common.sequence import check_request
        from hambench.methods.peers.endpoint_session import EndpointSession

        check_request(self.talk.target, prompt_ids, params.max_new_tokens)
        return EndpointSession(self.talk, list(prompt_ids), params)
