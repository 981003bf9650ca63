"""Compiling the native library: cached by what it is made of, whole or absent, and one line when it can't be had."""

import os
import shutil
import stat
import subprocess
import sys
import time

import pytest

from hambench.kernels.cpu import build
from hambench.kernels.cpu.build import BuildError, build_library
from hambench.kernels.cpu.library import ISA_VARIABLE, Library

FAKE = """#!/bin/sh
case "$*" in
  *--version) echo "fake {version}" ;;
  *) echo "$@" >> {log}; {action} ;;
esac
"""
WRITE_OUTPUT = 'while [ "$1" != -o ]; do shift; done; echo built > "$2"'


@pytest.fixture
def fake_compiler(tmp_path, monkeypatch):
    """A compiler that writes down its calls: tests of the cache need no real one."""

    def make(action=WRITE_OUTPUT, version="1.0"):
        path, log = tmp_path / "fake-cxx", tmp_path / "calls"
        path.write_text(FAKE.format(version=version, log=log, action=action))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", str(path))
        return log

    return make


def test_a_second_build_finds_the_first_and_another_compiler_does_not(fake_compiler, tmp_path):
    log = fake_compiler()
    first = build_library(tmp_path / "cache")
    assert first.read_text() == "built\n"
    num_calls = len(log.read_text().splitlines())
    assert num_calls == len(build._units(build.FLAGS)) + 1
    assert build_library(tmp_path / "cache") == first
    assert len(log.read_text().splitlines()) == num_calls
    fake_compiler(version="2.0")
    assert build_library(tmp_path / "cache") != first


def test_the_key_covers_source_flags_and_instruction_sets(fake_compiler, tmp_path, monkeypatch):
    fake_compiler()
    keys = {build_library(tmp_path / "cache").parent.name}
    source = tmp_path / "source"
    shutil.copytree(build.SOURCE, source)
    monkeypatch.setattr(build, "SOURCE", source)
    assert build_library(tmp_path / "cache").parent.name in keys
    (source / "simd.h").write_text("// other\n")
    keys.add(build_library(tmp_path / "cache").parent.name)
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    keys.add(build_library(tmp_path / "cache").parent.name)
    keys.add(build_library(tmp_path / "cache", sanitizers=("address",)).parent.name)
    assert len(keys) == 4


def test_every_unit_forbids_contraction():
    for arguments in build._units(build.FLAGS).values():
        assert "-ffp-contract=off" in arguments


def test_a_failed_build_says_one_line_and_leaves_nothing_behind(fake_compiler, tmp_path):
    fake_compiler(action="echo 'x.cpp:1: error: no such thing' >&2; exit 1")
    with pytest.raises(
        BuildError, match=r"fake-cxx can't compile .*no such thing.*: install g\+\+"
    ) as caught:
        build_library(tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.so"))
    assert not list((tmp_path / "cache").rglob("build-*"))


def test_a_failed_build_is_remembered_for_a_day(fake_compiler, tmp_path):
    log = fake_compiler(action="echo 'x.cpp:1: error: no such thing' >&2; exit 1")
    cache = tmp_path / "cache"

    def num_calls():
        with pytest.raises(BuildError, match="no such thing"):
            build_library(cache)
        return len(log.read_text().splitlines())

    num_first = num_calls()
    with pytest.raises(
        BuildError, match=r"no such thing.*tried again a day after .* now by hambench doctor"
    ) as caught:
        build_library(cache)
    assert "\n" not in str(caught.value)
    assert num_calls() == num_first
    with pytest.raises(BuildError, match=r"set CXX$"):
        build_library(cache, retry=True)
    num_retried = num_calls()
    assert num_retried > num_first
    (failure,) = cache.rglob("failure.txt")
    for age in (build.FAILURE_S + 60, -3600):
        then = time.time() - age
        os.utime(failure, (then, then))
        assert num_calls() > num_retried
        num_retried = len(log.read_text().splitlines())
    # a compiler that works is tried, and its success forgets the failure
    fake_compiler()
    assert build_library(cache, retry=True).is_file()
    assert not list(cache.rglob("failure.txt"))
    assert build_library(cache).is_file()


def test_another_compiler_is_tried_at_once_where_one_has_failed(fake_compiler, tmp_path):
    fake_compiler(action="exit 1")
    with pytest.raises(BuildError, match="exit status 1"):
        build_library(tmp_path / "cache")
    fake_compiler(version="2.0")
    assert build_library(tmp_path / "cache").is_file()


def test_all_words_of_cxx_are_the_command(fake_compiler, tmp_path, monkeypatch):
    log = fake_compiler()
    plain = build_library(tmp_path / "cache")
    compiler = tmp_path / "fake-cxx"
    wrapper = tmp_path / "wrap per"
    wrapper.write_text('#!/bin/sh\necho "wrapped $*" >> ' + str(log) + '\nexec "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{wrapper}' {compiler} -DOWN='a b'")
    said = []
    # options of its own make another library
    assert build_library(tmp_path / "cache", say=said.append) != plain
    assert said == [f"'wrap per' {compiler} '-DOWN=a b'"]
    wrapped = [line for line in log.read_text().splitlines() if line.startswith("wrapped")]
    # the version is asked as well
    assert len(wrapped) == len(build._units(build.FLAGS)) + 2
    assert all(line.startswith(f"wrapped {compiler} -DOWN=a b ") for line in wrapped)


def test_a_cxx_that_is_no_command_line_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "g++ 'open")
    with pytest.raises(BuildError, match=r"CXX=.* is not a command line .*: write it as a shell"):
        build_library(tmp_path)


def test_without_a_compiler_the_error_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"no C\+\+ compiler: install g\+\+"):
        build_library(tmp_path)
    monkeypatch.setenv("CXX", "/nowhere/g++ -m32")
    with pytest.raises(BuildError, match=r"no C\+\+ compiler"):
        build_library(tmp_path)


def test_a_cache_that_cannot_be_written_is_one_line(fake_compiler, tmp_path):
    fake_compiler()
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="can't be stored in"):
        build_library(tmp_path / "file" / "cache")


def test_a_file_that_is_no_library_is_refused(tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_text("built")
    with pytest.raises(BuildError, match="can't be loaded"):
        Library(broken)


def test_processes_that_ask_at_once_compile_once(fake_compiler, tmp_path):
    log = fake_compiler(action=f"sleep 0.05; {WRITE_OUTPUT}")
    program = (
        "import sys; from pathlib import Path; from hambench.kernels.cpu.build import build_library;"
        "print(build_library(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "cache")]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {racer.communicate()[0] for racer in racers}
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert len(paths) == 1
    assert len(log.read_text().splitlines()) == len(build._units(build.FLAGS)) + 1


def test_an_instruction_set_can_be_forced_and_a_wrong_one_is_refused(library, monkeypatch):
    best = library.instruction_set()
    assert best == library.instruction_sets()[0]
    assert library.instruction_sets()[-1] == "portable"
    monkeypatch.setenv(ISA_VARIABLE, "portable")
    assert library.instruction_set() == "portable"
    assert library.instruction_set(best) == best
    monkeypatch.setenv(ISA_VARIABLE, "mmx")
    with pytest.raises(
        ValueError, match=r"HAMBENCH_CPU_ISA must be one that this machine runs .*portable.*'mmx'"
    ):
        library.instruction_set()
