"""Starts a block's worker process, asks it for one prompt at a time, and ends it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

import msgspec
import psutil

from hambench.analysis.metrics import decode_seconds
from hambench.machine.load import read_cpu_times
from hambench.records import Cell, GenerationTrace

Side = Literal["base", "head"]
WORKER = Path(__file__).with_name("worker.py")
TURN_TIMEOUT_S = 600.0
"""Time limit of one turn, after which a process counts as hung."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePrompt:
    """A prompt, as text or as ids."""

    text: str | None = None
    chat: bool = False
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of a pair: a configuration and the code that runs it."""

    cell: Cell
    python: str = sys.executable
    code: Path | None = None
    """Folder that the process must import hambench from; ``None`` accepts any."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables to set for the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work of every block of a gate."""

    prompts: tuple[GatePrompt, ...]
    max_new_tokens: int = 12
    turns: int = 3
    """Turns per prompt in a block; each step counts at its fastest."""
    device: str | None = None
    together: bool = True
    """Whether both processes are alive at once and alternate; if not, they run in sequence, for models too large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One side's decoding of one prompt."""

    side: Side
    prompt: int
    trace: GenerationTrace
    peak_memory_bytes: int | None = None
    other_load: float | None = None
    """Share of the machine's CPU time that other processes took meanwhile."""
    kernels: str | None = None
    """Kernels that ran the model."""

    @property
    def seconds(self) -> float:
        """Returns the seconds of the decode phase."""
        return decode_seconds([self.trace])


class WorkerDiedError(Exception):
    """Raised if a block's process ends early or hangs."""


class Worker:
    """A context manager around a fresh process that decodes on command.

    Args:
        arm: The configuration and code to run.
        work: The work of the block.
    """

    def __init__(self, arm: Arm, work: Work) -> None:
        self.arm, self.work = arm, work
        self._kernels: str | None = None

    def __enter__(self) -> Self:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()
        environment = {**os.environ, **self.arm.environment}
        if self.arm.code is not None:
            environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            [self.arm.python, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
        )
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        cell = self.arm.cell
        work = {
            "model": cell.model,
            "dtype": cell.dtype,
            "method": cell.method,
            "knobs": cell.knobs,
            "threads": cell.threads,
            "kernels": cell.kernels,
            "device": self.work.device,
            "max_new_tokens": self.work.max_new_tokens,
            "prompts": [dataclasses.asdict(prompt) for prompt in self.work.prompts],
        }
        self._send(json.dumps(work))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if kind is not None:
            self._process.kill()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        self._stderr.close()

    def wait_until_ready(self) -> None:
        """Waits until the model is loaded and warm."""
        ready = self._receive()
        self._kernels = ready["kernels"]
        code = self.arm.code
        if code is not None and Path(ready["code"]).resolve() != code.resolve():
            raise WorkerDiedError(
                f"it imported hambench from {ready['code']} instead of the version to be measured"
            )

    def take_turn(self, side: Side, prompt: int) -> Turn:
        """Decodes one prompt in the process."""
        before, own_before = read_cpu_times(), self._cpu_seconds()
        self._send(str(prompt))
        reply = self._receive()
        after, own_after = read_cpu_times(), self._cpu_seconds()
        load = None
        if before and after and after.total - before.total >= 0.2:
            busy = (after.busy - before.busy) - (after.own - before.own) - (own_after - own_before)
            load = min(1.0, max(0.0, busy / (after.total - before.total)))
        return Turn(
            side=side,
            prompt=prompt,
            trace=msgspec.convert(reply["trace"], GenerationTrace),
            peak_memory_bytes=reply["peak_memory_bytes"],
            other_load=load,
            kernels=self._kernels,
        )

    def _cpu_seconds(self) -> float:
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._death() from None

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=TURN_TIMEOUT_S)
        except queue.Empty:
            raise WorkerDiedError(f"no answer within {TURN_TIMEOUT_S:.0f} s") from None
        if not line:
            raise self._death()
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _death(self) -> WorkerDiedError:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return WorkerDiedError("its process closed its output without exiting")
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return WorkerDiedError(f"{how}{': ' + lines[-1][:500] if lines else ''}")
