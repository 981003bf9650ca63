from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import write_run

from hambench.analysis.glossary import definitions
from hambench.analysis.proxy_rows import proxy_rows
from hambench.analysis.summary import cell_objects
from hambench.store import Run, load_run

NO_NUMBER = {
    "cell", "method", "knobs", "model", "dtype", "regime", "kernels", "threads", "context", "max_new_tokens",
    "batch", "baseline", "benchmark", "mbu_flag", "edition", "complete", "run",
}  # fmt: skip
"""Keys that say what a cell is, or the reason for a number."""

ALIASES = {
    "m": "tokens_per_target_forward",
    "num_compared": "identity.num_samples",
    "num_identical": "identity.num_identical",
    "first_difference": "identity.first_difference",
    "tokens_before_difference": "identity.share_before",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder: Path = tmp_path_factory.mktemp("runs") / "run"
    return load_run(write_run(folder, per_task=2))


def test_every_number_that_is_printed_has_a_definition(run: Run) -> None:
    defined = {entry.name for entry in definitions()}
    printed: set[str] = set()
    for item in cell_objects(run):
        identity = item.pop("identity")
        printed |= set(item) | {f"identity.{name}" for name in identity}
    printed |= set(proxy_rows(replace(run, scores=()))[0])
    missing = {ALIASES.get(name, name) for name in printed - NO_NUMBER} - defined
    assert not missing


def test_names_are_unique_and_definitions_are_sentences() -> None:
    entries = definitions()
    assert len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.unit
        assert entry.text.endswith(".")
