"""A cluster worker: holds the model, loaded once, and its methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hambench.machine.fingerprint import Fingerprint, differences, fingerprint
from hambench.machine.load import CpuLoadMeter
from hambench.records import Cell, SampleRecord
from hambench.runner.backend import INSTRUCTION_SET, backend_facts, keep_to_instruction_set
from hambench.runner.generator import DecodingOptions, Generator, Job

SOFTWARE_KEYS = ("hambench", "commit", "torch", "transformers", "python", INSTRUCTION_SET)
"""Keys of the fingerprint that a worker must share with the driver: other software makes other tokens."""


class Worker:
    """One model on one device (the class behind the Ray actor).

    Args:
        cells: The run's cells, all of one model.
        options: Decoding options of the run.
        device: Device given to the run; by default the GPU that Ray assigned, else the CPU.
        facts: The driver's :func:`~hambench.runner.backend.backend_facts`.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        options: DecodingOptions,
        device: str | None,
        facts: Mapping[str, str],
    ) -> None:
        from hambench.models.target import load

        keep_to_instruction_set(facts)
        target = load(cells[0].model, dtype=cells[0].dtype, device=device)
        self._generator = Generator(target, cells, options)
        self._load = CpuLoadMeter()

    def describe(self) -> tuple[Fingerprint, str]:
        """Returns the worker's environment fingerprint with its engines' facts, and the sha256 of its weights."""
        environment = {**fingerprint(), **backend_facts(cell.kernels for cell in self._generator.cells)}
        return environment, self._generator.target.identity.sha256

    def prepare(self) -> list[dict[str, Any]]:
        """Warms up every method; returns the readings as telemetry."""
        readings = _Readings()
        self._generator.warm_up(readings.append_telemetry)
        return readings.items

    def record(self, job: Job) -> SampleRecord:
        """Makes one record."""
        return self._generator.record(job, self._load)


class _Readings:
    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []

    def append_telemetry(self, item: dict[str, Any]) -> None:
        self.items.append(item)


def mismatch(driver: Fingerprint, worker: Fingerprint) -> str | None:
    """Returns how a worker's software differs from the driver's, or ``None`` if it does not."""
    found = differences(driver, worker, SOFTWARE_KEYS)
    listed = ", ".join(f"{key} {change}" for key, change in found.items())
    if INSTRUCTION_SET in found:
        listed += f"; set HAMBENCH_CPU_ISA={worker[INSTRUCTION_SET]} where the run is started"
    return listed or None
