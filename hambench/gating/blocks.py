"""Paired blocks: base and head in two fresh processes that take turns, prompt by prompt.

Fresh, because allocation and clock state belong to a process and differ from one to the next. In turns, because a
machine drifts within seconds: what slows one arm slows the other. Both orders take turns as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

import msgspec
import psutil

from hambench.analysis.metrics import decode_seconds, decode_steps, num_decode_tokens
from hambench.gating.checks import CrashedError
from hambench.machine.load import read_cpu_times
from hambench.records import Cell, GenerationTrace

Side = Literal["base", "head"]
SIDES: tuple[Side, Side] = ("base", "head")
WORKER = Path(__file__).with_name("worker.py")
DISTURBED_LOAD = 0.10
"""Share of the machine in others' hands during every turn of a prompt from which on the prompt was disturbed."""
MAX_FAILED_BLOCKS = 2
TURN_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePrompt:
    """What is decoded: a text, or ids."""

    text: str | None = None
    chat: bool = False
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of a pair: a configuration, and the code that runs it."""

    cell: Cell
    python: str = sys.executable
    code: Path | None = None
    """Folder that the process must import hambench from; ``None`` for whatever its interpreter finds."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables set for the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What every block of a gate does."""

    prompts: tuple[GatePrompt, ...]
    max_new_tokens: int = 12
    turns: int = 3
    """Turns of each prompt in a block; each step counts at its fastest."""
    device: str | None = None
    together: bool = True
    """Both processes at once, in turns; if not, one after the other (two models that don't fit together)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One prompt decoded once by one side."""

    side: Side
    prompt: int
    trace: GenerationTrace
    peak_memory_bytes: int | None = None
    other_load: float | None = None
    """Share of the machine's CPU time that neither side took meanwhile."""

    @property
    def seconds(self) -> float:
        """Seconds of the decode phase."""
        return decode_seconds([self.trace])


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One pair of fresh processes."""

    number: int
    turns: tuple[Turn, ...] = ()
    error: str | None = None
    """Why a process died."""
    throttled: tuple[str, ...] = ()
    """Why the GPU lowered its clocks, as it says."""

    @property
    def disturbed(self) -> bool:
        """Whether on some side most prompts had no turn that others left alone, or the GPU was throttled."""
        least: dict[Side, dict[int, float]] = {}
        for turn in self.turns:
            if turn.other_load is not None:
                seen = least.setdefault(turn.side, {})
                seen[turn.prompt] = min(turn.other_load, seen.get(turn.prompt, 1.0))
        return bool(self.throttled) or any(
            sum(load > DISTURBED_LOAD for load in seen.values()) > len(seen) / 2 for seen in least.values()
        )

    @property
    def other_load(self) -> float | None:
        """Mean share of the machine in others' hands."""
        loads = [turn.other_load for turn in self.turns if turn.other_load is not None]
        return sum(loads) / len(loads) if loads else None

    @property
    def log_ratio(self) -> float | None:
        """ln(head's tokens per second / base's); ``None`` where a side has nothing to divide."""
        speeds = {}
        for side in SIDES:
            by_prompt: dict[int, list[Turn]] = {}
            for turn in self.turns:
                if turn.side == side:
                    by_prompt.setdefault(turn.prompt, []).append(turn)
            tokens = num_decode_tokens([turns[0].trace for turns in by_prompt.values()])
            seconds = sum(fastest_seconds([turn.trace for turn in turns]) for turns in by_prompt.values())
            if not tokens or not math.isfinite(seconds) or seconds <= 0:
                return None
            speeds[side] = tokens / seconds
        return math.log(speeds["head"] / speeds["base"])

    def answers(self, side: Side) -> dict[int, GenerationTrace]:
        """The first trace of each prompt."""
        found: dict[int, GenerationTrace] = {}
        for turn in self.turns:
            if turn.side == side:
                found.setdefault(turn.prompt, turn.trace)
        return found

    def readings(self) -> dict[str, Any]:
        """The block's raw readings, JSON-able."""
        return {
            "number": self.number,
            "error": self.error,
            "throttled": list(self.throttled),
            "disturbed": self.disturbed,
            "turns": [
                {
                    "side": turn.side,
                    "prompt": turn.prompt,
                    "tokens": num_decode_tokens([turn.trace]),
                    "seconds": turn.seconds,
                    "other_load": turn.other_load,
                }
                for turn in self.turns
            ],
        }


Progress = Callable[[str], None]


def fastest_seconds(traces: Sequence[GenerationTrace]) -> float:
    """Decode seconds of one prompt: every step at the fastest of its turns.

    Turns decode the same ids, so step i is the same work each time, and what disturbs can only slow. A burst of other
    load is longer than a step and shorter than a turn: it seldom meets the same step in every turn. Answers that differ
    from turn to turn have no common steps; of those the fastest turn counts as a whole.
    """
    steps = [tuple(decode_steps([trace])) for trace in traces]
    if len({tuple(step.tokens for step in turn) for turn in steps}) > 1:
        return min(sum(step.seconds for step in turn) for turn in steps)
    return math.fsum(min(step.seconds for step in same) for same in zip(*steps, strict=True))


