"""Wherever a command takes RUN, it takes the names that ``hambench ls runs`` prints."""

import json
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from hambench.cli import cli
from hambench.cli._options import RunFolder
from hambench.errors import UnknownNameError

STORED = Path(__file__).resolve().parent.parent / "data/run-v1"
NAME = "2026-01-31-longbench"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder of runs that is the default one, with one run in it; the current folder is another."""
    shutil.copytree(STORED, tmp_path / "runs" / NAME)
    monkeypatch.setenv("HAMBENCH_RUNS", str(tmp_path / "runs"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "runs"


def commands(group, path=()):
    """Every command with its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


RUN_PARAMETERS = [
    (words, parameter)
    for words, command in commands(cli)
    for parameter in command.params
    if isinstance(parameter.type, RunFolder)
]


def test_every_parameter_that_is_called_a_run_is_one():
    named = {
        (*words, parameter.name)
        for words, command in commands(cli)
        for parameter in command.params
        if isinstance(parameter.type, click.Path)
        and (
            parameter.name in ("run", "runs", "resume")
            or (words == ("compare",) and parameter.name != "config")
        )
    }
    outputs = {("compare", name) for name in ("markdown", "junit", "json_path", "gab")}
    assert named - outputs == {(*words, parameter.name) for words, parameter in RUN_PARAMETERS}
    assert len(named) >= 9


def test_ls_prints_the_name(runs):
    listed = CliRunner().invoke(cli, ["ls", "runs", "--json"])
    (row,) = map(json.loads, listed.stdout.splitlines())
    assert row["run"] == NAME
    assert row["folder"] == str(runs / NAME)


@pytest.mark.parametrize(("words", "parameter"), RUN_PARAMETERS)
def test_each_takes_the_name_and_the_folder(runs, words, parameter):
    del words
    with click.Context(click.Command("x")) as context:
        assert parameter.type.convert(NAME, parameter, context) == runs / NAME
        assert parameter.type.convert(str(runs / NAME), parameter, context) == runs / NAME


@pytest.mark.parametrize(("words", "parameter"), RUN_PARAMETERS)
def test_a_slip_of_the_pen_gets_the_names_that_are_near(runs, words, parameter):
    with click.Context(click.Command("x")) as context:
        if words == ("compare",):
            # what is not there is incomplete, not a usage error: CI tells the two apart
            assert parameter.type.convert(f"{NAME}x", parameter, context) == Path(f"{NAME}x")
            return
        with pytest.raises(UnknownNameError, match=f"did you mean {NAME}"):
            parameter.type.convert(f"{NAME}x", parameter, context)


def test_a_run_in_the_current_folder_goes_before_one_of_the_same_name(runs):
    shutil.copytree(STORED, Path(NAME))
    kind = RunFolder()
    assert kind.convert(NAME, None, None) == Path(NAME)
    # a folder that holds no run does not hide one
    (Path(NAME) / "run.json").unlink()
    assert kind.convert(NAME, None, None) == runs / NAME


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", NAME],
        ["report", NAME],
        ["score", NAME, "--dry-run"],
        ["compare", NAME, NAME],
        ["history", "add", NAME],
    ],
)
def test_the_commands_work_by_name(runs, arguments):
    done = CliRunner().invoke(cli, arguments)
    assert "is not a run" not in done.output + str(done.exception)
    assert not isinstance(done.exception, UnknownNameError)
