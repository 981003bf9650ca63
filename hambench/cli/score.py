"""``hambench score RUN``: scores a run again from its stored text."""

from __future__ import annotations

from pathlib import Path

import click

from hambench.cli._options import RunFolder
from hambench.cli._streams import echo_json, echo_shown


@click.command()
@click.argument("run", type=RunFolder())
@click.option("--allow-code-execution", is_flag=True, help="Run programs that the model wrote, in a sandbox.")
@click.option("--dry-run", is_flag=True, help="Compare with the stored scores without writing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run: Path, allow_code_execution: bool, dry_run: bool, as_json: bool) -> None:
    """Score RUN again from its stored text; needs no model.

    New scores are added to the run and replace older ones wherever scores are read. The older ones stay in the file,
    with the version of their scorer.
    """
    from hambench.errors import HambenchError, IncompleteError
    from hambench.groups import asks_accuracy
    from hambench.store import RunWriter, load_run
    from hambench.suites import check_plans, score
    from hambench.suites.rescore import changes

    loaded = load_run(run)
    if not loaded.header.suite_spec.get("tasks"):
        raise HambenchError(f"{run} has nothing to score: its suite measures speed only")
    if not asks_accuracy(loaded.header.suite_spec):
        raise HambenchError(f"{run} has nothing to score: no row of its prompts has a reference and a metric")
    if not loaded.measured:
        raise IncompleteError(f"{run} has no answers to score: nothing was measured")
    check_plans(loaded.header.suite_spec)
    scores = score(
        loaded.header.suite_spec, loaded.samples, loaded.measured, allow_code_execution=allow_code_execution
    )
    found = changes(loaded.scores, scores)
    # a scorer that can't run now (code execution off) must not replace an existing score
    valid = {(s.cell, s.sample_id, s.repeat, s.metric) for s in loaded.scores if s.points is not None}
    kept = [
        s for s in scores if s.points is not None or (s.cell, s.sample_id, s.repeat, s.metric) not in valid
    ]
    if not dry_run and kept:
        with RunWriter.resume(run) as writer:
            writer.append_scores(kept)
    if as_json:
        echo_json(found.as_dict())
        return
    echo_shown(found.summary())
    for line in found.details():
        echo_shown(line)
