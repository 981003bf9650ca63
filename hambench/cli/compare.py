"""``hambench compare``: compares two stored runs, base and head."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hambench.cli._options import RunFolder, UserPath
from hambench.cli._outcome import EXIT_CODES, finish, outcome_options

if TYPE_CHECKING:
    from hambench.gating.checks import Outcome


@click.command(
    epilog=EXIT_CODES
    + """
\b
Examples:
  hambench compare runs/main runs/branch
  hambench compare runs/main runs/branch --markdown comment.md --junit compare.xml
"""
)
@click.argument("base", type=RunFolder(must_exist=False))
@click.argument("head", type=RunFolder(must_exist=False))
@click.option("--config", type=UserPath(path_type=Path), help="Defaults to ./hambench.toml, if there is one.")
@outcome_options
def command(base: Path, head: Path, config: Path | None, **options: Any) -> None:
    """Compare run HEAD with run BASE: counts, accuracy and speed.

    Counts are compared exactly and accuracy per sample. Speed is advisory, because the two runs were measured at
    different times, unless hambench.toml declares that it decides; `hambench gate` measures both in turns.
    """

    def make() -> Outcome:
        from hambench.analysis.metrics import METRIC_CLASSES
        from hambench.analysis.verdicts import Margins
        from hambench.gating.compare import compare_runs, load_side
        from hambench.gating.config import FILE, GateConfig, decide, margins_of, read_config

        path = config or (Path(FILE) if Path(FILE).is_file() else None)
        gate = read_config(path) if path is not None else GateConfig()
        runs = load_side(base, "base"), load_side(head, "head")
        margins = margins_of(gate.margin, Margins.of(runs[0]))
        outcome = compare_runs(*runs, margins=margins)
        return decide(outcome, gate.primary, kind="compare", classes=METRIC_CLASSES)

    finish(make, **options)
