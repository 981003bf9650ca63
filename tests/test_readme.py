"""The README is the product's face: its commands run, its links lead somewhere."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hambench.cli import cli
from hambench.errors import HambenchError

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").glob("*.md"))),
]


def console_commands(text: str) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def make(*arguments: str) -> str:
    result = subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files(page):
    folder = (ROOT / page).parent
    targets = re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text())
    missing = [t for t in targets if not t.startswith(("http:", "https:")) and not (folder / t).exists()]
    assert missing == []


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_targets_of_the_readme_exist_and_demo_runs_the_commands_shown():
    commands = console_commands(README)
    targets = [command.split()[1] for command in commands if command.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        make("--dry-run", target)
    shown = [command for command in commands if command.startswith("hambench run --methods all")]
    assert len(shown) == 1
    assert shown[0] in make("--dry-run", "demo")


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize(
    "command",
    # those of the section on CI need its files and each other: test_ci_docs.py runs them
    [
        command
        for command in console_commands(re.sub(r"\n## In CI\n.*?(?=\n## )", "", README, flags=re.DOTALL))
        if not command.startswith(("make", "hambench run --methods all"))
    ],
)
def test_commands_of_the_readme_run(command, tmp_path):
    program = "from hambench.cli import main; main()"
    words = shlex.split(command)
    assert words[0] == "hambench"
    result = subprocess.run(
        [sys.executable, "-c", program, *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_commands_whose_tables_the_readme_shows_are_runs_of_several_cells(monkeypatch, tmp_path):
    """They take minutes: their words are read and their cells built."""
    server = tmp_path / "llama-server"
    server.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    blocks = re.findall(r"```text\n\$ (hambench run (?:.*\\\n)*.*)\n", README)
    assert len(blocks) == 4
    sizes = []

    def start(request, *_, **__):
        sizes.append(len(request.sweep.expand().cells))
        raise HambenchError("far enough")

    monkeypatch.setattr("hambench.runner.start.start_run", start)
    for block in blocks:
        said = CliRunner().invoke(cli, shlex.split(block.replace("\\\n", " "))[1:])
        assert "far enough" in str(said.exception), said.output
    assert sizes == [21, 40, 24, 7]


@pytest.mark.slow
@pytest.mark.model
def test_the_python_of_the_readme_runs_and_prints_what_is_shown(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```\s*```text\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 1
    ((program, shown),) = blocks
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    # the words are the same on every machine, the figures are not
    words = {word for word in re.findall(r"[a-z_]+(?:\[[^\]]*\])?", shown) if len(word) > 3}
    verdicts = {"better", "worse", "equivalent", "inconclusive", "comparable"}
    assert words - verdicts <= set(re.findall(r"[a-z_]+(?:\[[^\]]*\])?", result.stdout))


def test_the_readme_names_every_command_and_method():
    from hambench.registry import BUILTIN

    assert [
        name
        for name in cli.list_commands(None)
        if f"`{name}`" not in README and f"hambench {name}" not in README
    ] == []
    assert [name for name in BUILTIN if f"`{name}`" not in README] == []


def test_nothing_in_the_repository_names_a_machines_path():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout: nothing lists the files")
    found = []
    for name in filter(None, tracked.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in {".png", ".safetensors", ".gz"} or not path.is_file():
            continue
        # written in halves, so that this line does not find itself
        if re.search(r"(?<![\w.])/(?:wo" r"rk|ro" r"ot)/", path.read_text(errors="replace")):
            found.append(name)
    assert found == []
