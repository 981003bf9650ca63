"""The scripts behind ``.ci/run``: nothing passes there because it could not be set up."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import native_fixtures
import pytest
import sanitizer_runtime
from native_fixtures import need_compiler

from hambench.kernels.cpu import build

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("bash", "env", "dirname", "id", "mkdir", "cat", "tail")


@pytest.fixture
def bare_path(tmp_path):
    """A folder for ``PATH`` with the shell's own tools: no compiler, browser or package manager."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name))
    return folder


@pytest.fixture
def checkout(tmp_path):
    """The scripts without a virtual environment."""
    for folder in (".ci", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / "checkout" / folder)
    return tmp_path / "checkout"


def put(folder, name, text):
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_text(f"#!{shutil.which('bash')}\n{text}\n")
    (folder / name).chmod(0o755)


def script(path, bin_folder, **variables):
    environment = {"PATH": str(bin_folder), **variables}
    return subprocess.run([str(path)], env=environment, capture_output=True, text=True, timeout=60)


def test_ci_runs_every_step_as_ci(checkout, bare_path):
    for name in ("g++", "chromium"):
        put(bare_path, name, "exit 0")
    log = checkout / "log"
    put(bare_path, "make", f'echo "$CI $1" >> {log}')
    done = script(checkout / ".ci/run", bare_path)
    assert done.returncode == 0, done.stderr
    steps = log.read_text().split("\n")[:-1]
    assert steps[0] == "1 setup"
    expected = {
        "setup",
        "check",
        "test",
        "sanitize",
        "sanitize-threads",
        "test-without-compiler",
        "gate",
        "demo",
    }
    assert set(steps) == {f"1 {name}" for name in expected}


def test_ci_without_a_compiler_fails_before_anything_is_run(checkout, bare_path):
    log = checkout / "log"
    put(bare_path, "make", f'echo "$1" >> {log}')
    put(bare_path, "id", "echo 1000")
    done = script(checkout / ".ci/run", bare_path)
    assert done.returncode == 1
    assert "there is no C++ compiler" in done.stderr
    assert not log.exists()


@pytest.mark.parametrize(
    ("name", "package"), [("install_compiler.sh", "g++"), ("install_browser.sh", "chromium")]
)
def test_what_is_installed_is_said(checkout, bare_path, name, package):
    log = checkout / "log"
    put(bare_path, "id", "echo 0")
    put(bare_path, "apt-get", f'echo "$*" >> {log}')
    done = script(checkout / "scripts" / name, bare_path)
    assert done.returncode == 0, done.stderr
    assert log.read_text().splitlines()[-1].endswith(f" {package}")
    assert len(done.stderr.splitlines()) == 1
    assert package in done.stderr


@pytest.mark.parametrize(("variables", "status", "verb"), [({}, 0, "skip"), ({"CI": "1"}, 1, "fail")])
def test_no_browser_fails_in_ci_only(checkout, bare_path, variables, status, verb):
    done = script(checkout / "scripts/install_browser.sh", bare_path, **variables)
    assert done.returncode == status
    assert f"the browser tests {verb}" in done.stderr


@pytest.mark.parametrize(("own", "status"), [("clang++ -O2", 0), ("g++", 1)])
def test_the_compiler_that_cxx_names_is_the_one_that_counts(checkout, bare_path, own, status):
    put(bare_path, "clang++", "exit 0")
    assert script(checkout / "scripts/install_compiler.sh", bare_path, CXX=own).returncode == status


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_sanitize_fails_where_nothing_can_be_sanitized():
    # the virtual environment is taken as it is
    command = ["make", "-o", "setup", "sanitize", f"BIN={Path(sys.executable).parent}"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "CXX": "none"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "make sanitize: there is no C++ compiler" in done.stderr


@pytest.mark.parametrize(
    ("variables", "outcome"),
    [
        ({}, pytest.skip.Exception),
        ({"CI": "1"}, pytest.skip.Exception),
        ({"HAMBENCH_TEST_SANITIZERS": "address"}, pytest.fail.Exception),
    ],
)
def test_without_a_compiler_native_tests_skip_only_where_that_is_meant(monkeypatch, variables, outcome):
    for name in ("CI", native_fixtures.SANITIZERS):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**variables, "CXX": "none"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(outcome):
        need_compiler()


@pytest.mark.parametrize("own", [None, "no-such-compiler"])
def test_in_ci_a_compiler_that_is_not_there_fails(monkeypatch, own):
    monkeypatch.setenv("CI", "1")
    monkeypatch.delenv("CXX", raising=False)
    if own:
        monkeypatch.setenv("CXX", own)
    monkeypatch.setattr(build, "COMPILERS", ())
    with pytest.raises(pytest.fail.Exception, match="CI is set"):
        need_compiler()


@pytest.mark.parametrize(
    ("version", "files"),
    [("clang version 19", ["libclang_rt.asan.so"]), ("g++ 14", ["libasan.so", "libubsan.so"])],
)
def test_the_runtime_is_that_of_the_compiler_that_builds(tmp_path, version, files):
    for name in files:
        (tmp_path / name).write_text("")
    put(
        tmp_path,
        "compiler",
        f'[ "$1" = --version ] && echo "{version}" && exit\nname=${{1#*=}}\n'
        f'[ -e {tmp_path}/$name ] && echo {tmp_path}/$name || echo "$name"',
    )
    compiler = (str(tmp_path / "compiler"),)
    assert sanitizer_runtime.runtime_of(compiler) == [str(tmp_path / name) for name in files]
    (tmp_path / files[-1]).unlink()
    with pytest.raises(FileNotFoundError, match="install the sanitizers' runtime"):
        sanitizer_runtime.runtime_of(compiler)
