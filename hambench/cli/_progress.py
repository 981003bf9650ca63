"""A progress bar with the time left, on a terminal's stderr; silent elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hambench.runner.generator import Job, Progress


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """Gives a callback for :func:`hambench.runner.start.start_run`; ``None`` when stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading and warming up", total=None)

        def show(job: Job, num_done: int, num_jobs: int) -> None:
            # names come from task files and entry points: shown as text, never as markup
            description = f"{job.sample.task} · {job.cell.label}".replace("[", r"\[")
            bar.update(task, completed=num_done, total=num_jobs, description=description)

        yield show
