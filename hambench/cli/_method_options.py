"""The command-line options of single methods, such as ``-k``; each method declares them in its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

import click

from hambench.cli._repeats import ListOption
from hambench.method_facts import ShortOption
from hambench.registry import facts_of, method_names

_ABOVE = {"config", "help"}
"""Options that a command lists above the methods' own."""

F = TypeVar("F", bound=Callable[..., Any])


@cache
def short_options() -> tuple[ShortOption, ...]:
    """Returns the options of all registered methods, one per knob; methods that ship with hambench come first."""
    by_knob: dict[str, ShortOption] = {}
    taken: set[str] = set()
    for name in method_names():
        for option in facts_of(name).short_options:
            if option.knob not in by_knob and not taken & set(option.flags):
                by_knob[option.knob] = option
                taken |= set(option.flags)
    return tuple(by_knob.values())


def method_options(function: F) -> F:
    """Adds every method's own options to a command, below ``--method`` or ``--methods``.

    Apply it above all other options. Only a command with ``--methods`` takes several values of a knob. It leaves out an
    option whose flag or name the command has already; that knob can still be set by ``--method-arg``.
    """
    have: list[click.Parameter] = getattr(function, "__click_params__", [])
    names = {parameter.name for parameter in have} | _ABOVE
    flags = {flag for parameter in have for flag in parameter.opts} | {f"--{name}" for name in _ABOVE}
    takes_lists = "methods" in names
    # click stores options in reverse order of the help
    at = next(index for index, parameter in enumerate(have) if parameter.name in ("method", "methods"))
    have[at:at] = [
        (ListOption if takes_lists and option.is_axis else click.Option)(
            [*option.flags, option.knob], metavar=option.metavar, help=option.help
        )
        for option in reversed(short_options())
        if option.knob not in names and not flags & set(option.flags)
    ]
    return function


def knob_texts(options: Mapping[str, Any]) -> dict[str, str]:
    """Returns the knobs that the command line sets by options of their own, as text."""
    return {
        option.knob: options[option.knob]
        for option in short_options()
        if options.get(option.knob) is not None
    }


def is_axis(knob: str) -> bool:
    """Returns whether the knob's option takes an axis of values rather than one value."""
    return next(option.is_axis for option in short_options() if option.knob == knob)
