"""A method from another distribution: CONTRIBUTING's six steps, done by a test."""

import json
import re
import subprocess
import sys

import pytest
from forked_python import COMMAND_LINE

METHOD = '''
"""Vanilla decoding that looks twice at every token: a third party's method in one file."""

from dataclasses import dataclass
from typing import ClassVar

from hambench.decoding import MethodConfig
from hambench.method_facts import Ceiling, Look, MethodCeilings, Phase, ShortOption
from hambench.methods.vanilla import Vanilla, VanillaSession


@dataclass(frozen=True, kw_only=True)
class EchoConfig(MethodConfig):
    """Decodes one token per step and says it aloud."""

    method: ClassVar[str] = "echo"
    axis: ClassVar[str | None] = "volume"
    axis_values: ClassVar[tuple[int, ...]] = (1, 2)
    look: ClassVar[Look] = Look("purple", "*", (3, 1))
    phases: ClassVar[tuple[Phase, ...]] = (Phase("hambench_echo", "EchoSession.say", "say"),)
    short_options: ClassVar[tuple[ShortOption, ...]] = (
        ShortOption(flags=("--volume",), knob="volume", help="Echo: how loud, 1,2."),
    )

    volume: int = 1

    def own_sizes(self, model):
        return {"num_speakers": 3}

    def bytes_read(self, step, before, sizes, own_sizes):
        return own_sizes["num_speakers"] * self.volume * sizes.layer

    @classmethod
    def ceilings(cls, sizes, *, model, context):
        row = Ceiling(setting="volume=1", bytes_per_token=3 * sizes.layer, kernels_per_token=1)
        return MethodCeilings(rows=(row,), facts={"num_speakers": 3}, conclusions=("echo: loud",))

    def build(self, target):
        return Echo(self.label, target)


@dataclass(frozen=True)
class Echo(Vanilla):
    def start(self, prompt_ids, params):
        return EchoSession(super().start(prompt_ids, params).sequence)


class EchoSession(VanillaSession):
    def step(self):
        self.say()
        return super().step()

    def say(self):
        pass
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


@pytest.fixture(scope="module")
def hambench(forked_python):
    """Runs the command line where the distribution is installed, and returns what it did."""
    return lambda site, *arguments: forked_python.run(COMMAND_LINE, *arguments, site=site)


@pytest.fixture(scope="module")
def said(hambench):
    """The same, which must succeed; its standard output."""

    def run(site, *arguments):
        done = hambench(site, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def on(model):
    return ("--model", model, "--dtype", "float32")


def test_a_method_of_another_distribution_is_listed_with_what_it_does_and_decodes(said, site, tiny_model):
    listed = [json.loads(line) for line in said(site, "ls", "methods", "--json").splitlines()]
    echo = next(row for row in listed if row["method"] == "echo")
    assert echo["what"] == "Decodes one token per step and says it aloud."
    asked = ("generate", *on(tiny_model), "--prompt-ids", "5,6,7", "--json", "--max-new-tokens", "8")
    echoed, plain = (json.loads(said(site, *asked, "--method", method)) for method in ("echo", "vanilla"))
    assert echoed["method"] == "echo[volume=1]"
    assert echoed["token_ids"] == plain["token_ids"]


def test_its_short_option_is_one_of_every_command_that_takes_methods(said, hambench, site, tiny_model):
    asked = ("generate", *on(tiny_model), "--prompt-ids", "5,6,7", "--json", "--max-new-tokens", "2")
    assert json.loads(said(site, *asked, "--method", "echo", "--volume", "2"))["method"] == "echo[volume=2]"
    for command in ("run", "plan", "serve"):
        assert "Echo: how loud, 1,2." in said(site, command, "--help"), command
    refused = hambench(site, *asked, "--method", "vanilla", "--volume", "2")
    assert refused.returncode == 2
    assert "no chosen method has the knob 'volume'" in refused.stderr


def test_its_phases_are_in_the_profile(said, site, tiny_model):
    (profile,) = json.loads(said(site, "profile", *on(tiny_model), "--method", "echo", "-n", "6", "--json"))
    rows = {tuple(row["path"]): row["calls"] for row in profile["rows"]}
    assert rows["say",] == 5


def test_its_byte_rule_is_in_the_forecast(said, site):
    asked = ("predict", "--model", "smollm2-135m", "--bandwidth", "46GB/s")
    forecast = json.loads(said(site, *asked, "--json"))
    rows = {(row["method"], row["setting"]): row for row in forecast["rows"]}
    assert rows["echo", "volume=1"]["bytes_per_token"] == 3 * 3_540_096 * 2
    assert forecast["methods"]["echo"]["num_speakers"] == 3
    assert "echo: loud" in said(site, *asked)


def test_a_run_of_it_has_limits_by_its_rule_and_its_look_in_the_report(
    said, forked_python, site, tiny_model, rows, tmp_path
):
    run = tmp_path / "run"
    options = (
        "--suite",
        "longbench",
        "--tasks",
        "lcc",
        "--data",
        rows,
        "--max-new-tokens",
        "8",
        "--out",
        run,
    )
    said(site, "run", *on(tiny_model), "--methods", "vanilla,echo", "--volume", "1,2", *options)
    header = json.loads((run / "run.json").read_text())
    echo = [cell for cell in header["cells"] if cell["method"] == "echo"]
    assert [cell["knobs"] for cell in echo] == [{"volume": 1}, {"volume": 2}]
    assert all(cell["own_sizes"] == {"num_speakers": 3} for cell in echo)
    program = f"""
import json
from hambench.analysis.bandwidth_limit import limits_of
from hambench.store import load_run
print(json.dumps({{cell: limit.bytes_per_token for cell, limit in limits_of(load_run({str(run)!r})).items()}}))
"""
    done = forked_python.run(program, site=site)
    assert done.returncode == 0, done.stderr
    limits = json.loads(done.stdout)
    assert limits["echo[volume=2]"] == 2 * limits["echo[volume=1]"] > 0
    # the style sheet names every colour; only a figure strokes or fills with one
    assert re.search(r'(stroke|fill)="var\(--h4\)"', (run / "report.html").read_text())


@pytest.mark.slow
def test_a_run_of_a_method_that_is_not_installed_here_is_still_read(said, site, tiny_model, rows, tmp_path):
    run = tmp_path / "run"
    options = (
        "--suite",
        "longbench",
        "--tasks",
        "lcc",
        "--data",
        rows,
        "--max-new-tokens",
        "4",
        "--out",
        run,
    )
    said(site, "run", *on(tiny_model), "--methods", "vanilla,echo[volume=1]", *options, "--no-report")
    elsewhere = tmp_path / "nothing-installed"
    elsewhere.mkdir()
    assert "echo[volume=1]" in said(elsewhere, "show", run)
    said(elsewhere, "report", run)


def test_a_broken_plugin_is_one_clear_line_and_harms_no_other_method(said, hambench, site, tiny_model):
    whole = (site / "hambench_echo.py").read_text()
    (site / "hambench_echo.py").write_text("raise ImportError('no luck today')")
    try:
        broken = hambench(site, "generate", *on(tiny_model), "--prompt-ids", "5", "--method", "echo")
        assert broken.returncode == 2
        assert "method 'echo' can't be loaded from hambench_echo:EchoConfig: no luck today" in broken.stderr
        said(site, "generate", *on(tiny_model), "--prompt-ids", "5", "--max-new-tokens", "2")
        said(site, "predict", "--model", "smollm2-135m", "--bandwidth", "46GB/s")
    finally:
        (site / "hambench_echo.py").write_text(whole)
