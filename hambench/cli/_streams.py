"""The command's own output: characters that its encoding lacks, readers that went away, disks that are full."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

import click

from hambench.terminal_text import terminal_safe

SIGPIPE_EXIT_CODE = 141
"""128 + SIGPIPE: what a shell reports for a program whose reader went away."""


class ClosedPipeError(Exception):
    """The reader of the output went away (``| head``); not an ``OSError``, which click would turn into exit code 1."""


def accept_any_text() -> None:
    """Keeps a character that an output's encoding lacks from ending the command: it is shown as a stand-in."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is None or getattr(stream, "errors", None) not in ("strict", None):
            continue
        is_utf8 = "utf" in (getattr(stream, "encoding", None) or "").lower()
        # UTF-8 lacks only what is no text at all (a file name's odd bytes), and those are better spelled out
        reconfigure(errors="backslashreplace" if is_utf8 else "replace")


def echo_shown(text: str, *, err: bool = False) -> None:
    """Prints text that may be another's (names, notes and errors of a run folder): shown, never obeyed."""
    click.echo(terminal_safe(text), err=err)


def abandon_output() -> None:
    """Gives up what is still buffered: the interpreter would try to write it again as it ends, and fail again."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)


def echo_json(value: Any) -> None:
    """Prints one JSON value on a line: escaped to ASCII where the output's encoding lacks a character of it."""
    echo_json_text(json.dumps(value, ensure_ascii=False))


def echo_json_text(text: str) -> None:
    """Prints a line that is JSON already, as :func:`echo_json` does."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(json.loads(text))
    click.echo(text)
