"""Pages of what other commands measured: tables when given, a sentence when not, one clear line when broken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hambench.analysis.bandwidth_limit import limits_of
from hambench.errors import HambenchError
from hambench.history.archive import add, entry_of, load_history, pin
from hambench.reports.sections.history_page import history_section
from hambench.reports.sections.kernels_page import kernels_section
from hambench.reports.sections.paper_figures import paper_section
from hambench.reports.sections.roofline_figure import roofline_section
from hambench.reports.view import View
from hambench.store import Run

KERNELS = {
    "shape": "llama-3.2-1b",
    "device": "CPU",
    "fused_timed": False,
    "dtype": "bfloat16",
    "versions": {},
    "ceiling": {"copy": 2e10, "read": 3e10},
    "tiles": "default",
    "results": [
        {
            "op": "norm_gemv",
            "rows": 1,
            "weights": "bf16",
            "num_bytes": 1_000_000,
            "error": None,
            "tolerance": 0.01,
            "seconds": {"torch": [2e-4, 1e-4, 3e-4]},
        }
    ],
}
PROFILES = [
    {
        "method": "vanilla",
        "num_tokens": 10,
        "wall_s": 0.1,
        "rows": [{"path": ["forward", "layers"], "seconds": 0.06, "calls": 10}],
    }
]


def test_kernel_and_phase_files_become_tables(tmp_path: Path) -> None:
    kernels, profile = tmp_path / "k.json", tmp_path / "p.json"
    kernels.write_text(json.dumps(KERNELS))
    profile.write_text(json.dumps(PROFILES))
    section = kernels_section(kernels, profile)
    assert section.missing == ()
    timed, phases = section.tables
    row = dict(zip([column.title for column in timed.columns], timed.rows[0], strict=True))
    assert row["torch"].value == 2e-4
    assert row["MBU"].value == pytest.approx(1_000_000 / 2e-4 / 2e10)
    assert row["Fused"].text == "–"
    assert "not timed" in timed.caption
    assert phases.rows[0][1].text == "forward › layers"
    assert phases.rows[0][3].text == "60.0%"


def test_what_is_not_given_is_explained_and_what_is_broken_is_refused(tmp_path: Path) -> None:
    assert len(kernels_section(None, None).missing) == 2
    for content in ("{", '{"results": [{}]}', "[]"):
        broken = tmp_path / "k.json"
        broken.write_text(content)
        with pytest.raises(HambenchError, match="is not what"):
            kernels_section(broken, None)


def test_history_draws_the_runs_of_this_machine_only(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "history"
    for day in (1, 2, 3):
        header = replace(run.header, run_id=f"day-{day}", created_at=f"2026-01-0{day}T00:00:00+00:00")
        add(root, entry_of(replace(run, header=header)))
    elsewhere = replace(run.header, run_id="elsewhere", environment={"cpu": "another"})
    add(root, entry_of(replace(run, header=elsewhere)))
    pin(load_history(root), "release", "day-2")
    section = history_section(View(run), root)
    (table,) = section.tables
    assert {row[1].value for row in table.rows} == {3}
    assert "release: +0.0%" in table.rows[0][4].text
    assert "<svg" in section.figures[0].canvas.page_svg(title="t", description="d")
    other = history_section(View(replace(run, header=replace(run.header, suites=("other",)))), root)
    assert "has no runs of other" in other.missing[0]
    assert "hambench history add" in history_section(View(run), None).missing[0]


def test_the_page_shows_the_limits_that_every_other_place_shows(run: Run, view: View) -> None:
    section = roofline_section(view)
    (table,) = [figure.table for figure in section.figures if figure.table is not None]
    limits = limits_of(run)
    assert [row[0].text for row in table.rows] == list(limits)
    for row, limit in zip(table.rows, limits.values(), strict=True):
        numbers = [cell.value for cell in row[1:5]]
        assert numbers == [limit.measured_tps, limit.bytes_per_token, limit.predicted_tps, limit.mbu]
        assert row[5].text == (limit.flag or "–")
    assert "64.0 GB/s (the best of 2 readings in this run, the worst 62.0 GB/s)" in section.lead


def test_no_ceiling_without_a_reading_or_a_shape(run: Run) -> None:
    section = roofline_section(View(replace(run, telemetry=())))
    assert not section.figures
    assert "no reading" in section.missing[0]
    unknown = View(replace(run, header=replace(run.header, model={"name": "unheard-of"})))
    assert "not in the run" in roofline_section(unknown).missing[0]


def test_passing_the_ceiling_is_flagged_not_celebrated(run: Run) -> None:
    slow = ({"kind": "bandwidth", "when": "before", "read": 1e9},)
    section = roofline_section(View(replace(run, telemetry=slow)))
    assert "which is no win" in section.figures[0].finding
    assert any("faster than the ceiling" in sentence for sentence in section.missing)


def test_the_papers_own_numbers_stand_there_when_asked_for_and_say_whose_they_are(tiny_run: Run) -> None:
    view = View(tiny_run)
    assert paper_section(view).tables == ()
    tables = paper_section(view, published=True).tables
    assert len(tables) == 2
    for table in tables:
        assert "reported" in table.caption
        assert "other hardware" in table.caption
