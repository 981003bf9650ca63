"""Output that survives a missing character in the encoding, a closed pipe and a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

import click

from hambench.terminal_text import terminal_safe

SIGPIPE_EXIT_CODE = 141
"""128 + SIGPIPE, which a shell reports for a program whose pipe was closed."""


class ClosedPipeError(Exception):
    """The reader closed the pipe (``| head``); not an ``OSError``, which click would turn into exit code 1."""


def accept_any_text() -> None:
    """Replaces characters that an output's encoding lacks, so that they don't abort the command."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is None or getattr(stream, "errors", None) not in ("strict", None):
            continue
        is_utf8 = "utf" in (getattr(stream, "encoding", None) or "").lower()
        # UTF-8 lacks only what is not text (stray bytes in a file name), and those read better as escapes
        reconfigure(errors="backslashreplace" if is_utf8 else "replace")


def echo_shown(text: str, *, err: bool = False) -> None:
    """Prints untrusted text (names, notes and errors of a run folder) with control characters made harmless."""
    click.echo(terminal_safe(text), err=err)


def abandon_output() -> None:
    """Discards buffered output, which the interpreter would fail to write again at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)


def echo_json(value: Any) -> None:
    """Prints one JSON value on a line, escaped to ASCII if the output's encoding lacks a character."""
    echo_json_text(json.dumps(value, ensure_ascii=False))


def echo_json_text(text: str) -> None:
    """Prints a line of ready-made JSON as :func:`echo_json` does."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(json.loads(text))
    click.echo(text)
