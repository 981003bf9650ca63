"""A method from another distribution: CONTRIBUTING's six steps, done by a test."""

import subprocess
import sys
import textwrap

import pytest

METHOD = '''
"""Vanilla decoding that counts its steps aloud: a third party's method in one file."""

from dataclasses import dataclass
from typing import ClassVar

from hambench.decoding import MethodConfig
from hambench.methods.vanilla import Vanilla


@dataclass(frozen=True, kw_only=True)
class EchoConfig(MethodConfig):
    """One knob, for show."""

    method: ClassVar[str] = "echo"
    axis: ClassVar[str | None] = "volume"
    axis_values: ClassVar[tuple[int, ...]] = (1, 2)

    volume: int = 1

    def build(self, target):
        return Vanilla(self.label, target)
'''

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "hambench-echo"
version = "1"

[project.entry-points."hambench.methods"]
echo = "hambench_echo:EchoConfig"

[tool.setuptools]
py-modules = ["hambench_echo"]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with a tiny distribution installed into it."""
    source, site = tmp_path_factory.mktemp("echo"), tmp_path_factory.mktemp("site")
    (source / "hambench_echo.py").write_text(METHOD)
    (source / "pyproject.toml").write_text(PROJECT)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(site), str(source)], check=True)
    return site


def hambench(site, *arguments):
    program = f"import sys; sys.path.insert(0, {str(site)!r}); from hambench.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )


def test_a_method_of_another_distribution_is_listed_and_decodes(site, tiny_model):
    listed = hambench(site, "ls", "methods", "--json")
    assert '"method": "echo"' in listed.stdout, listed.stderr
    arguments = [
        "generate",
        "--model",
        str(tiny_model),
        "--dtype",
        "float32",
        "--prompt-ids",
        "5,6,7",
        "--json",
    ]
    theirs, ours = (
        hambench(site, *arguments, "--method", method, "--max-new-tokens", "8")
        for method in ("echo", "vanilla")
    )
    assert theirs.returncode == 0, theirs.stderr
    assert '"method": "echo[volume=1]"' in theirs.stdout
    tokens = [answer.stdout.split('"token_ids": ')[1].split("]")[0] for answer in (theirs, ours)]
    assert tokens[0] == tokens[1]


def test_a_broken_plugin_is_one_clear_line_and_harms_no_other_method(site, tiny_model):
    (site / "hambench_echo.py").write_text(textwrap.dedent("raise ImportError('no luck today')"))
    broken = hambench(site, "generate", "--model", str(tiny_model), "--prompt-ids", "5", "--method", "echo")
    assert broken.returncode == 2
    assert "method 'echo' can't be loaded from hambench_echo:EchoConfig: no luck today" in broken.stderr
    fine = ["generate", "--model", str(tiny_model), "--prompt-ids", "5", "--max-new-tokens", "2"]
    assert hambench(site, *fine).returncode == 0
