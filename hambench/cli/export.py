"""``hambench export``: a run for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from hambench.cli._options import RunFolder, UserPath
from hambench.cli._streams import echo_shown
from hambench.errors import HambenchError


@click.command(
    epilog="""
\b
Examples:
  hambench export RUN -o steps.parquet
  hambench export RUN -o steps.csv
  hambench export RUN --lm-eval samples/
"""
)
@click.argument("run", type=RunFolder())
@click.option(
    "-o",
    "--output",
    type=UserPath(dir_okay=False, path_type=Path),
    help="A .parquet or .csv file to write, with a row per step.",
)
@click.option(
    "--lm-eval",
    "lm_eval",
    type=UserPath(file_okay=False, path_type=Path),
    help="A folder to write answers to as lm-eval's --log_samples does: one folder per cell, one file per task.",
)
def command(run: Path, output: Path | None, lm_eval: Path | None) -> None:
    """Write RUN for other programs: one tidy table of steps, or lm-eval's samples."""
    from hambench.analysis.exports.frames import write_steps
    from hambench.analysis.exports.lm_eval_samples import write_lm_eval_samples
    from hambench.store import load_run

    if output is None and lm_eval is None:
        raise HambenchError("name a file to write (-o steps.parquet) or a folder (--lm-eval DIR)")
    loaded = load_run(run)
    if output is not None:
        num_rows = write_steps(loaded, output)
        echo_shown(f"{output}: {num_rows} steps")
    if lm_eval is not None:
        files = write_lm_eval_samples(loaded, lm_eval)
        echo_shown(f"{lm_eval}: {len(files)} files")
