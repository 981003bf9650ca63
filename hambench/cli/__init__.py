"""The command line: one file per command, found by its name and imported on first use.

A module ``hambench/cli/<name>.py`` holds one ``click`` command called ``command``; ``bench/<name>.py`` is
``hambench bench <name>``. Heavy imports belong inside the function, so that ``hambench --help`` answers at once.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from typing import Any

import click

import hambench
from hambench.cli._repeats import refuse_repeats
from hambench.cli._streams import (
    SIGPIPE_EXIT_CODE,
    ClosedPipeError,
    abandon_output,
    accept_any_text,
    echo_shown,
)
from hambench.errors import BadRowsError, HambenchError, IncompleteError, UnknownNameError
from hambench.files import printable, reason_of


class LazyGroup(click.Group):
    """A click group that loads its commands from the public modules of a package.

    Args:
        package: Dotted name of the package; defaults to this one.
    """

    def __init__(self, *args: object, package: str = __name__, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.package = package

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of the commands, read from the file names."""
        folder = importlib.import_module(self.package).__path__
        modules = [module.name for module in pkgutil.iter_modules(folder)]
        return sorted(name.replace("_", "-") for name in modules if not name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command's module; returns ``None`` for an unknown name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"{self.package}.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command, or suggests the closest name; the root refuses what may be given once only."""
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            raise UnknownNameError("command", args[0], self.list_commands(ctx))
        name, command, left = super().resolve_command(ctx, args)
        if command is not None and ctx.parent is None:
            refuse_repeats(command, left, ctx)
        return name, command, left

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; turns a closed pipe into an error that click does not report as a failure."""
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError as error:
            raise ClosedPipeError from error
        except SystemExit as stop:
            # rich exits the program itself when the pipe that it prints a table to is closed
            if isinstance(stop.__context__, BrokenPipeError):
                raise ClosedPipeError from stop
            raise
        return result


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(hambench.__version__, prog_name="hambench")
def cli() -> None:
    """Benchmark LLM decoding strategies: speed, KV memory and accuracy of the same generated tokens."""


def main(argv: list[str] | None = None) -> None:
    """Runs the command line; an error that the user can fix becomes one line on stderr and exit code 2.

    The exit code is 3 if there was nothing to measure, compare or write.
    ``HAMBENCH_DEBUG=1`` keeps the traceback.
    """
    accept_any_text()
    try:
        cli.main(args=argv, prog_name="hambench", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (HambenchError, OSError) as error:
        if os.environ.get("HAMBENCH_DEBUG"):
            raise
        if isinstance(error, OSError) and error.filename is None:
            abandon_output()
        for line in error.lines if isinstance(error, BadRowsError) else (_line_of(error),):
            echo_shown(f"hambench: {' '.join(printable(line).split())}", err=True)
        sys.exit(3 if isinstance(error, IncompleteError) else 2)
    except (KeyboardInterrupt, click.Abort):
        echo_shown("hambench: interrupted", err=True)
        sys.exit(130)
    except ClosedPipeError:
        # the reader closed the pipe (`| head`), which is not our error
        abandon_output()
        sys.exit(SIGPIPE_EXIT_CODE)


def _line_of(error: Exception) -> str:
    """Returns one line for an error: the file and the reason, for an error of the operating system."""
    if not isinstance(error, OSError) or error.errno is None:
        return printable(" ".join(str(error).split()))
    if error.filename is None:
        return f"can't write the output: {reason_of(error)}"
    return f"{printable(str(error.filename))}: {reason_of(error)}"
