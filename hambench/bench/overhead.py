"""Cost of the harness itself: the part of a run's wall time outside a method's steps."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from hambench.machine.bandwidth import measure_bandwidth
from hambench.machine.load import CpuLoadMeter
from hambench.models.target import TargetModel
from hambench.profiling.profile import IdleCost, idle_cost
from hambench.records import SCHEMA_VERSION, Cell, RunHeader, Sample
from hambench.runner.backend import choose_kernels
from hambench.runner.executors import Executor, get_executor
from hambench.runner.generator import DecodingOptions, Generator, Job, Workload
from hambench.runner.request import RunRequest
from hambench.runner.start import prepare
from hambench.runner.sweep import Sweep
from hambench.store import RunWriter, load_run

PROMPT = "Tell a long story about a lighthouse keeper who learns to read the weather. Then tell it again. "


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Seconds of one method's records."""

    cell: str
    num_records: int
    num_tokens: int
    wall_s: float
    """Seconds for producing and storing the records."""
    steps_s: float
    """Seconds inside the method's steps, which a record counts as decoding."""
    start_s: float | None = None
    """Seconds before the first record, if workers had to start: joining, loading, warming up."""
    profiling: IdleCost | None = None
    """Cost of the profiler's ranges in one record with nothing recorded; ``None`` if workers produced the records."""

    @property
    def share(self) -> float:
        """Share of the wall time outside the steps: encoding, stop strings, text, records, the disk."""
        return (self.wall_s - self.steps_s) / self.wall_s

    @property
    def profiling_share(self) -> float | None:
        """Share of a record's steps that profiling costs while it is off."""
        return None if self.profiling is None else self.profiling.seconds / (self.steps_s / self.num_records)

    @property
    def microseconds_per_token(self) -> float:
        """Harness microseconds per token."""
        return 1e6 * (self.wall_s - self.steps_s) / self.num_tokens


def measure_overhead(
    target: TargetModel,
    *,
    kernels: str = "auto",
    methods: tuple[str, ...],
    num_records: int,
    max_new_tokens: int,
    executor: str = "local",
    ray_address: str | None = None,
) -> list[Overhead]:
    """Produces and stores records as a run does, and compares wall time with the time inside steps."""
    place = get_executor(executor, ray_address=ray_address)
    kernels = choose_kernels(kernels, target)
    sweep = Sweep(model=target.name, methods=methods, dtype=target.identity.dtype, kernels=(kernels,))
    cells = sweep.expand().cells
    sample = Sample(
        sample_id="bench/overhead/0",
        suite="bench",
        task="overhead",
        category="bench",
        doc_id=0,
        prompt=PROMPT * 4,
        # a stop string that never occurs, because searching for it is part of the cost
        stop=("\x00never\x00",),
        max_new_tokens=max_new_tokens,
    )
    options = DecodingOptions(max_remeasured=0)
    if executor != "local":
        return [
            _measure_on(place, Generator(target, (cell,), options), sample, num_records) for cell in cells
        ]
    generator = Generator(target, cells, options)
    with tempfile.TemporaryDirectory() as folder:
        writer = RunWriter.create(Path(folder) / "run", _header(cells), [sample])
        with writer:
            return [_measure(generator, cell, sample, writer, num_records) for cell in cells]


def measure_parts(
    *,
    model: str,
    dtype: str,
    device: str | None,
    kernels: str,
    methods: tuple[str, ...],
    suite: str,
) -> dict[str, float]:
    """Returns the seconds of what a run with a budget does before its first sample, by part, in order."""
    sweep = Sweep(model=model, methods=methods, dtype=dtype, kernels=(kernels,))
    parts = dict(prepare(RunRequest(sweep=sweep, suite=suite, device=device), calibrated=True).parts)
    began = time.perf_counter()
    measure_bandwidth(device or "cpu")
    return {**parts, "bandwidth probe": time.perf_counter() - began}


def _measure(
    generator: Generator, cell: Cell, sample: Sample, writer: RunWriter, num_records: int
) -> Overhead:
    load_meter = CpuLoadMeter()
    # this record also warms up
    profiling = idle_cost(lambda: generator.record(Job(cell, sample, 0), load_meter))
    steps_s, num_tokens = 0.0, 0
    began = time.perf_counter()
    for repeat in range(num_records):
        record = generator.record(Job(cell, sample, repeat), load_meter)
        writer.append_record(record)
        if record.trace is not None:
            steps_s += record.trace.seconds or 0.0
            num_tokens += len(record.trace.token_ids)
    wall_s = time.perf_counter() - began
    return Overhead(
        cell=cell.label,
        num_records=num_records,
        num_tokens=num_tokens,
        wall_s=wall_s,
        steps_s=steps_s,
        profiling=profiling,
    )


def _measure_on(place: Executor, generator: Generator, sample: Sample, num_records: int) -> Overhead:
    """Measures another executor from one stored record to the next; the first record absorbs the start of workers."""
    (cell,) = generator.cells
    stored_at: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        writer = RunWriter.create(Path(folder) / "run", _header((cell,)), [sample])
        began = time.perf_counter()
        with writer:
            work = Workload.of(
                generator.cells,
                [sample],
                num_records + 1,
                progress=lambda *_: stored_at.append(time.perf_counter()),
            )
            place.run(generator, writer, work)
        traces = [record.trace for record in load_run(writer.folder).measured if record.trace is not None]
    seconds = [sum(step.timed_s for step in trace.steps) for trace in traces]
    return Overhead(
        cell=cell.label,
        num_records=num_records,
        num_tokens=sum(len(trace.token_ids) for trace in traces[1:]),
        wall_s=stored_at[-1] - stored_at[0],
        steps_s=sum(seconds[1:]),
        start_s=stored_at[0] - began - seconds[0],
    )


def _header(cells: tuple[Cell, ...]) -> RunHeader:
    return RunHeader(
        schema_version=SCHEMA_VERSION,
        run_id="bench-overhead",
        created_at="",
        hambench_version="",
        commit=None,
        command=(),
        suites=("bench",),
        edition="offline",
        data_source="a made-up prompt",
        data_hashes={},
        cells=cells,
        num_samples=1,
        limit=None,
        repeats=1,
        seed=0,
        temperature=0.0,
        top_p=1.0,
        max_new_tokens=None,
        model={},
        environment={},
    )