def run_blocks(
    arms: Mapping[Side, Arm],
    work: Work,
    num_blocks: int,
    *,
    progress: Progress | None = None,
    run: Callable[[Mapping[Side, Arm], Work, int], Block] | None = None,
) -> list[Block]:
    """Measures so many good blocks: a killed one is taken again, twice at most; a disturbed one half as often as there
    are blocks. All are returned, in order.

    Args:
        arms: The two sides.
        work: What each block does.
        num_blocks: Good blocks wanted.
        progress: Takes one line a block.
        run: Measures one block; replaced by tests.

    Raises:
        CrashedError: If more than two blocks die.
    """  # noqa: D205
    measure = run if run is not None else run_block
    blocks: list[Block] = []
    extra = num_blocks // 2
    good = failed = 0
    while good < num_blocks:
        block = measure(arms, work, len(blocks))
        blocks.append(block)
        if block.error is not None:
            failed += 1
            if failed > MAX_FAILED_BLOCKS:
                raise CrashedError(f"{arms['head'].cell.label}: {block.error}")
        elif block.disturbed and extra > 0:
            extra -= 1
        else:
            good += 1
        if progress is not None:
            progress(_line(block, arms["head"].cell.label, good, num_blocks))
    return blocks


def counted(blocks: Sequence[Block], num_blocks: int) -> list[Block]:
    """The blocks that statistics use: the undisturbed ones, filled up with the least disturbed."""
    alive = [block for block in blocks if block.error is None]
    ranked = sorted(alive, key=lambda block: (block.disturbed, block.other_load or 0.0))[:num_blocks]
    return sorted(ranked, key=lambda block: block.number)


def run_block(arms: Mapping[Side, Arm], work: Work, number: int) -> Block:
    """One block; a process that dies gives a block with its error."""
    turns: list[Turn] = []
    before = _throttles()
    try:
        if work.together:
            with Worker(arms["base"], work) as base, Worker(arms["head"], work) as head:
                workers: dict[Side, Worker] = {"base": base, "head": head}
                for worker in workers.values():
                    worker.wait_until_ready()
                for turn in range(work.turns):
                    for prompt in range(len(work.prompts)):
                        swapped = (number + turn + prompt) % 2 == 1
                        for side in SIDES[::-1] if swapped else SIDES:
                            turns.append(workers[side].take_turn(side, prompt))
        else:
            for side in SIDES[::-1] if number % 2 else SIDES:
                with Worker(arms[side], work) as worker:
                    worker.wait_until_ready()
                    for _ in range(work.turns):
                        turns += [worker.take_turn(side, prompt) for prompt in range(len(work.prompts))]
    except _WorkerDiedError as death:
        return Block(number=number, turns=tuple(turns), error=str(death))
    throttled = tuple(sorted({*before, *_throttles()}))
    return Block(number=number, turns=tuple(turns), throttled=throttled)


class _WorkerDiedError(Exception):
    """A process of a block ended, or hung."""


class Worker:
    """A fresh process that decodes on command; a context manager that ends it.

    Args:
        arm: What it runs.
        work: What it is asked.
    """

    def __init__(self, arm: Arm, work: Work) -> None:
        self.arm, self.work = arm, work

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
        """Returns when the model is loaded and warm."""
        ready = self._receive()
        code = self.arm.code
        if code is not None and Path(ready["code"]).resolve() != code.resolve():
            raise _WorkerDiedError(
                f"it imported hambench from {ready['code']} instead of the version to be measured"
            )

    def take_turn(self, side: Side, prompt: int) -> Turn:
        """Has one prompt decoded."""
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
            raise _WorkerDiedError(f"no answer within {TURN_TIMEOUT_S:.0f} s") from None
        if not line:
            raise self._death()
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _death(self) -> _WorkerDiedError:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return _WorkerDiedError("its process closed its output and went on")
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return _WorkerDiedError(f"{how}{': ' + lines[-1][:500] if lines else ''}")


def _throttles() -> tuple[str, ...]:
    from hambench.machine.nvml import Gpu

    gpu = Gpu.open()
    return (gpu.read().throttles or ()) if gpu is not None else ()


def _line(block: Block, label: str, good: int, wanted: int) -> str:
    if block.error is not None:
        return f"{label}: block {block.number} died ({block.error}); taken again"
    ratio = block.log_ratio
    shown = "no ratio" if ratio is None else f"x{math.exp(ratio):.3f}"
    others = "" if block.other_load is None else f", others took {block.other_load:.0%}"
    note = " (disturbed)" if block.disturbed else ""
    return f"{label}: block {good} of {wanted}: {shown}{others}{note}"
