"""Options that may be given once: click keeps the last of several and says nothing, so the first values are lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import click

from hambench.errors import HambenchError


class OnceOption(click.Option):
    """An option that :func:`refuse_repeats` refuses if it is given several times.

    Any other option of one value, such as ``--limit``, may be given again to overrule the first.

    Args:
        instead: Says what to write instead.
    """

    def __init__(self, *args: Any, instead: str = "give it once", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.instead = instead

    @property
    def long_name(self) -> str:
        """``--draft-tokens`` of ``-k`` and ``--draft-tokens``."""
        return max(self.opts, key=len)


class ListOption(OnceOption):
    """An option whose text lists values, joined by commas; every option that splits its text is one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.instead = f"join its values by commas, {self.long_name} A,B"


def refuse_repeats(command: click.Command, args: Sequence[str], parent: click.Context) -> None:
    """Checks a command's arguments, those of its subcommand too; leaves other mistakes to click.

    Raises:
        HambenchError: If a :class:`OnceOption` is given several times.
    """
    try:
        context = click.Context(command, parent=parent, **command.context_settings)
        _, rest, given = command.make_parser(context).parse_args(list(args))
        for option, num in Counter(given).items():
            if num > 1 and isinstance(option, OnceOption):
                raise HambenchError(
                    f"{option.long_name} is given {num} times, and all but the last would be lost: {option.instead}"
                )
        if isinstance(command, click.Group) and rest:
            _, subcommand, rest = command.resolve_command(context, rest)
            if subcommand is not None:
                refuse_repeats(subcommand, rest, context)
    except click.UsageError:
        return
