"""How ``compare`` and ``gate`` write what they found, and the exit codes they share."""

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
  0  no regression in what decides
  1  a regression (a slower speed only after fresh blocks confirmed it)
  2  wrong usage or configuration
  3  nothing measured, or not comparable: never a pass
  4  undecided, or a count better than its baseline file (with --strict)
  5  a benchmark crashed
"""


def outcome_options(function: F) -> F:
    """``--strict`` and where to write what."""
    options = [
        click.option("--strict", is_flag=True, help="Undecided is exit code 4, not 0."),
        click.option("--markdown", type=UserPath(path_type=Path), help="For a pull request's comment."),
        click.option("--junit", type=UserPath(path_type=Path), help="JUnit XML."),
        click.option(
            "--json", "json_path", type=UserPath(path_type=Path), help="Everything, raw readings too."
        ),
        click.option("--gab", type=UserPath(path_type=Path), help="For github-action-benchmark."),
        click.option("--summary", is_flag=True, help="Append to the job's summary ($GITHUB_STEP_SUMMARY)."),
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
    """Makes the outcome, writes it wherever asked, and exits with its code; also when there is nothing to judge."""
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
        # the files are still written: a job that reads them must not find yesterday's
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
    """The outcome for a terminal: what decides, then how many advisory rows are not fine."""
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
