"""Time per token by phase: phases with stable names, a table that adds up to the wall time, and a trace.

Phases are ranges in the code: ``with phase("draft"): ...``. Outside :func:`recording` such a range does nothing.
Functions that the engine (:data:`ENGINE_PHASES`) or the method names are ranges too. Recording wraps them only while it
lasts, so that ordinary runs execute exactly the written code.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hambench.errors import HambenchError
from hambench.method_facts import Phase
from hambench.profiling.memory import MemoryPoint, memory_timeline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hambench.decoding import DecodingMethod, SamplingParams
    from hambench.profiling.memory import KVMemory

PhasePath = tuple[str, ...]

PREFILL, DECODE = "prefill", "decode"
"""The two outermost phases: the first step, and all later ones."""

ENGINE_PHASES = (
    Phase("hambench.engine.llama", "Llama.forward", "forward"),
    Phase("hambench.engine.llama", "DecoderStack.forward", "layers"),
    Phase("hambench.engine.llama", "Llama.lm_head", "lm head"),
    Phase("hambench.engine.greedy", "most_probable", "sample"),
    Phase("hambench.engine.cpu.native_llama", "NativeLlama.forward", "native forward"),
    Phase("hambench.engine.cpu.native_llama", "NativeLlama.greedy", "native forward"),
    Phase("hambench.engine.cpu.native_llama", "NativeLlama.decode_greedily", "native chain"),
)
"""Phases of the engine; a method's are in :attr:`hambench.decoding.MethodConfig.phases`."""


@dataclass
class Recorder:
    """Exclusive seconds of each phase, by its path from the outermost phase.

    Args:
        synchronize: Waits for the device at both ends of every phase; ``None`` on a CPU.
        trace: Also mark phases as ranges in a running torch profiler.
    """

    synchronize: Callable[[], None] | None = None
    trace: bool = False
    seconds: dict[PhasePath, float] = field(default_factory=dict)
    calls: dict[PhasePath, int] = field(default_factory=dict)
    _open: list[_Range] = field(default_factory=list)

    def enter(self, name: str) -> None:
        """Opens a phase inside the innermost open one."""
        trace_range: Any = None
        if self.trace:
            import torch

            trace_range = torch.profiler.record_function(name)
            trace_range.__enter__()
        if self.synchronize is not None:
            self.synchronize()
        path = (*(self._open[-1].path if self._open else ()), name)
        self._open.append(_Range(path, time.perf_counter(), trace_range))

    def exit(self) -> None:
        """Closes the innermost phase."""
        if self.synchronize is not None:
            self.synchronize()
        now = time.perf_counter()
        closed = self._open.pop()
        if closed.trace_range is not None:
            closed.trace_range.__exit__(None, None, None)
        spent = now - closed.began
        self.seconds[closed.path] = self.seconds.get(closed.path, 0.0) + spent - closed.inside
        self.calls[closed.path] = self.calls.get(closed.path, 0) + 1
        if self._open:
            self._open[-1].inside += spent


@dataclass(slots=True)
class _Range:
    path: PhasePath
    began: float
    trace_range: Any
    inside: float = 0.0


_recorder: Recorder | None = None


class phase(ContextDecorator):
    """A named range of a method's step; does nothing unless recorded. A context manager and a decorator.

    Args:
        name: Stable name, e.g. ``draft``.
    """

    __slots__ = ("_name", "_to")

    def __init__(self, name: str) -> None:
        self._name = name
        self._to: Recorder | None = None

    def _recreate_cm(self) -> phase:
        return phase(self._name)

    def __enter__(self) -> None:
        if _recorder is not None:
            self._to = _recorder
            _recorder.enter(self._name)

    def __exit__(self, *_: object) -> None:
        if self._to is not None:
            self._to.exit()
            self._to = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleCost:
    """Cost per call of the ranges in the code while nothing is recorded."""

    num_ranges: int
    """Number of ranges entered in that call, without those that only a recording adds."""
    seconds_each: float

    @property
    def seconds(self) -> float:
        """Seconds that the ranges cost in that call."""
        return self.num_ranges * self.seconds_each


def idle_cost(call: Callable[[], object], *, num_timed: int = 20_000) -> IdleCost:
    """Counts the ranges that a call enters, and times enough entries and exits for a steady figure.

    It counts and times separately, because the difference of two timings of the call would drown in noise.

    Args:
        call: Function that runs methods; called once.
        num_timed: Entries and exits in each of five timings, of which the best counts.
    """
    num_ranges = 0
    enter = phase.__enter__

    def counting(self: phase) -> None:
        nonlocal num_ranges
        num_ranges += 1
        enter(self)

    phase.__enter__ = counting  # type: ignore[method-assign]
    try:
        call()
    finally:
        phase.__enter__ = enter  # type: ignore[method-assign]
    timings = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(num_timed):
            with phase("idle"):
                pass
        timings.append(time.perf_counter() - began)
    return IdleCost(num_ranges=num_ranges, seconds_each=min(timings) / num_timed)


@contextlib.contextmanager
def recording(recorder: Recorder, phases: Sequence[Phase] = ()) -> Iterator[Recorder]:
    """Records all phases of the block; can't be nested.

    Args:
        recorder: Recorder that receives the phases.
        phases: Phases of the method, added to :data:`ENGINE_PHASES`.

    Raises:
        HambenchError: If a phase names a function that does not exist.
    """
    global _recorder  # ranges in the code must reach it without an argument
    if _recorder is not None:
        raise RuntimeError("phases are being recorded already")
    with contextlib.ExitStack() as restore:
        for named in dict.fromkeys((*ENGINE_PHASES, *phases)):
            restore.callback(_wrap(named))
        _recorder = recorder
        try:
            yield recorder
        finally:
            _recorder = None


