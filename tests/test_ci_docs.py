"""What docs/ci.md, the README's section on CI and the sample workflows say is what the program takes."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import msgspec
import pytest
import yaml

from hambench.cli import cli
from hambench.gating.checks import ExitCode
from hambench.gating.config import ProjectConfig

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/ci.md").read_text()
README = (ROOT / "README.md").read_text().partition("## In CI")[2].partition("\n## ")[0]


def blocks_of(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


WORKFLOWS = {
    **{path.stem: path.read_text() for path in sorted((ROOT / "docs/examples").glob("*.yml"))},
    **{f"README {number}": block for number, block in enumerate(blocks_of(README, "yaml"), 1)},
}


def commands_in(text):
    """Every hambench command of a text, lines that a backslash continues joined."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = re.findall(
        r"^(?:\s*\$ |\s*)(?:\S*/)?(hambench (?:run|report|gate|compare|history|calibrate)\b[^\n#|]*)",
        joined,
        re.M,
    )
    return [command.strip() for command in found]


def steps_of(workflow):
    jobs = yaml.safe_load(WORKFLOWS[workflow])["jobs"]
    return [(name, step) for name, job in jobs.items() for step in job["steps"]]


DOCUMENTED = sorted(
    {
        *commands_in(PAGE),
        *commands_in(README),
        *(c for workflow in WORKFLOWS for _, s in steps_of(workflow) for c in commands_in(s.get("run", ""))),
    }
)


def test_there_is_something_to_check():
    assert len(DOCUMENTED) >= 10
    assert len(WORKFLOWS) == 3


@pytest.mark.parametrize("line", DOCUMENTED)
def test_every_documented_command_is_understood(line, tmp_path, monkeypatch):
    # folders that the commands before it would have made
    (tmp_path / "history").mkdir()
    (tmp_path / "runs/nightly").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)[1:]
    group, context = cli, click.Context(cli)
    while isinstance(group, click.Group):
        command = group.get_command(context, words[0])
        assert command is not None, f"no command {words[0]}"
        group, words = command, words[1:]
    # raises for an option or an argument that the command doesn't take
    group.make_context(line, words)


@pytest.mark.parametrize("block", blocks_of(PAGE, "toml") + blocks_of(README, "toml"))
def test_every_documented_setting_exists(block):
    assert msgspec.convert(tomllib.loads(block), ProjectConfig).gate is not None


def test_every_exit_code_is_documented():
    table = PAGE.partition("## Exit codes")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (\d) \| (.*) \|$", table, re.M))
    assert set(rows) == {str(int(code)) for code in ExitCode}


def test_the_readmes_section_works_as_pasted(tmp_path):
    (settings,) = blocks_of(README, "toml")
    (session,) = blocks_of(README, "console")
    (tmp_path / "hambench.toml").write_text(settings)
    program = "from hambench.cli import main; main()"
    expected, shown = [], []
    for line in session.splitlines():
        if not line.startswith("$ "):
            expected.append(line)
            continue
        words = shlex.split(line[2:])
        assert words[0] == "hambench"
        done = subprocess.run(
            [sys.executable, "-c", program, *words[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        shown = done.stdout.splitlines()
    # what the page shows is what the last command prints
    assert expected
    assert [line.rstrip() for line in shown] == expected


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_workflows_have_the_parts_that_github_needs(workflow):
    read = yaml.safe_load(WORKFLOWS[workflow])
    # YAML 1.1 reads the key `on` as true
    assert read.keys() >= {"name", "jobs", True, "permissions"}
    assert all(job["runs-on"] for job in read["jobs"].values())
    assert all(("uses" in step) != ("run" in step) for _, step in steps_of(workflow))


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_no_script_of_a_workflow_pastes_in_what_a_stranger_wrote(workflow):
    # values of an event belong in env: pasted into a script they are code
    for _, step in steps_of(workflow):
        script = step.get("run", "") + step.get("with", {}).get("script", "")
        assert "github.event" not in script
        assert "${{" not in script


def test_the_commenting_job_runs_nothing_of_the_pull_request():
    (workflow,) = [name for name in WORKFLOWS if "comment" in name]
    steps = [step for _, step in steps_of(workflow)]
    assert not any("checkout" in step.get("uses", "") or "run" in step for step in steps)


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_actionlint_finds_nothing(workflow):
    program = shutil.which("actionlint")
    if program is None:
        pytest.skip("needs actionlint on the PATH (github.com/rhysd/actionlint)")
    done = subprocess.run(
        [program, "-"], input=WORKFLOWS[workflow], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_links_of_the_page_lead_somewhere():
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", PAGE) if "://" not in t]
    assert targets
    assert [t for t in targets if not (ROOT / "docs" / t).exists()] == []
