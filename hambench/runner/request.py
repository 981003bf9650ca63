"""A run's request, and the prepared request with its model loaded and samples chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hambench.decoding import SamplingParams
from hambench.errors import HambenchError
from hambench.records import Sample
from hambench.runner.generator import DecodingOptions, Generator
from hambench.runner.sweep import Expansion, Sweep

if TYPE_CHECKING:
    from hambench.models.target import TargetModel
    from hambench.runner.budget import Bound, Growth, Speed
    from hambench.suites.api import Capture


EditionChoice = Literal["auto", "official", "offline"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRequest:
    """Everything that a run is asked to do."""

    sweep: Sweep
    suite: str | None
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    """At most this many rows of each task."""
    data: Path | None = None
    edition: EditionChoice = "auto"
    preset: str | None = None
    repeats: int = 1
    price_per_hour: float | None = None
    """Dollars per hour of the machine; tables and reports then give costs per token."""
    max_new_tokens: int | None = None
    """Replaces the tasks' own limits; the scores are then not the tasks'."""
    budget_s: float | None = None
    """Answer as many samples of each task as fit into this many seconds; see ``docs/adr/0025``."""
    device: str | None = None
    allow_code_execution: bool = False
    executor: str = "local"
    """Where records are made: ``local`` or ``ray``."""
    ray_address: str | None = None
    """Of a running cluster; by default one is started for the run."""
    decoding: DecodingOptions = dataclasses.field(default_factory=DecodingOptions)
    fidelity: bool = True
    """Judge every answer by the target once all are made."""

    def __post_init__(self) -> None:
        for name in ("limit", "repeats", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise HambenchError(f"{name} must be >= 1, got {value}")
        if self.budget_s is not None and not self.budget_s > 0:
            raise HambenchError(f"budget must be > 0 seconds, got {self.budget_s:g}")
        try:
            SamplingParams(
                max_new_tokens=1,
                temperature=self.decoding.temperature,
                top_p=self.decoding.top_p,
                seed=self.decoding.seed,
            )
        except ValueError as error:
            raise HambenchError(str(error)) from error
        chunk = self.decoding.prefill_chunk
        if chunk is not None and chunk < 1:
            raise HambenchError(f"prefill_chunk must be >= 1, got {chunk}")
        if self.decoding.think_end == "":
            raise HambenchError(
                "think_end must not be empty: give the string that ends the thinking, like </think>"
            )


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A request with its model loaded and its samples chosen: ready to run, nothing written yet."""

    request: RunRequest
    expansion: Expansion
    target: TargetModel
    captured: Capture
    samples: tuple[Sample, ...]
    generator: Generator
    speeds: dict[str, Speed]
    """By cell label; empty unless the request has a budget or a plan was asked for."""
    growth: Growth | None = None
    """How the target slows with the context; ``None`` where there are no speeds."""
    seconds: float = 0.0
    """What loading, capturing, warming up and calibrating took."""
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The same by what was done, in order."""
    began: float = 0.0
    """When preparing began, by ``time.monotonic``."""
    bound: Bound | None = None
    """Foretells any sample of the suite in a run with a budget."""
