"""Refuses an option that is given twice although its values belong together: click keeps the last and says nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import click

from hambench.errors import HambenchError

_LISTS = frozenset({"LIST", "AXIS", "NAMES", "NAME,NAME"})
"""Metavars of options that take several values, joined by commas."""


def refuse_repeats(command: click.Command, args: Sequence[str], parent: click.Context) -> None:
    """Checks a command's arguments, those of its subcommand too; leaves other mistakes to click.

    An option of one value, such as ``--limit``, may be given again to overrule the first.

    Raises:
        HambenchError: If a list or the suite is given several times.
    """
    try:
        context = click.Context(command, parent=parent, **command.context_settings)
        _, rest, given = command.make_parser(context).parse_args(list(args))
        for option, num in Counter(given).items():
            if num > 1 and isinstance(option, click.Option) and not option.multiple:
                _refuse(option, num)
        if isinstance(command, click.Group) and rest:
            _, subcommand, rest = command.resolve_command(context, rest)
            if subcommand is not None:
                refuse_repeats(subcommand, rest, context)
    except click.UsageError:
        return


def _refuse(option: click.Option, num: int) -> None:
    name = max(option.opts, key=len)
    if option.metavar in _LISTS:
        hint = f"join its values by commas, {name} A,B"
    elif option.name == "suite":
        hint = "a run has one; name tasks of several suites with --tasks alone or in a YAML file"
    else:
        return
    raise HambenchError(f"{name} is given {num} times, and all but the last would be lost: {hint}")
