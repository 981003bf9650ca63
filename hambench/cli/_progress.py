"""Progress of a command, shown only if stderr is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

    from hambench.runner.generator import Job, Progress
    from hambench.runner.judge import Progress as JudgeProgress


def say_step(line: str) -> None:
    """Prints what begins now."""
    if sys.stderr.isatty():
        click.echo(f"{line} ...", err=True)


def columns(*, is_open: bool) -> tuple[ProgressColumn, ...]:
    """Returns what a bar shows: the remaining time, or the time so far where more work may come (``is_open``)."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    clock = TimeElapsedColumn() if is_open else TimeRemainingColumn()
    return (BarColumn(), MofNCompleteColumn(), clock, TextColumn("{task.description}"))


@contextlib.contextmanager
def progress_bar(*, is_open: bool = False) -> Iterator[tuple[Progress | None, JudgeProgress | None]]:
    """Shows a bar with :func:`columns`.

    Yields the callbacks of :func:`hambench.runner.start.start_run` for records and for judging what is left; ``None``
    when stderr is not a terminal.
    """
    if not sys.stderr.isatty():
        yield None, None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*columns(is_open=is_open), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading and warming up", total=None)

        def show(job: Job, num_done: int, num_jobs: int) -> None:
            # names come from task files and entry points, so show them as text, never as markup
            description = f"{job.sample.task} · {job.cell.label}".replace("[", r"\[")
            bar.update(task, completed=num_done, total=num_jobs, description=description)

        def show_judging(num_done: int, num_answers: int) -> None:
            bar.update(task, completed=num_done, total=num_answers, description="judging by the target")

        yield show, show_judging
