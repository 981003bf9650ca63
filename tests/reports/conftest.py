"""Simulated runs and their pages, made once, and a real browser to look at them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import synthetic

from hambench.bench.browser import chromium
from hambench.errors import HambenchError
from hambench.records import Cell
from hambench.reports import render_html
from hambench.reports.view import View
from hambench.run_notes import Note
from hambench.store import Run, load_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def few_cells() -> tuple[Cell, ...]:
    return synthetic.cells(confidences=(0.5, 0.7, 0.9))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Six tasks of four samples by eight cells, one answer failed."""
    folder = tmp_path_factory.mktemp("runs") / "usual"
    return load_run(synthetic.write_run(folder, few_cells(), per_task=4, lone_error_rate=0.01))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One task of four samples by two cells: for what does not depend on the numbers."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return load_run(synthetic.write_run(folder, few_cells()[:2], tasks=synthetic.TASKS[1:2], per_task=4))


@pytest.fixture(scope="session")
def view(run: Run) -> View:
    return View(run)


@pytest.fixture(scope="session")
def html(run: Run) -> str:
    return render_html([run])


@pytest.fixture(scope="session")
def page_path(html: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Every name, prompt and answer tries to break the page."""
    tasks = [
        synthetic.Task("long<b>bench", f"{text}{'x' * 80}", '"><i>', 40, 12, 0.5)
        for text in synthetic.HOSTILE[:3]
    ]
    cells = [
        Cell(method=cell.method, label=f"{cell.label}{text}", knobs=cell.knobs, model=text, dtype="bfloat16")
        for cell, text in zip(few_cells(), synthetic.HOSTILE, strict=False)
    ]
    model = {"name": synthetic.HOSTILE[1], "sha256": synthetic.HOSTILE[2], "weight_bytes": 1000}
    changes = {
        "model": model,
        "notes": (*(Note("other", text) for text in synthetic.HOSTILE), Note("simulated", "simulated")),
        "command": synthetic.HOSTILE,
        "run_id": synthetic.HOSTILE[0],
        "environment": {synthetic.HOSTILE[0]: synthetic.HOSTILE[1]},
    }
    folder = tmp_path_factory.mktemp("runs") / "hostile"
    return load_run(
        synthetic.write_run(folder, cells, tasks=tasks, per_task=3, hostile=True, header_changes=changes)
    )


@pytest.fixture(scope="session")
def hostile_html(hostile_run: Run) -> str:
    return render_html([hostile_run])


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium; in CI its absence fails, elsewhere it skips."""
    with contextlib.ExitStack() as stack:
        try:
            launched = stack.enter_context(chromium())
        except HambenchError as error:
            if os.environ.get("CI"):
                pytest.fail(str(error))
            pytest.skip(str(error))
        yield launched
