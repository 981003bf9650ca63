"""Histories and outputs that a report is given: whatever is in them, a command says one line or does its work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from damage import damaged, damaged_bytes
from fuzz_effort import BOUNDED, examples
from hypothesis import given, settings
from hypothesis import strategies as st

from hambench.cli import main

STORED = Path(__file__).parents[1] / "data" / "run-v1"
REPORT = ()
"""Stands for a report that shows the history."""
HISTORY_COMMANDS = (
    ("list",),
    ("list", "--json"),
    ("show",),
    ("show", "--json"),
    ("verify",),
    ("pin", "again", "run-v1"),
    ("prune", "--keep", "1"),
    REPORT,
)


def run(*words: str) -> None:
    """One command; an exception that is neither a clear line nor an exit code goes through."""
    try:
        main(list(words))
    except SystemExit as stop:
        if stop.code not in (0, 1, 2, 3, 4, None):
            pytest.fail(f"{words}: exit code {stop.code}")


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """A history of one run with a pin and an annotation."""
    root = tmp_path_factory.mktemp("history") / "root"
    run("history", "add", str(STORED), "--root", str(root))
    (entry,) = (json.loads(path.read_text()) for path in root.glob("runs/**/*.json"))
    run("history", "pin", "first", entry["run_id"], "--root", str(root))
    run("history", "annotate", "a new fan", "--root", str(root))
    return root


def changed(data, path: Path) -> None:
    """Draws damage to a file."""
    if data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(damaged(json.loads(path.read_text())))))
    else:
        path.write_bytes(data.draw(damaged_bytes(path.read_bytes())))


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(BOUNDED, max_examples=examples(300))
@given(data=st.data())
def test_any_file_of_a_history_is_read_or_named(tmp_path, data, capsys, history):
    root = tmp_path / "history"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(history, root)
    files = sorted(path for path in root.rglob("*.json"))
    assert len(files) >= 3
    changed(data, data.draw(st.sampled_from(files)))
    command = data.draw(st.sampled_from(HISTORY_COMMANDS))
    if command is REPORT:
        run("report", str(STORED), "-o", str(tmp_path / "r.html"), "--history", str(root))
    else:
        run("history", *command, "--root", str(root))
    capsys.readouterr()


KERNELS = {
    "shape": "tiny",
    "device": "a GPU",
    "dtype": "bfloat16",
    "fused_timed": True,
    "ceiling": {"copy": 4e12},
    "results": [
        {
            "op": "norm_gemv",
            "rows": 1,
            "weights": "bfloat16",
            "error": 1e-3,
            "num_bytes": 10**6,
            "seconds": {"fused": [1e-6, 2e-6], "torch": [3e-6], "compiled": []},
        }
    ],
}
"""What ``hambench bench kernels --out`` writes, as far as a report reads it."""
PROFILES = [
    {
        "method": "vanilla",
        "num_tokens": 8,
        "wall_s": 0.5,
        "rows": [{"path": ["step", "forward"], "seconds": 0.25, "calls": 8}],
    }
]
"""The same of ``hambench profile --json``."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(BOUNDED, max_examples=examples(150))
@given(data=st.data())
def test_any_output_given_to_a_report_is_shown_or_named(tmp_path, data, capsys):
    option, content = data.draw(st.sampled_from([("--kernels", KERNELS), ("--profile", PROFILES)]))
    file = tmp_path / "given.json"
    file.write_text(json.dumps(content))
    changed(data, file)
    run("report", str(STORED), "-o", str(tmp_path / "r.html"), "--no-js", option, str(file))
    capsys.readouterr()


@pytest.mark.parametrize(("option", "content"), [("--kernels", KERNELS), ("--profile", PROFILES)])
def test_what_is_damaged_there_was_whole(tmp_path, option, content):
    file = tmp_path / "given.json"
    file.write_text(json.dumps(content))
    main(["report", str(STORED), "-o", str(tmp_path / "r.html"), "--no-js", option, str(file)])
