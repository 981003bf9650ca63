"""The command as a user calls it, in this process."""

from __future__ import annotations

from hambench.cli import main


def invoke(capsys, *arguments):
    """Exit code, stdout and stderr of a command, errors handled as for a user."""
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err
