"""Options of every command that may be given once, because click would keep the last of several without a word."""

import re

import click
import pytest
from cli_calls import invoke

from hambench.cli import cli
from hambench.cli._method_options import short_options
from hambench.cli._repeats import ListOption, OnceOption, refuse_repeats
from hambench.errors import HambenchError

ONE_TEXT = re.compile(
    "--(against|api-key-env|at|bandwidth|base|base-ref|budget|cell|checkpoint|device|gpu|head|host|key-env|latex|machine|"
    "markdown|method|metric|model|note|preset|price|prompt|ray-address|recipe|samples|served-model|shape|think-end|url)"
)
"""Options whose text is one value in every command; for a new option of a text, decide here which kind it is."""
ONE_TEXT_HERE = frozenset({("bench kernels", "--only"), ("show", "--tokens")})
"""The same, of names that may list values in another command."""
ONE_VALUE = (click.Path, click.Choice, type(click.INT), type(click.FLOAT))


def commands(group=cli, path=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands())
OPTIONS = [
    (path, option)
    for path, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, click.Option) and not option.is_flag and not option.multiple
]
LISTS = [(path, option) for path, option in OPTIONS if isinstance(option, ListOption)]
KNOBS = {option.knob: option for option in short_options()}


def name_of(option):
    return max(option.opts, key=len)


def takes(path, name):
    return any(each.name == name for each in COMMANDS[path].params)


def is_of_knob(path, option):
    return option.name in KNOBS and (takes(path, "method") or takes(path, "methods"))


def test_every_option_of_a_text_is_marked_as_a_list_or_known_to_be_one_value():
    """``gate --only exact --only speed`` left the counts unchecked: its metavar was not in a table of them."""
    undecided = [
        f"{path} {name_of(option)}"
        for path, option in OPTIONS
        if not isinstance(option, OnceOption)
        and not isinstance(option.type, ONE_VALUE)
        and not is_of_knob(path, option)
        and not ONE_TEXT.fullmatch(name_of(option))
        and (path, name_of(option)) not in ONE_TEXT_HERE
    ]
    assert undecided == []


def reads_like_a_list(option):
    shown = f"{option.metavar} {option.help} {option.default}"
    return bool(
        re.search(r"\b(LIST|AXIS|NAMES|KINDS|IDS)\b", option.metavar or "")
        or re.search(r"\w,\w|,\.\.\.|\bany of\b|\bcommas?\b|\blists? of\b", shown, re.IGNORECASE)
    )


def test_what_reads_like_a_list_is_marked_as_one():
    own = [(path, option) for path, option in OPTIONS if not is_of_knob(path, option)]
    differing = [
        f"{path} {name_of(option)}"
        for path, option in own
        if reads_like_a_list(option) != isinstance(option, ListOption)
    ]
    assert differing == []


def test_a_methods_own_option_is_a_list_where_the_command_takes_several_methods():
    """``generate -k 4 -k 8`` was refused, although one cell has one value and the last may overrule an alias."""
    seen = set()
    for path, option in OPTIONS:
        if is_of_knob(path, option):
            is_list = takes(path, "methods") and KNOBS[option.name].is_axis
            assert isinstance(option, ListOption) == is_list, (path, option)
            seen.add(path)
    assert {"run", "plan", "generate", "serve"} <= seen


@pytest.mark.parametrize(("path", "option"), LISTS, ids=[f"{path} {name_of(each)}" for path, each in LISTS])
def test_a_list_is_refused_if_it_is_given_twice(path, option):
    twice = [option.opts[0], "1", option.opts[-1], "2"]
    with pytest.raises(
        HambenchError, match=f"^{name_of(option)} is given 2 times, .*: join its values by commas"
    ):
        refuse_repeats(COMMANDS[path], twice, click.Context(cli))
    refuse_repeats(COMMANDS[path], twice[:2], click.Context(cli))


def test_one_value_may_be_given_again():
    for path, option in OPTIONS:
        if not isinstance(option, OnceOption):
            refuse_repeats(COMMANDS[path], [option.opts[0], "1", option.opts[-1], "2"], click.Context(cli))


def test_a_hint_names_options_that_the_command_has():
    """``history show --suite`` said that a run has one, and to use ``--tasks``: it is no run and lacks the option."""
    for path, option in OPTIONS:
        if isinstance(option, OnceOption):
            flags = {flag for each in COMMANDS[path].params for flag in each.opts}
            assert set(re.findall(r"--[a-z-]+", option.instead)) <= flags, (path, option)
            is_the_runs_suite = option.name == "suite" and path in ("run", "plan")
            assert ("a run has one" in option.instead) == is_the_runs_suite, (path, option)


def test_arguments_are_checked_once(capsys, monkeypatch):
    """Those of a command of ``bench`` were checked by both groups above it, and again when ``bench`` ran."""
    command, calls = COMMANDS["bench engine"], []
    make_parser = command.make_parser

    def counted(context):
        calls.append(context)
        return make_parser(context)

    monkeypatch.setattr(command, "make_parser", counted)
    code, _, _ = invoke(capsys, "bench", "engine", "--repeats", "0")
    # the check, and then click's own parsing, which refuses the zero
    assert (code, len(calls)) == (2, 2)
