"""Exports, the Markdown summary and the command."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import synthetic
from click.testing import CliRunner

from hambench.analysis.measurements import measure_run
from hambench.cli.report import command
from hambench.errors import HambenchError
from hambench.groups import ALL
from hambench.reports import export, markdown_summary, write_html
from hambench.reports.markdown import MAX_CHARACTERS, escape
from hambench.reports.view import View
from hambench.store import Run, RunWriter, load_run


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    cells = synthetic.cells(confidences=(0.5,))[:5]
    folder = tmp_path_factory.mktemp("runs") / "small"
    return load_run(
        synthetic.write_run(folder, cells, tasks=synthetic.TASKS[1:3], per_task=2, error_rate=0.0)
    )


@pytest.fixture(scope="module")
def exported(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    export([small_run], folder)
    return folder


def test_each_figure_is_exported_three_ways_in_real_colours(exported: Path) -> None:
    names = {path.stem for path in (exported / "figures").iterdir()}
    assert "pareto-tps-accuracy" in names
    for name in names:
        for kind, start in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
            content = (exported / "figures" / f"{name}.{kind}").read_bytes()
            assert content.startswith(start)
    drawn = (exported / "figures" / "pareto-tps-accuracy.svg").read_text()
    assert "var(--" not in drawn
    assert "#0102" not in drawn
    assert "simulated" in drawn


def test_exported_tables_hold_the_unrounded_numbers(exported: Path, small_run: Run) -> None:
    rows = list(csv.DictReader((exported / "tables" / "summary.csv").open()))
    measured = {m.cell: m for m in measure_run(small_run) if m.group == ALL}
    assert [row["Cell"] for row in rows] == [cell.label for cell in small_run.header.cells]
    for row in rows:
        assert float(row["TPS"]) == measured[row["Cell"]].tps


def test_the_json_is_strict_and_complete(exported: Path, small_run: Run) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    (report,) = json.loads((exported / "report.json").read_text(), parse_constant=refuse)
    assert report["run_id"] == small_run.header.run_id
    assert len(report["measurements"]) == len(View(small_run).groups) * len(small_run.header.cells)
    assert report["comparisons"]
    conditions = [(cell["label"], cell["method"], cell["knobs"], cell["batch"]) for cell in report["cells"]]
    assert conditions == [(c.label, c.method, c.knobs, c.batch) for c in small_run.header.cells]
    assert report["cautions"][0]["title"] == "Simulated"


def test_markdown_says_answer_and_table_and_escapes_names(small_run: Run) -> None:
    text = markdown_summary(small_run)
    assert text.startswith("<!-- hambench:")
    assert text.index("Simulated") < text.index("| Cell |")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "Cell" not in line]
    assert len(rows) == len(small_run.header.cells)
    named = replace(
        small_run, header=replace(small_run.header, run_id="<script>|x|`y`\n@all", model={"name": "*a*_b_"})
    )
    hostile = markdown_summary(named)
    assert "<script>" not in hostile
    assert "\\@all" in hostile
    assert "\\*a\\*" in hostile


def test_markdown_stays_under_the_limit_and_says_what_was_cut(small_run: Run) -> None:
    cells = tuple(
        replace(small_run.header.cells[0], method=f"m{i}", label=f"m{i}" + "n" * 300) for i in range(200)
    )
    text = markdown_summary(
        replace(small_run, header=replace(small_run.header, cells=cells), records=(), scores=())
    )
    assert len(text) < 65_536
    assert re.search(r"\d+ rows cut", text)
    assert MAX_CHARACTERS < 65_536


def test_escaped_text_is_one_line_without_markup() -> None:
    assert escape("a|b\n<c>[d](e)") == "a\\|b &lt;c&gt;\\[d\\]\\(e\\)"


def test_a_page_that_cannot_be_written_is_one_clear_line(small_run: Run, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(HambenchError, match=r"can't write .*report\.html"):
        write_html([small_run], blocked / "report.html")


def test_the_command_writes_page_export_and_markdown(small_run: Run, tmp_path: Path) -> None:
    page = tmp_path / "sub" / "r.html"
    arguments = [str(small_run.path), "-o", str(page), "--samples", "1", "--no-js"]
    arguments += ["--markdown", str(tmp_path / "r.md")]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout.strip() == str(page)
    assert page.read_text().startswith("<!doctype html>")
    assert "<script" not in page.read_text()
    assert "| Cell |" in (tmp_path / "r.md").read_text()


def test_the_command_refuses_what_is_no_run_and_no_number(tmp_path: Path) -> None:
    for arguments, words in (
        ([str(tmp_path)], "not a run folder"),
        ([str(tmp_path), "--samples", "few"], "--samples"),
    ):
        done = CliRunner().invoke(command, arguments)
        assert isinstance(done.exception, HambenchError)
        assert words in str(done.exception)


def test_watching_a_finished_run_ends_with_a_page_that_stands_still(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hambench.cli.report.WATCH_SECONDS", 0)
    page = tmp_path / "r.html"
    done = CliRunner().invoke(
        command,
        [str(tiny_run.path), "-o", str(page), "--watch", "--samples", "none"],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    assert 'http-equiv="refresh"' not in page.read_text()


def test_a_run_is_watched_until_nobody_writes_to_it(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two samples a run that adds some has all its records."""
    folder = Path(shutil.copytree(tiny_run.path, tmp_path / "run"))
    writer = RunWriter.resume(folder)
    rounds = []

    def sleep(_: float) -> None:
        rounds.append(page.read_text())
        if len(rounds) == 3:
            writer.__exit__(None, None, None)

    monkeypatch.setattr("hambench.cli.report.time", SimpleNamespace(sleep=sleep))
    page = tmp_path / "r.html"
    with writer:
        arguments = [str(folder), "-o", str(page), "--watch", "--samples", "none"]
        done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert len(rounds) == 3
    assert all('http-equiv="refresh"' in text for text in rounds)
    assert 'http-equiv="refresh"' not in page.read_text()
