"""What a bar promises while a command goes on."""

import pytest
from click.testing import CliRunner
from rich.progress import TimeElapsedColumn, TimeRemainingColumn

from hambench.cli import _progress, cli
from hambench.errors import HambenchError


def test_a_bar_of_work_that_may_grow_promises_no_end():
    def has(column, *, is_open):
        return any(isinstance(each, column) for each in _progress.columns(is_open=is_open))

    assert has(TimeRemainingColumn, is_open=False)
    assert not has(TimeRemainingColumn, is_open=True)
    assert has(TimeElapsedColumn, is_open=True)


@pytest.mark.parametrize(
    ("options", "is_open"),
    [((), False), (("--budget", "5m"), True), (("--budget", "5m", "--executor", "ray"), False)],
)
def test_a_run_that_adds_samples_has_such_a_bar(monkeypatch, tmp_path, options, is_open):
    told = []

    def bar(**given):
        told.append(given)
        raise HambenchError("enough")

    monkeypatch.setattr(_progress, "progress_bar", bar)
    arguments = ["run", "--suite", "longbench", "--out", str(tmp_path / "run"), *options]
    done = CliRunner().invoke(cli, arguments)
    assert str(done.exception) == "enough"
    assert told == [{"is_open": is_open}]
