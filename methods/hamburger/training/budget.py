"""Limits of a training run: steps, wall-clock time, and each stage's share of the time."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path

from hambench.errors import HambenchError, UnknownNameError
from hambench.methods.hamburger.training.recipes import Recipe, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Settings of a run other than its recipe and data."""

    out: Path
    seed: int = 0
    steps: int | Mapping[str, int] | None = None
    """Optimiser steps by stage, or one number for every stage over merged inputs (all but ``micro``). A stage without
    a number takes the recipe's epochs."""
    minutes: float | None = None
    """Wall-clock budget of the whole run, data included; a stage ends at whichever limit comes first."""
    save_minutes: float = 5.0
    resume: bool = False
    start_from: Path | None = None
    """A checkpoint of the same base and architecture whose weights the run starts from."""
    held_out_share: float = 0.05
    progress: bool = False
    facts: Mapping[str, str | int | bool] = dataclasses.field(default_factory=dict)
    """Machine, versions and the like, for the provenance."""

    def steps_of(self, stage: Stage) -> int | None:
        """Returns the optimiser steps of a stage; ``None`` if its epochs decide."""
        if isinstance(self.steps, Mapping):
            return self.steps.get(stage)
        return None if stage == "micro" else self.steps


def parse_steps(text: str, recipe: Recipe) -> int | dict[str, int]:
    """Parses ``50``, or steps by stage such as ``micro=800,reader=200``.

    Raises:
        HambenchError: If it is anything else, or names a stage that the recipe does not have.
    """
    stages = [name for name, _ in recipe.stages]
    form = f"a number, or numbers by stage such as {','.join(f'{name}=50' for name in stages)}"
    if text.isascii() and text.isdigit():
        return int(text)
    steps: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = (each.strip() for each in part.partition("="))
        if not (number.isascii() and number.isdigit()):
            raise HambenchError(f"steps must be {form}, got {text!r}")
        if name not in stages:
            raise UnknownNameError(f"stage of recipe {recipe.name} in --steps", name, stages)
        if name in steps:
            raise HambenchError(f"steps must name each stage once, got {text!r}")
        steps[name] = int(number)
    return steps


class Clock:
    """Counts the seconds of a run, across interruptions, against its budget.

    Args:
        minutes: The budget, or ``None`` for none.
    """

    def __init__(self, minutes: float | None) -> None:
        self._budget = None if minutes is None else 60 * minutes
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds used so far."""
        return time.monotonic() - self._began

    def resume(self, seconds: float) -> None:
        """Adds the ``seconds`` that earlier parts of the run used."""
        self._began -= seconds

    @property
    def share(self) -> float:
        """Share of the budget used; 0 without a budget."""
        return 0.0 if self._budget is None else self.seconds / self._budget

    def is_past(self, share: float) -> bool:
        """Returns True if more than ``share`` of the budget is used."""
        return self.share > share


def learning_rate_share(recipe: Recipe, step: int, done: float) -> float:
    """Returns the share of the peak learning rate at a step.

    It warms up linearly, then follows a cosine down to the recipe's last share.

    Args:
        recipe: Warm-up and last share.
        step: Steps taken in this stage.
        done: Completed share of the stage, 0 to 1.
    """
    warm = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return warm * (recipe.final_lr_share + (1 - recipe.final_lr_share) * cosine)
