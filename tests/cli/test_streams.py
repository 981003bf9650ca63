"""What a command's output goes into: encodings that lack characters, readers that leave, disks that are full."""

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
