"""``hambench report``: writes one self-contained HTML report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hambench.cli._options import RunFolder, UserPath, price_option, price_per_hour
from hambench.errors import HambenchError
from hambench.files import write_text

if TYPE_CHECKING:
    from hambench.reports import ReportOptions
    from hambench.reports.options import SampleLimit
    from hambench.store import Run

WATCH_SECONDS = 5
_FILE = UserPath(exists=True, dir_okay=False, path_type=Path)
_FOLDER = UserPath(exists=True, file_okay=False, path_type=Path)


@click.command(
    epilog="""
\b
Examples:
  hambench report runs/2026-01-31-longbench
  hambench report RUN_A RUN_B -o both.html --open
  hambench report RUN --export figures-for-the-paper
  hambench report RUN --latex table.tex
  hambench report RUN --markdown - >> "$GITHUB_STEP_SUMMARY"
"""
)
@click.argument("runs", nargs=-1, required=True, type=RunFolder())
@click.option(
    "-o",
    "--output",
    type=UserPath(dir_okay=False, path_type=Path),
    help="The page to write; defaults to report.html in the first run's folder.",
)
@click.option(
    "--export",
    "export_folder",
    type=UserPath(file_okay=False, path_type=Path),
    help="Also write figures (SVG, PNG, PDF), tables (CSV) and report.json to this folder.",
)
@click.option(
    "--markdown", metavar="FILE", help="Also write a summary for a pull request; - writes to stdout."
)
@click.option(
    "--latex",
    metavar="FILE",
    help="Also write the table of settings for a paper (booktabs); - writes to stdout.",
)
@price_option
@click.option(
    "--samples",
    default="200",
    show_default=True,
    metavar="N|all|none",
    help="Number of samples in the drill-down.",
)
@click.option("--history", type=_FOLDER, help="Show the regressions of this history.")
@click.option(
    "--kernels", type=_FILE, metavar="JSON", help="Show this output of `hambench bench kernels --json`."
)
@click.option("--profile", type=_FILE, metavar="JSON", help="Show this output of `hambench profile --json`.")
@click.option(
    "--published",
    is_flag=True,
    help="Show the HAMburger paper's reported numbers (from other hardware) next to the run's.",
)
@click.option("--no-js", is_flag=True, help="Write a page without scripts.")
@click.option("--include-host", is_flag=True, help="Keep absolute paths in commands and model names.")
@click.option("--open", "open_page", is_flag=True, help="Open the page in the browser.")
@click.option("--watch", is_flag=True, help="Keep rewriting the page until the run ends.")
def command(
    runs: tuple[Path, ...],
    output: Path | None,
    export_folder: Path | None,
    markdown: str | None,
    latex: str | None,
    price: str | None,
    samples: str,
    history: Path | None,
    kernels: Path | None,
    profile: Path | None,
    published: bool,
    no_js: bool,
    include_host: bool,
    open_page: bool,
    watch: bool,
) -> None:
    """Write a self-contained HTML report of one or more RUNs."""
    from hambench.reports import ReportOptions, export, latex_table, markdown_summary, write_html

    options = ReportOptions(
        samples=sample_limit(samples),
        script=not no_js,
        include_host=include_host,
        history=history,
        kernels=kernels,
        profile=profile,
        published=published,
        refresh_s=WATCH_SECONDS if watch else None,
    )
    path = output if output is not None else runs[0] / "report.html"
    hourly = price_per_hour(price)
    loaded = _load(runs, hourly)
    write_html(loaded, path, options=options)
    if open_page:
        click.launch(path.resolve().as_uri())
    if watch:
        loaded = _watch(runs, path, options, hourly)
    if export_folder is not None:
        written = export(loaded, export_folder, options=options)
        click.echo(f"exported {len(written)} files to {export_folder}", err=True)
    if markdown is not None:
        _write_or_print(markdown, "\n".join(markdown_summary(run) for run in loaded))
    if latex is not None:
        _write_or_print(latex, "\n".join(latex_table(run) for run in loaded))
    # a stream of Markdown or LaTeX holds nothing else
    if "-" not in (markdown, latex):
        click.echo(path)


def _write_or_print(name: str, text: str) -> None:
    if name == "-":
        click.echo(text)
    else:
        write_text(Path(name), text)


def _load(folders: tuple[Path, ...], hourly: float | None = None) -> list[Run]:
    from hambench.store import load_run

    return [load_run(folder).priced(hourly) for folder in dict.fromkeys(folders)]


def _watch(folders: tuple[Path, ...], path: Path, options: ReportOptions, hourly: float | None) -> list[Run]:
    """Rewrites the page on new records until the runs are complete and nobody writes to them any more."""
    import dataclasses

    from hambench.reports import write_html

    loaded, seen, goes_on = _load(folders, hourly), -1, False
    while True:
        size = sum(len(run.records) + len(run.scores) for run in loaded)
        # between two samples a run that adds some has all its records, and one whose answers are judged has them too
        finished = all(run.complete for run in loaded) and size == seen and not goes_on
        if finished:
            # the final page must not reload itself
            write_html(loaded, path, options=dataclasses.replace(options, refresh_s=None))
            return loaded
        if size != seen:
            write_html(loaded, path, options=options)
            click.echo(f"{path}: {sum(len(run.measured) for run in loaded)} answers", err=True)
        seen = size
        time.sleep(WATCH_SECONDS)
        # asked before they are read: what was written last is then on the page
        goes_on = any(map(_is_written, folders))
        loaded = _load(folders, hourly)


def _is_written(folder: Path) -> bool:
    """Returns whether another process has the run and may go on writing."""
    from filelock import FileLock, Timeout

    from hambench.store import LOCK

    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        # a stored run that is only to be read
        return False


def sample_limit(text: str) -> SampleLimit:
    """Parses ``--samples``.

    Raises:
        HambenchError: If it is neither a number nor ``all`` nor ``none``.
    """
    if text == "all":
        return "all"
    if text == "none":
        return "none"
    if not text.isdecimal():
        raise HambenchError(f"--samples must be a number, all or none, got {text!r}")
    return int(text)
