"""The error of a failed pip is the line that says what went wrong."""

import subprocess

import pytest

from hambench.errors import HambenchError
from hambench.pip import run_pip


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        (
            "ERROR: No matching distribution found for x\n\n[notice] A new release of pip is available",
            "No matching",
        ),
        (
            "error: subprocess-exited-with-error\n\nhint: See above for details.\n",
            "subprocess-exited-with-error",
        ),
        ("something else\n", "something else"),
        ("/usr/bin/python: No module named pip\n", "has no pip: install it with"),
        ("", "see its message above"),
    ],
)
def test_the_cause_is_told_and_no_hint_or_notice(monkeypatch, stderr, message):
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **_: subprocess.CompletedProcess(command, 1, stdout="", stderr=stderr),
    )
    with pytest.raises(HambenchError, match=message):
        run_pip(["install", "x"])
