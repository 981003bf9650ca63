"""Run folders from elsewhere: whatever is in their files, a command says one line or does its work."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from pathlib import Path

import pytest
from damage import damaged, damaged_bytes
from fuzz_effort import BOUNDED, examples
from hypothesis import given, settings
from hypothesis import strategies as st

from hambench.cli import main
from hambench.errors import StoreError
from hambench.records import answer_key
from hambench.store import load_run

STORED = Path(__file__).parents[1] / "data" / "run-v1"
FILES = ("run.json", "prompts.jsonl", "records.jsonl", "scores.jsonl", "telemetry.jsonl", "fidelity.jsonl")
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
    ("replay", "{run}", "--methods", "suffix[k=4],prompt_lookup[k=3]"),
    ("proxies", "{run}", "--json"),
    ("report", "{run}", "-o", "{root}/report.html"),
    ("report", "{run}", "--no-js", "-o", "{root}/report.html", "--markdown", "{root}/report.md"),
)
SLOW = settings(BOUNDED, max_examples=examples(250))


def run(root: Path, command: tuple[str, ...]) -> None:
    """One command over the folder; an exception that is neither a clear line nor an exit code goes through."""
    names = {"run": root / "run", "root": root, "whole": STORED}
    sample = json.loads((STORED / "prompts.jsonl").read_text().splitlines()[0])["sample_id"]
    try:
        main([word.format(**names, sample=sample) for word in command])
    except SystemExit as stop:
        if stop.code not in (0, 1, 2, 3, 4, None):
            pytest.fail(f"{command}: exit code {stop.code}")


def fresh(tmp_path: Path) -> Path:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    shutil.rmtree(tmp_path / "history", ignore_errors=True)
    shutil.copytree(STORED, tmp_path / "run")
    write(tmp_path / "run", "fidelity.jsonl", judgements())
    return tmp_path / "run"


@functools.cache
def judgements() -> list:
    """What a target could have said of each distinct answer of the stored run, which is older than judging."""
    records = {answer_key(record): record for record in load_run(STORED).measured if record.trace is not None}
    judged = []
    for key, record in records.items():
        regrets = [0.0] * (len(record.trace.token_ids) - 1) + [0.25]
        numbers = {"regrets": regrets, "logprobs": [-1.5] * len(regrets), "gaps": [0.5] * len(regrets)}
        judged.append({"sample_id": record.sample_id, "answer": key, **numbers})
    return judged


def lines_of(name: str) -> list:
    if name == "fidelity.jsonl":
        return copy.deepcopy(judgements())
    content = (STORED / name).read_text()
    return [json.loads(content)] if name == "run.json" else list(map(json.loads, content.splitlines()))


def write(folder: Path, name: str, items: list) -> None:
    (folder / name).write_text("".join(json.dumps(item) + "\n" for item in items))


FOUND = [
    ("records.jsonl", [1, "trace", "steps"], []),
    ("records.jsonl", [1, "step_texts"], ["x"]),
    ("records.jsonl", [1, "trace", "steps", 1, "seconds"], None),
    ("records.jsonl", [0, "cell"], "other"),
    ("records.jsonl", [0, "sample_id"], "a/b"),
    ("telemetry.jsonl", [0, "passes_s"], 0),
    ("telemetry.jsonl", [0, "passes_s", 0], "vanilla"),
    ("telemetry.jsonl", [0, "cold_s"], None),
    ("telemetry.jsonl", [2, "read"], "x"),
    ("telemetry.jsonl", [0, "extra_weight_bytes"], "x"),
    ("run.json", [0, "model"], {}),
    ("run.json", [0, "model", "vocab_size"], ""),
    ("run.json", [0, "model", "intermediate_size"], "x"),
    ("run.json", [0, "cells"], []),
    ("run.json", [0, "commit"], "a/b"),
    ("run.json", [0, "repeats"], 0),
    ("run.json", [0, "suite_spec", "tasks"], []),
    ("run.json", [0, "suite_spec", "tasks", "lcc"], 5),
    ("run.json", [0, "suite_spec", "tasks", "lcc"], {"metric": "score"}),
    ("run.json", [0, "suite_spec", "tasks", "lcc", "config"], 5),
    ("run.json", [0, "suite_spec", "tasks", "lcc", "config"], "../x.yaml"),
    ("run.json", [0, "suite_spec", "tasks", "lcc", "settings"], {"x": 1}),
    ("run.json", [0, "suite_spec", "tasks", "lcc", "bounds"], {"a": 1}),
    ("run.json", [0, "suite_spec"], {"averages": "categories"}),
    ("fidelity.jsonl", [0, "gaps"], []),
    ("fidelity.jsonl", [0, "regrets", 0], -1.0),
    ("fidelity.jsonl", [0, "sample_id"], "a/b"),
]
"""File, place and value of what once ended in a traceback."""


@pytest.mark.parametrize(("name", "place", "value"), FOUND)
def test_what_was_found_stays_found(tmp_path, capsys, name, place, value):
    items = lines_of(name)
    parent = items
    for step in place[:-1]:
        parent = parent[step]
    parent[place[-1]] = value
    write(fresh(tmp_path), name, items)
    for command in COMMANDS:
        run(tmp_path, command)
    capsys.readouterr()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b'{"\x80": 1}\n', b"[" * 20_000 + b"\n", b"\xff\n", b"null\n", b"\n"])
def test_bytes_that_are_no_json_are_named_with_their_file(tmp_path, capsys, name, content):
    folder = fresh(tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(StoreError, match=name):
        load_run(folder)
    run(tmp_path, ("show", "{run}"))
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.timeout(600)
@SLOW
@given(data=st.data())
def test_any_value_may_be_any_other(tmp_path, data, capsys):
    name = data.draw(st.sampled_from(FILES))
    items = data.draw(damaged(lines_of(name)))
    folder = fresh(tmp_path)
    write(folder, name, items if isinstance(items, list) else [items])
    run(tmp_path, data.draw(st.sampled_from(COMMANDS)))
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(SLOW, max_examples=examples(100))
@given(data=st.data())
def test_any_byte_may_be_any_other(tmp_path, data, capsys):
    name = data.draw(st.sampled_from(FILES))
    content = data.draw(damaged_bytes((fresh(tmp_path) / name).read_bytes()))
    (tmp_path / "run" / name).write_bytes(content)
    run(tmp_path, data.draw(st.sampled_from(COMMANDS)))
    capsys.readouterr()
