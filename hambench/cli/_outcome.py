"""Output and exit codes that ``compare`` and ``gate`` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from hambench.cli._options import UserPath
from hambench.cli._streams import echo_shown

if TYPE_CHECKING:
    from hambench.gating.checks import Outcome

F = TypeVar("F", bound=Callable[..., Any])

EXIT_CODES = """
\b
Exit codes:
  0  no regression in any deciding check
  1  a regression (fresh blocks confirm a speed regression first)
  2  wrong usage or configuration
  3  nothing measured, or not comparable (never a pass)
  4  undecided, or a count better than its baseline file (with --strict)
  5  a benchmark crashed
"""


def outcome_options(function: F) -> F:
    """Adds ``--strict`` and the output files."""
    options = [
        click.option("--strict", is_flag=True, help="Exit with 4 instead of 0 if undecided."),
        click.option(
            "--markdown", type=UserPath(path_type=Path), help="Write a Markdown comment for a pull request."
        ),
        click.option("--junit", type=UserPath(path_type=Path), help="Write JUnit XML."),
        click.option(
            "--json",
            "json_path",
            type=UserPath(path_type=Path),
            help="Write everything as JSON, with raw readings.",
        ),
        click.option("--gab", type=UserPath(path_type=Path), help="Write JSON for github-action-benchmark."),
        click.option(
            "--summary", is_flag=True, help="Append to the CI job's summary ($GITHUB_STEP_SUMMARY)."
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def finish(
    make: Callable[[], Outcome],
    *,
    strict: bool,
    markdown: Path | None,
    junit: Path | None,
    json_path: Path | None,
    gab: Path | None,
    summary: bool,
) -> NoReturn:
    """Makes the outcome, writes the requested files and exits with its code, even with nothing to judge."""
    from hambench.errors import IncompleteError
    from hambench.files import write_text
    from hambench.gating.checks import CrashedError, Outcome
    from hambench.gating.exports import render_action_benchmark, render_json, render_junit
    from hambench.gating.markdown import append_job_summary, render_markdown

    try:
        outcome = make()
    except CrashedError as error:
        outcome = Outcome(title="hambench", base="–", head="–", checks=(), crashes=(str(error),))
    except IncompleteError as error:
        # write the files anyway, so that a CI job never reads those of an earlier run
        outcome = Outcome(title="hambench", base="–", head="–", checks=(), notes=(str(error),))
    text = render_markdown(outcome, strict=strict)
    if markdown is not None:
        write_text(markdown, text)
    if junit is not None:
        write_text(junit, render_junit(outcome, strict=strict))
    if json_path is not None:
        write_text(json_path, render_json(outcome, strict=strict))
    if gab is not None:
        write_text(gab, render_action_benchmark(outcome))
    if summary:
        append_job_summary(text)
    print_outcome(outcome, strict=strict)
    raise SystemExit(int(outcome.exit_code(strict=strict)))


def print_outcome(outcome: Outcome, *, strict: bool) -> None:
    """Prints the outcome: the deciding checks, then the number of advisory rows with a problem."""
    from hambench.gating.markdown import change_of, detectable_of

    for note in outcome.notes:
        echo_shown(f"! {note}")
    for line in outcome.crashes:
        echo_shown(f"crashed: {line}")
    ranked = outcome.ranked
    shown = [c for c in ranked if c.primary and c.verdict != "equivalent"]
    shown += [c for c in ranked if c.primary and c.verdict == "equivalent" and c.metric_class != "exact"]
    for check in shown:
        where = check.cell if check.group == "all" else f"{check.cell}, {check.group}"
        detectable = detectable_of(check)
        seen = f", found 4 in 5: {detectable}" if detectable != "–" else ""
        reason = f": {check.reason}" if check.reason else ""
        echo_shown(f"{check.verdict:<14} {check.metric} of {where}  {change_of(check)}{seen}{reason}")
    same = sum(c.primary and c.verdict == "equivalent" and c.metric_class == "exact" for c in ranked)
    if same:
        echo_shown(f"{'equivalent':<14} {same} exact counts")
    odd = [c for c in ranked if not c.primary and c.verdict in ("regressed", "not comparable")]
    for check in odd[:10]:
        where = check.cell if check.group == "all" else f"{check.cell}, {check.group}"
        echo_shown(f"advisory       {check.verdict}: {check.metric} of {where}  {change_of(check)}")
    echo_shown(outcome.headline(strict=strict))
