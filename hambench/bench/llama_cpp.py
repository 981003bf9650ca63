"""llama.cpp next to hambench's engines: its server on a GGUF file, timed by the server itself.

The same model runs with bfloat16 and 8-bit weights and as the original file. Prompts go as ids, nothing is kept from
one request to the next, and the seconds are llama.cpp's own, so neither HTTP nor JSON is in them. A server that does
not start, dies or answers something else is left out with the reason, and the others are measured.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from hambench.errors import HambenchError, ModelError
from hambench.files import reason_of
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
SPIN_S = 0.4
"""Wait after each request: threads of a llama.cpp without OpenMP spin for 6.5 million pauses, some 0.3 s, on cores that
the next engine needs."""
ENDING_S = 2.0
"""Wait for a process that has closed its connection to end, so that there is a reason to name."""
REQUEST_S = 600.0
INSTALL = "pip install 'hambench[llama-server]' (it compiles for minutes), or put llama-server on the PATH"

Ask = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Sends the body of a request to ``/completion`` and returns the answer."""


class LlamaCppError(ModelError):
    """Raised if a server does not answer as asked: it is left out of the comparison."""


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
            LlamaCppError: If the server does not answer as asked.
        """
        answer = self._complete(ids, num_tokens)
        tokens = answer.get("tokens")
        if (
            not isinstance(tokens, list)
            or len(tokens) != num_tokens
            or not all(isinstance(token, int) for token in tokens)
        ):
            raise LlamaCppError(
                f"{self.name}: {num_tokens} token ids were asked for and not given: its llama-server is too old"
            )
        return tokens

    def time(self, ids: torch.Tensor, num_tokens: int) -> tuple[float, float]:
        """Returns the server's seconds to the first token, and from there to the last.

        Raises:
            LlamaCppError: If the server does not answer as asked, or has read less than the whole prompt.
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
            raise LlamaCppError(f"{self.name} gave no answer: {self._reason(error)}") from error
        finally:
            time.sleep(SPIN_S)

    def _reason(self, error: Exception) -> str:
        if self.server is not None:
            # a connection is closed before its process has ended
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.server.process.wait(timeout=ENDING_S)
            if (ending := self.server.ending()) is not None:
                return f"it {ending}"
        return f"{type(error).__name__}: {error}"


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
        LlamaCppError: If the timings are missing, of other numbers of tokens, or no time.
    """
    timings = answer.get("timings")
    timings = timings if isinstance(timings, Mapping) else {}
    names = ("prompt_n", "prompt_ms", "predicted_n", "predicted_ms")
    missing = [key for key in names if not isinstance(timings.get(key), int | float)]
    if missing:
        raise LlamaCppError(
            f"{name}: its answer has no timings ({', '.join(missing)}): it is not llama-server"
        )
    read, predicted = timings["prompt_n"], timings["predicted_n"]
    if (read, predicted) != (num_prompt_tokens, num_tokens):
        raise LlamaCppError(
            f"{name} read {read} of {num_prompt_tokens} prompt tokens and gave {predicted} of {num_tokens}: its times "
            "are of something else"
        )
    prompt_ms, predicted_ms = timings["prompt_ms"], timings["predicted_ms"]
    if not (0 < prompt_ms < math.inf and 0 < predicted_ms < math.inf):
        raise LlamaCppError(
            f"{name} says that it read for {prompt_ms} ms and decoded for {predicted_ms} ms: these are no times"
        )
    return prompt_ms / 1e3, predicted_ms / 1e3


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

    def start(self, target: TargetModel, num_positions: int) -> None:
        """Makes the files and starts a server with each; what can't be done is named in :attr:`missing`.

        The files are deleted as soon as the servers have loaded them: a kill while engines are timed leaves none.

        Args:
            target: The model as hambench runs it.
            num_positions: Positions that each server needs.

        Raises:
            ModelError: If the file that the user named can't be used.
        """
        if self.missing is None and target.device.type != "cpu":
            # a llama-server that was built for CPUs only would run there, and silently
            self.missing = (
                f"the model is on {target.device}: llama.cpp is compared on the threads of a CPU only"
            )
        if self.missing is not None:
            return
        try:
            with tempfile.TemporaryDirectory(prefix="hambench-gguf-") as scratch:
                for kind, path in self._make_files(Path(scratch)).items():
                    self._start(kind, path, num_positions)
        except OSError as error:
            self._leave_out(f"its files can't be made: {reason_of(error)}")
        except ModelError as error:
            if self._gguf is not None:
                raise
            self._leave_out(str(error))

    def drop(self, name: str, reason: str) -> None:
        """Stops an engine that is not to be timed."""
        engine = next(engine for engine in self.engines if engine.name == name)
        if engine.server is not None:
            engine.server.stop()
        self.engines.remove(engine)
        self._leave_out(reason)

    def _leave_out(self, reason: str) -> None:
        self.missing = reason if self.missing is None else f"{self.missing}; {reason}"

    def _make_files(self, scratch: Path) -> dict[str, Path]:
        source = ensure_gguf(EMBEDDED[self._model]) if self._gguf is None else self._gguf
        original = main_type(source)
        files = {kind: scratch / f"{kind}.gguf" for kind in COPY_TYPES}
        for kind, copy in files.items():
            self._say(f"{source.name} as {kind}")
            write_copy(source, copy, kind)
        self.note = weights_note(source, original, files["BF16"], self._folder)
        files.setdefault(original, source)
        return files

    def _start(self, kind: str, path: Path, num_positions: int) -> None:
        try:
            self.engines.append(_start(kind, path, num_positions))
        except ModelError as error:
            self._leave_out(f"{NAME} {kind} does not run: {error}")


def weights_note(source: Path, original: str, copy: Path, folder: Path) -> str:
    """Returns a line on the weights that llama.cpp runs, and whether they are those of the checkpoint."""
    num_different, num_matrices = differing_matrices(copy, folder)
    origin = f"BF16 and Q8_0 made from {source.name} ({original}), de-quantised"
    if num_different == 0:
        return f"{origin}: in BF16 all {num_matrices} matrices are hambench's, bit by bit"
    return f"{origin}: OTHER weights than hambench's, in {num_different} of {num_matrices} matrices"


def _start(kind: str, path: Path, num_positions: int) -> LlamaCppEngine:
    import httpx2
    import torch

    from hambench.methods.peers.llama_server import HOST, find_binary, start_server

    threads = str(torch.get_num_threads())
    command = [str(find_binary(None)), "--model", str(path), "--host", HOST, "--parallel", "1"]
    command += ["--ctx-size", str(num_positions), "--threads", threads, "--threads-batch", threads]
    command += ["--n-gpu-layers", "0"]
    weight_bytes = bytes_read_per_token(path)
    server = start_server(command)
    client = httpx2.Client(
        base_url=f"http://{HOST}:{server.port}",
        timeout=REQUEST_S,
        trust_env=False,
        # while others are timed, the server closes a connection that waits
        limits=httpx2.Limits(max_keepalive_connections=0),
    )

    def ask(body: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            response = client.post("/completion", json=body)
        except httpx2.HTTPError as error:
            raise ModelError(f"{type(error).__name__}: {error}") from error
        if response.status_code != 200:
            raise ModelError(f"HTTP {response.status_code}: {response.text[:200]}")
        answer = response.json()
        return answer if isinstance(answer, Mapping) else {}

    return LlamaCppEngine(kind=kind, weight_bytes=weight_bytes, ask=ask, server=server)