def _wrap(named: Phase) -> Callable[[], None]:
    """Makes a function a phase; returns a function that undoes this."""
    *classes, last = named.function.split(".")
    try:
        owner: Any = importlib.import_module(named.module)
        for part in classes:
            owner = getattr(owner, part)
        original = owner.__dict__[last]
    except (ImportError, AttributeError, KeyError) as error:
        raise HambenchError(
            f"phase {named.name!r} names {named.module}:{named.function}, which does not exist: fix it in the "
            "method's phases"
        ) from error

    @functools.wraps(original)
    def ranged(*args: Any, **kwargs: Any) -> Any:
        with phase(named.name):
            return original(*args, **kwargs)

    @functools.wraps(original)
    def asking(*args: Any, **kwargs: Any) -> Any:
        # a function that asks for forwards lasts until they are answered
        with phase(named.name):
            return (yield from original(*args, **kwargs))

    setattr(owner, last, asking if inspect.isgeneratorfunction(original) else ranged)
    return lambda: setattr(owner, last, original)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRow:
    """One phase of a profile."""

    path: PhasePath
    """Path from the outermost phase, without ``decode``."""
    seconds: float
    """Seconds in the phase itself, without phases inside it."""
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Time and memory of one answer."""

    method: str
    num_tokens: int
    """Number of tokens of the decode steps."""
    wall_s: float
    """Wall seconds of the decode steps, measured around the loop."""
    plain_wall_s: float
    """The same without recording, which shows the cost of recording."""
    prefill_s: float
    rows: tuple[PhaseRow, ...]
    """Phases of the decode steps, longest first; time outside all of them is ``everything else``."""
    weight_bytes: int
    extra_weight_bytes: int
    kv_bytes: int
    """Bytes of caches in use after the last step."""
    kv_slots: int | None
    """Target slots in use after the last step."""
    peak_memory_bytes: int | None
    """Peak of the allocator on a GPU, of the process on a CPU; weights included."""
    memory: tuple[MemoryPoint, ...] = ()
    """Memory over the steps, starting with the prefill."""
    target_kv: KVMemory | None = None
    """The target's cache for these slots by formula, by storage and by the allocator, if requested."""

    @property
    def accounted_s(self) -> float:
        """Sum of all rows."""
        return sum(row.seconds for row in self.rows)


ELSE = "everything else"


def profile_method(
    method: DecodingMethod,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    *,
    phases: Sequence[Phase] = (),
    device: str = "cpu",
    weight_bytes: int = 0,
    trace_to: Path | None = None,
) -> Profile:
    """Decodes one answer several times: to warm up, plain, recorded, for its memory and optionally traced.

    On a GPU the recorded pass waits for the device at both ends of every phase, which slows it compared with the plain
    one; the shares stay meaningful.

    Args:
        method: The built method.
        prompt_ids: The prompt.
        params: Limit and sampling; EOS is ignored, so that every pass has the same length.
        phases: Phases that the method's config names.
        device: Device that the method runs on.
        weight_bytes: Weight bytes of the target, copied to the result.
        trace_to: File to write a trace in Chrome's format to, which Perfetto opens.
    """
    from hambench.machine.load import peak_memory_bytes

    synchronize = _synchronizer(device)
    _decode(method, prompt_ids, params)
    plain = _decode(method, prompt_ids, params)
    with recording(Recorder(synchronize=synchronize), phases) as recorder:
        timed = _decode(method, prompt_ids, params)
    peak = peak_memory_bytes(device)
    memory = memory_timeline(method, prompt_ids, params, device=device)
    if trace_to is not None:
        _trace(method, prompt_ids, params, phases, trace_to)
    rows = [
        PhaseRow(path=path[1:] or (ELSE,), seconds=seconds, calls=recorder.calls[path])
        for path, seconds in recorder.seconds.items()
        if path[0] == DECODE
    ]
    return Profile(
        method=method.name,
        num_tokens=timed.num_tokens,
        wall_s=timed.decode_s,
        plain_wall_s=plain.decode_s,
        prefill_s=timed.prefill_s,
        rows=tuple(sorted(rows, key=lambda row: -row.seconds)),
        weight_bytes=weight_bytes,
        extra_weight_bytes=method.extra_weight_bytes,
        kv_bytes=timed.kv_bytes,
        kv_slots=timed.kv_slots,
        peak_memory_bytes=peak,
        memory=memory,
    )


@dataclass(frozen=True, slots=True)
class _Pass:
    prefill_s: float
    decode_s: float
    num_tokens: int
    kv_bytes: int
    kv_slots: int | None


def _decode(method: DecodingMethod, prompt_ids: Sequence[int], params: SamplingParams) -> _Pass:
    from hambench.engine.loop import stream

    run = stream(method, prompt_ids, params)
    began = time.perf_counter()
    with phase(PREFILL):
        last = next(run)
    decode_began = time.perf_counter()
    num_tokens = 0
    while True:
        with phase(DECODE):
            step = next(run, None)
        if step is None:
            break
        last = step
        num_tokens += len(step.tokens)
    ended = time.perf_counter()
    return _Pass(decode_began - began, ended - decode_began, num_tokens, last.kv_bytes or 0, last.kv_slots)


def _trace(
    method: DecodingMethod,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    phases: Sequence[Phase],
    path: Path,
) -> None:
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with (
        profile(activities=activities, profile_memory=True) as profiler,
        recording(Recorder(trace=True), phases),
    ):
        _decode(method, prompt_ids, params)
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))


def _synchronizer(device: str) -> Callable[[], None] | None:
    if not device.startswith("cuda"):
        return None
    import torch

    return functools.partial(torch.cuda.synchronize, device)
