"""Cost of a report of many samples: seconds to build it, bytes, and seconds until a browser shows it."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hambench.bench.browser import chromium, wait_until
from hambench.reports.export import write_html
from hambench.reports.options import ReportOptions
from hambench.run_notes import Note
from hambench.store import Run, RunWriter, load_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_TIMINGS = """() => {
  const times = performance.getEntriesByType("navigation")[0];
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  return {loaded: times.loadEventEnd / 1000, painted: paint ? paint.startTime / 1000 : null};
}"""


@dataclass(frozen=True, slots=True)
class Opening:
    """Seconds from the start of the navigation, medians over fresh browser contexts."""

    painted_s: float
    """First contentful paint."""
    loaded_s: float
    """End of the load event, when the page responds to the reader."""
    indexed_s: float
    """When every sample can be filtered, including packed ones."""
    filtered_s: float
    """From a click on a filter to the samples that remain, unpacked and laid out; not counted from the navigation."""


@dataclass(frozen=True, slots=True)
class ReportCost:
    """Cost of one report."""

    num_samples: int
    num_answers: int
    read_s: float
    """Seconds for reading the run from disk."""
    make_s: float
    """Seconds for statistics, figures and page."""
    num_bytes: int
    opening: Opening


def grown(run: Run, num_samples: int) -> Run:
    """Repeats the run's samples under new ids up to ``num_samples``, for real sizes with an invented n.

    Raises:
        ValueError: If the run has no samples.
    """
    if not run.samples:
        raise ValueError("run must have samples to repeat, got none")
    ids = [
        (sample_id, copy) for copy in range(-(-num_samples // len(run.samples))) for sample_id in run.samples
    ]
    copies: dict[str, list[str]] = {}
    samples = {}
    for sample_id, copy in ids[:num_samples]:
        sample = run.samples[sample_id]
        new = sample_id if copy == 0 else f"{sample_id}.{copy}"
        copies.setdefault(sample_id, []).append(new)
        samples[new] = replace(sample, sample_id=new)
    return replace(
        run,
        header=replace(
            run.header,
            num_samples=num_samples,
            notes=(
                Note(
                    "simulated", "simulated: every sample stands for many, to see what a large report costs"
                ),
                *run.header.notes,
            ),
        ),
        samples=samples,
        records=tuple(replace(r, sample_id=new) for r in run.records for new in copies.get(r.sample_id, ())),
        scores=tuple(replace(s, sample_id=new) for s in run.scores for new in copies.get(s.sample_id, ())),
    )


def measure(run: Run, *, num_samples: int, options: ReportOptions, repeats: int = 3) -> ReportCost:
    """Grows a run, stores it, builds its report, and opens the report in Chromium.

    Args:
        run: Run whose samples to repeat.
        num_samples: Number of samples to reach.
        options: Options of the report.
        repeats: Number of times to open it.

    Raises:
        HambenchError: If Chromium or playwright is not installed.
        ValueError: If the run has no samples.
    """
    with chromium() as browser, tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        _store(grown(run, num_samples), folder)
        start = time.perf_counter()
        large = load_run(folder)
        read = time.perf_counter()
        page = Path(name) / "report.html"
        write_html([large], page, options=options)
        made = time.perf_counter()
        openings = [_open(browser, page) for _ in range(repeats)]
        return ReportCost(
            num_samples=len(large.samples),
            num_answers=len(large.measured),
            read_s=read - start,
            make_s=made - read,
            num_bytes=page.stat().st_size,
            opening=Opening(*(statistics.median(each) for each in zip(*openings, strict=True))),
        )


def _store(run: Run, folder: Path) -> None:
    with RunWriter.create(folder, run.header, list(run.samples.values())) as writer:
        writer.append_records(run.records)
        writer.append_scores(run.scores)
        for reading in run.telemetry:
            writer.append_telemetry(reading)


def _open(browser: Browser, page: Path) -> tuple[float, float, float, float]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, offline=True)
    tab = context.new_page()
    start = time.perf_counter()
    tab.goto(page.as_uri())
    bar = tab.locator(".sample-bar").first
    status = bar.locator(".sample-count")
    wait_until(lambda: "more to come" not in (status.text_content() or ""))
    indexed = time.perf_counter() - start
    times = tab.evaluate(_TIMINGS)
    start = time.perf_counter()
    bar.locator('[data-flag="differs"]').click()
    wait_until(lambda: "Unpacking" not in (status.text_content() or ""))
    filtered = time.perf_counter() - start
    context.close()
    return times["painted"] or times["loaded"], times["loaded"], indexed, filtered
