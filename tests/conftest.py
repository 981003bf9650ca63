"""Fixtures shared by all tests."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fakes import save_tiny_model, tiny_target
from forked_python import ForkedPython

from hambench.engine.cpu.native_library import NATIVE_CACHE
from hambench.kernels.cpu.build import find_compiler
from hambench.machine import bandwidth
from hambench.paths import cache_dir

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with the most slow tests go first: the last file to end decides how long two processes take.

    Tests marked ``one_engine`` run on one engine only.
    """
    other = "native" if find_compiler() is None else "reference"
    twice = [item for item in items if item.get_closest_marker("one_engine") and _engine_of(item) == other]
    if twice:
        config.hook.pytest_deselected(items=twice)
        items[:] = [item for item in items if item not in set(twice)]
    num_slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -num_slow[item.path])


def _engine_of(item: pytest.Item) -> object:
    call = getattr(item, "callspec", None)
    return call.params.get("target") if call is not None else None


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # tiny models gain nothing from threads, and several test processes share the machine
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _one_native_library() -> None:
    # tests with a cache folder of their own would compile it again
    os.environ.setdefault(NATIVE_CACHE, str(cache_dir() / "native"))


@pytest.fixture(scope="session", autouse=True)
def _short_probes() -> None:
    # every run probes twice, and no test judges what this process found; runs in processes of their own probe in full
    bandwidth.PROBE_BYTES = {"cpu": 2**22, "cuda": 2**22}
    bandwidth.PROBE_SECONDS = 0.01


@pytest.fixture(scope="session")
def target():
    """A tiny random Llama in float32 whose vocabulary is bytes."""
    return tiny_target()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A tiny random Llama as a folder with a byte-level tokenizer."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """A data folder in LongBench's schema with prompts of a few hundred bytes."""
    folder = tmp_path_factory.mktemp("rows")
    row = {"length": 1, "dataset": "d", "language": "en", "all_classes": None}
    code = [f"def f{i}(x):\n    y = x + {i}\n" for i in range(3)]
    lines = [
        {**row, "_id": f"c{i}", "input": "", "context": t, "answers": ["    return y"]}
        for i, t in enumerate(code)
    ]
    (folder / "lcc.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = [f"The colour of box {i} is red{i}." for i in range(3)]
    lines = [
        {**row, "_id": f"q{i}", "input": f"Which colour has box {i}?", "context": t, "answers": [f"red{i}"]}
        for i, t in enumerate(text)
    ]
    (folder / "multifieldqa_en.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real evaluation data beside the checkout, where there is any."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            "needs ../shared/data beside the checkout (real evaluation rows, not part of the repository)"
        )
    return folder


@pytest.fixture(scope="module")
def forked_python() -> Iterator[ForkedPython]:
    """Runs Python programs in processes that need not import torch."""
    server = ForkedPython()
    yield server
    server.close()


@pytest.fixture
def private_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("HAMBENCH_CACHE", str(folder))
    return folder
