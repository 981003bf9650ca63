"""Calling pip: the one tool hambench starts to fetch a package, and what to do where the environment has none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import IO

from hambench.errors import HambenchError, first_line

FIX = "install it with `python -m ensurepip --upgrade`, or `uv pip install pip`"
"""How an environment gets pip: those that uv makes come without."""


def run_pip(
    arguments: Sequence[str], *, watched: bool = False, stdout: IO[str] | int | None = subprocess.PIPE
) -> None:
    """Runs ``python -m pip`` with this interpreter.

    Args:
        arguments: What follows ``pip``.
        watched: Let its messages through to stderr instead of keeping them for the error.
        stdout: Where its output goes.

    Raises:
        HambenchError: With pip's last error line if it fails, and with the fix if there is no pip.
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
    """The line that says what went wrong: pip ends some failures with a hint or a notice of a newer pip."""
    errors = [line for line in lines if line.lower().lstrip("× ").startswith("error")]
    return errors[-1] if errors else lines[-1]
