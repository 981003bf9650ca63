"""Finds a user's regular expressions in answers, in a process of their own: no pattern stops the run or fills memory.

A pattern may nest so that compiling or searching it takes forever, and nothing within Python interrupts either. The
process (:file:`pattern_child.py`) is killed by its own timer, and the next pattern starts another one.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

PATTERN_SECONDS = 5.0
"""Seconds of computing for one pattern and one answer."""
MEMORY_BYTES = 1 << 30
"""Address space of the process."""

_CHILD = Path(__file__).with_name("pattern_child.py")
_process: subprocess.Popen[str] | None = None


class PatternError(ValueError):
    """A pattern that is not a regular expression, or takes too long or too much; the message gives the reason."""


@contextlib.contextmanager
def patterns_end() -> Iterator[None]:
    """Ends the process after the block, if patterns started one."""
    try:
        yield
    finally:
        _end()


def bad_pattern(pattern: str) -> str | None:
    """Returns why a text can't be used as a regular expression; ``None`` if it can."""
    outcome = _outcome(pattern, None)
    return outcome if isinstance(outcome, str) else None


def is_found(pattern: str, answer: str) -> bool:
    """Returns whether the pattern matches anywhere in the answer.

    Raises:
        PatternError: If it is not a regular expression, or takes too long or too much memory on the answer.
    """
    outcome = bad_pattern(pattern) or _outcome(pattern, answer)
    if isinstance(outcome, str):
        raise PatternError(f"reference {shown(pattern)} {outcome}")
    return outcome


def shown(value: Any) -> str:
    """Returns a value of a row as messages show it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@lru_cache(maxsize=4096)
def _outcome(pattern: str, answer: str | None) -> bool | str:
    """Whether the pattern is found, or why that can't be told: methods often give the same answer."""
    global _process
    if _process is None or _process.poll() is not None:
        _end()
        _process = _start()
    assert _process.stdin is not None
    assert _process.stdout is not None
    try:
        _process.stdin.write(json.dumps([pattern, answer]) + "\n")
        _process.stdin.flush()
        line = _process.stdout.readline()
    except BrokenPipeError:
        line = ""
    if line:
        reply: bool | str = json.loads(line)
        return reply
    status = _process.wait()
    _end()
    if status == -signal.SIGPROF:
        where = "" if answer is None else " on this answer"
        return f"takes longer than {PATTERN_SECONDS:g} seconds{where}: write it with less nesting and less backtracking"
    return f"ended the process that looks for it (exit code {status}): write it more simply"


def _start() -> subprocess.Popen[str]:
    # -P: the names of the modules next to the script must not hide the standard library's
    return subprocess.Popen(
        [sys.executable, "-P", str(_CHILD), str(PATTERN_SECONDS), str(MEMORY_BYTES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="ascii",
        start_new_session=True,  # Ctrl-C is the run's
    )


def _end() -> None:
    global _process
    process, _process = _process, None
    if process is None:
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
