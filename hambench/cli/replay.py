"""``hambench replay``: what drafters that see tokens only would do on the answers of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from hambench.cli._options import RunFolder
from hambench.cli._repeats import ListOption
from hambench.cli._streams import echo_json, echo_shown

DEFAULT = "prompt_lookup,suffix"


@click.command()
@click.argument("run", type=RunFolder())
@click.option(
    "--methods",
    cls=ListOption,
    default=DEFAULT,
    show_default=True,
    metavar="NAMES",
    help="Methods that propose from tokens alone, with knobs if you like: prompt_lookup[k=5],suffix[k=16].",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per row.")
def command(run: Path, methods: str, as_json: bool) -> None:
    """Replay METHODS on RUN's stored greedy answers, exactly and without a model, in seconds.

    Tokens per forward, acceptance by place and drafted rows are exact; the speed is foretold from what verifications
    of so many rows cost in the run, unless its answers were given in batches. Each method is followed by its oracle:
    the same proposals, cut where the target rejects them.
    """
    from hambench.analysis.drafts.replay import no_speed, render_replay, replay_run, replayable, source_cell
    from hambench.runner.axis_text import split_methods
    from hambench.runner.stored_prompts import prompt_ids_of
    from hambench.runner.sweep import Sweep, config_of
    from hambench.store import load_run

    stored = load_run(run)
    source = source_cell(stored)
    sweep = Sweep(model=source.model, methods=split_methods(methods))
    configs = [config_of(cell) for cell in sweep.expand(ask_availability=False).cells]
    replayable(configs)
    rows = replay_run(stored, prompt_ids_of(stored, source), configs)
    if as_json:
        for row in rows:
            echo_json(dataclasses.asdict(row))
    else:
        echo_shown(render_replay(rows, source.label, why_no_speed=no_speed(stored)))
