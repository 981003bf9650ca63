"""The header of a run folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from hambench.records.asked import Cell, Edition
from hambench.run_notes import Note

SCHEMA_VERSION = 1
"""Version of the run folder. 1 - (0.1.0) header, prompts, samples, scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHeader:
    """What a run was asked to do and where: written first, never changed."""

    schema_version: int
    run_id: str
    created_at: str
    """UTC, ISO 8601."""
    hambench_version: str
    commit: str | None
    command: tuple[str, ...]
    suites: tuple[str, ...]
    edition: Edition
    data_source: str
    """Where the rows came from: ``folder``, ``hub`` or ``offline edition``."""
    data_hashes: dict[str, str]
    """sha256 per task of its captured prompts, in order."""
    cells: tuple[Cell, ...]
    num_samples: int
    """Samples when the run began; with a budget it may have added others."""
    limit: int | None
    repeats: int
    seed: int
    temperature: float
    top_p: float
    max_new_tokens: int | None
    """Override of the tasks' own limits."""
    model: dict[str, str | int | float | bool | None]
    """Identity of the target: name, source, sha256 of the weights, note (e.g. de-quantised), context length, bytes."""
    environment: dict[str, str | int | float | bool | None]
    ignore_eos: bool = False
    """Answers of full length whatever was emitted: speed only, no scores."""
    fidelity: bool = True
    """Whether every answer is judged by the target after it was made."""
    think_end: str | None = None
    """String behind which the scored text begins, where the model's thinking was cut."""
    chat_template_args: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    """Variables that were given to the model's chat template."""
    prefill: Literal["shared", "each"] = "each"
    """Whether cells with the same weights copied a prompt that one of them had read; see ``--prefill``."""
    prefill_chunk: int | None = None
    """Rows of the pieces in which prompts were read; ``None`` for the engine's own number."""
    max_remeasured: int = 2
    """How often a contaminated timing was taken again."""
    suite_spec: dict[str, Any] = field(default_factory=dict)
    """What the suites need to build the same requests again: scores can be rebuilt from the stored text."""
    price_per_hour: float | None = None
    """Dollars per hour of the machine, if given: costs per token follow from it."""
    weights: dict[str, str] = field(default_factory=dict)
    """sha256 of the weights that methods loaded next to the target's (a draft, grafts), by what they are."""
    num_whole: int | None = None
    """Samples of the run once it has added all that its budget left out; ``None`` where a limit leaves rows out."""
    notes: tuple[Note, ...] = ()
    """Warnings that every report must show first: offline edition, de-quantised model, CPU, forced or partial runs."""
