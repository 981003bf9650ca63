"""What limits a training run: steps, wall-clock time, and each stage's share of it."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

from hambench.methods.hamburger.training.recipes import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run needs beside its recipe and data."""

    out: Path
    seed: int = 0
    steps: int | None = None
    """Optimiser steps of each stage over fused inputs; by default the recipe's epochs."""
    minutes: float | None = None
    """Wall-clock budget of the whole run, data included; whichever limit comes first ends a stage."""
    save_minutes: float = 5.0
    resume: bool = False
    start_from: Path | None = None
    """A checkpoint of the same base and architecture whose weights the run starts from."""
    held_out_share: float = 0.05
    progress: bool = False


class Clock:
    """Seconds of a run, over its interruptions, against its budget.

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
        """Counts the ``seconds`` that earlier parts of the run have used."""
        self._began -= seconds

    @property
    def share(self) -> float:
        """Share of the budget used; 0 without a budget."""
        return 0.0 if self._budget is None else self.seconds / self._budget

    def is_past(self, share: float) -> bool:
        """Whether more than ``share`` of the budget is used."""
        return self.share > share


def learning_rate_share(recipe: Recipe, step: int, done: float) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a cosine down to the recipe's last share.

    Args:
        recipe: Warm-up and last share.
        step: Steps taken in this stage.
        done: Share of the stage that is over, 0 to 1.
    """
    warm = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return warm * (recipe.final_lr_share + (1 - recipe.final_lr_share) * cosine)
