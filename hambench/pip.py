"""Runs pip to fetch packages, and tells how to get pip in an environment without it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import IO

from hambench.errors import HambenchError, first_line

FIX = "install it with `python -m ensurepip --upgrade`, or `uv pip install pip`"
"""The way to install pip, which uv's environments lack."""


def run_pip(
    arguments: Sequence[str], *, watched: bool = False, stdout: IO[str] | int | None = subprocess.PIPE
) -> None:
    """Runs ``python -m pip`` with this interpreter.

    Args:
        arguments: Arguments of ``pip``.
        watched: Whether to pass its messages to stderr instead of keeping them for the error.
        stdout: Destination of its output.

    Raises:
        HambenchError: If it fails, with pip's last error line, or if there is no pip, with the fix.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", *arguments],
            check=False,
            stdout=stdout,
            stderr=None if watched else subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise HambenchError(f"pip can't be started: {first_line(error)}; {FIX}") from error
    if done.returncode == 0:
        return
    lines = (done.stderr or "").strip().splitlines() or ["see its message above"]
    if "No module named pip" in lines[-1]:
        raise HambenchError(f"this Python environment has no pip: {FIX}")
    raise HambenchError(_cause(lines))


def _cause(lines: list[str]) -> str:
    """Returns the line with the error, because pip ends some failures with a hint or a notice of a newer pip."""
    errors = [line for line in lines if line.lower().lstrip("× ").startswith("error")]
    return errors[-1] if errors else lines[-1]
