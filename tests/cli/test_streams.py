"""What a command's output goes into: encodings that lack characters, readers that leave, disks that are full."""

import contextlib
import json
import os
import subprocess
import sys

import pytest

from hambench.cli import main

FULL = "/dev/full"


def run(*arguments, stdout=subprocess.PIPE, **environment):
    return subprocess.run(
        [sys.executable, "-m", "hambench", *map(str, arguments)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("arguments", [("ls", "methods"), ("predict", "--gpu", "h200")])
def test_an_encoding_that_lacks_a_character_is_no_reason_to_end(encoding, arguments):
    done = run(*arguments, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_json_says_the_same_in_every_encoding(encoding):
    here = run("ls", "methods", "--json", PYTHONIOENCODING=encoding)
    there = run("ls", "methods", "--json", PYTHONIOENCODING="utf-8")
    lines = here.stdout.decode(encoding).splitlines()
    assert [json.loads(line) for line in lines] == [
        json.loads(line) for line in there.stdout.decode().splitlines()
    ]


def test_a_reader_that_leaves_ends_the_command_as_the_shell_knows_it():
    read, write = os.pipe()
    os.close(read)
    done = run("ls", "metrics", stdout=write)
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == b""


@pytest.mark.skipif(not os.path.exists(FULL), reason="needs /dev/full, which only Linux has")  # noqa: PTH110
def test_a_full_output_is_one_line():
    with open(FULL, "wb") as full:  # noqa: PTH123 - opened for reading by the child alone
        done = run("ls", "metrics", stdout=full)
    assert done.returncode == 2
    assert done.stderr.decode() == "hambench: can't write the output: the disk is full\n"


def test_what_the_system_refuses_is_one_line_that_names_the_file(capsys, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(tmp_path / "x"))

    monkeypatch.setattr("hambench.store.list_runs", refuse)
    with pytest.raises(SystemExit) as stop:
        main(["ls", "runs", "--root", str(tmp_path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"hambench: {tmp_path / 'x'}: Permission denied\n"


def test_names_and_notes_of_a_foreign_run_do_not_drive_the_terminal(tmp_path, capsys, tiny_model, rows):
    """Everything that a run folder says of itself is shown, wherever it is shown."""
    from hambench.runner.request import RunRequest
    from hambench.runner.start import start_run
    from hambench.runner.sweep import Sweep

    sweep = Sweep(model=str(tiny_model), methods=("vanilla",), dtype="float32")
    asked = RunRequest(
        sweep=sweep, suite="longbench", tasks=("lcc",), data=rows, limit=1, max_new_tokens=2, device="cpu"
    )
    folder = tmp_path / "runs" / "foreign"
    start_run(asked, folder)
    evil = "\x1b]0;owned\x07\u202e"
    for path in folder.glob("*.json*"):
        content = path.read_text()
        escaped = json.dumps(evil)[1:-1]
        path.write_text(content.replace("longbench", f"long{escaped}").replace("vanilla", f"van{escaped}"))
    commands = [
        ["show", str(folder)],
        ["show", str(folder), "--tokens", "nothing"],
        ["ls", "runs", "--root", str(folder.parent)],
        ["score", str(folder), "--dry-run"],
        ["compare", str(folder), str(folder), "--markdown", str(tmp_path / "out.md")],
    ]
    for command in commands:
        with contextlib.suppress(SystemExit):
            main(command)
        shown = "".join(capsys.readouterr())
        assert not {"\x1b", "\x07", "\u202e"} & set(shown), (command, shown)
    assert not {"\x1b", "\x07", "\u202e"} & set((tmp_path / "out.md").read_text())
