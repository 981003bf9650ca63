"""Run folders from elsewhere: whatever is in their files, a command says one line or does its work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from damage import damaged, damaged_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hambench.cli import main

STORED = Path(__file__).parents[1] / "data" / "run-v1"
FILES = ("run.json", "prompts.jsonl", "records.jsonl", "scores.jsonl", "telemetry.jsonl")
COMMANDS = (
    ("show", "{run}"),
    ("show", "{run}", "--by", "task"),
    ("show", "{run}", "--json"),
    ("show", "{run}", "--tokens", "{sample}"),
    ("ls", "runs", "--root", "{root}"),
    ("compare", "{run}", "{run}"),
    ("compare", "{whole}", "{run}"),
    ("history", "add", "{run}", "--root", "{root}/history"),
    ("score", "{run}", "--dry-run"),
)
SLOW = settings(
    deadline=None,
    max_examples=400,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)


def run_all(root: Path, commands=COMMANDS) -> None:
    """Every command over the folder; an exception that is neither a clear line nor an exit code goes through."""
    names = {"run": root / "run", "root": root, "whole": STORED}
    sample = next(iter(json.loads(line)["sample_id"] for line in (STORED / "prompts.jsonl").open()))
    for command in commands:
        try:
            main([word.format(**names, sample=sample) for word in command])
        except SystemExit as stop:
            assert stop.code in (0, 1, 2, 3, 4, None), command  # noqa: PT017 - the code is the point


def fresh(tmp_path: Path) -> Path:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    shutil.rmtree(tmp_path / "history", ignore_errors=True)
    shutil.copytree(STORED, tmp_path / "run")
    return tmp_path / "run"


def lines_of(name: str) -> list:
    content = (STORED / name).read_text()
    return [json.loads(content)] if name == "run.json" else list(map(json.loads, content.splitlines()))


def write(folder: Path, name: str, items: list) -> None:
    (folder / name).write_text("".join(json.dumps(item) + "\n" for item in items))


@pytest.mark.slow
@pytest.mark.timeout(600)
@SLOW
@given(data=st.data())
def test_any_value_may_be_any_other(tmp_path, data, capsys):
    name = data.draw(st.sampled_from(FILES))
    items = data.draw(damaged(lines_of(name)))
    folder = fresh(tmp_path)
    write(folder, name, items if isinstance(items, list) else [items])
    run_all(tmp_path)
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(SLOW, max_examples=150)
@given(data=st.data())
def test_any_byte_may_be_any_other(tmp_path, data, capsys):
    name = data.draw(st.sampled_from(FILES))
    content = data.draw(damaged_bytes((STORED / name).read_bytes()))
    (fresh(tmp_path) / name).write_bytes(content)
    run_all(tmp_path)
    capsys.readouterr()
