"""``hambench hamburger measure``: judges weights on held-out answers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click

from hambench.cli._options import DEFAULT_MODEL, UserPath
from hambench.cli._progress import say_step
from hambench.cli._repeats import ListOption
from hambench.errors import HambenchError


@click.command(
    epilog="""
\b
Examples:
  hambench hamburger measure --answers weights/held_out.jsonl --checkpoint weights
  hambench hamburger measure --answers weights/held_out.jsonl --checkpoint weights --limit 200 --json
""",
)
@click.option(
    "--answers",
    required=True,
    type=UserPath(path_type=Path),
    help="JSONL of the base's own greedy answers, e.g. a training run's held_out.jsonl.",
)
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME", help="The base.")
@click.option("--checkpoint", help="Folder of weights; defaults to those shipped for the model.")
@click.option(
    "--confidence",
    "confidences",
    cls=ListOption,
    default="0.5,0.7,0.8,0.9",
    show_default=True,
    metavar="LIST",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=40,
    show_default=True,
    help="Number of answers to use, the first ones of the file.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Tokens to use of each answer, and most tokens of a free-running one.",
)
@click.option("--card", is_flag=True, help="Also write the figures into README.md of --checkpoint.")
@click.option(
    "--plot",
    type=UserPath(path_type=Path),
    metavar="FILE",
    help="Also draw the reliability curve as .png, .pdf or .svg.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def measure(
    model: str,
    answers: Path,
    checkpoint: str | None,
    confidences: str,
    limit: int,
    tokens: int,
    card: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Judge weights on held-out answers of the base.

    Decodes along the answers (m, the number of tokens per macro-step; agreement; the stop head's reliability), asks
    the micro-step decoder at every token of them, and decodes freely from their prompts (m and regret). Confidences are
    added until next-token agreement can be interpolated at m = 1.25 and 1.5.
    """
    from hambench.bench.hamburger.card import card_path, check_plot_path, plot_reliability, write_card
    from hambench.bench.hamburger.text import as_json as to_json
    from hambench.bench.hamburger.text import lines_of
    from hambench.bench.hamburger.weights import judge_weights
    from hambench.methods.hamburger.base import tokenizer_of
    from hambench.methods.hamburger.data.segment import read_conversations
    from hambench.methods.hamburger.weights_folder import find_weights
    from hambench.models import target as models
    from hambench.runner.backend import choose_kernels, run_by

    chosen = parse_confidences(confidences)
    folder = find_weights(checkpoint, model)
    if card:
        if checkpoint is None:
            raise HambenchError("card needs --checkpoint, the folder to write README.md to")
        card_path(folder)
    if plot is not None:
        check_plot_path(plot)
    tokenizer, _ = tokenizer_of(models.locate(model)[0])
    eos_id = None if tokenizer is None else tokenizer.eos_token_id
    rows = list(read_conversations(answers, tokenizer, eos_id=eos_id))[:limit]
    target = models.load(model)
    kernels = choose_kernels("auto", target)
    judged = judge_weights(
        run_by(target, kernels=kernels),
        rows,
        checkpoint=checkpoint,
        confidences=chosen,
        max_tokens=tokens,
        kernels=kernels,
        answers_from=answers.name,
        say=say_step,
    )
    if card:
        write_card(folder, judged)
    curve = judged.reliability
    if plot is not None and curve is None:
        click.echo(f"{plot} is not written: the stop head had no decision to make", err=True)
    elif plot is not None and curve is not None:
        title = f"stop head at confidence {judged.reliability_confidence:g}"
        plot_reliability(curve, plot, title=title)
    click.echo(json.dumps(to_json(judged), indent=1) if as_json else "\n".join(lines_of(judged)))


def parse_confidences(text: str) -> list[float]:
    """Parses confidences such as ``"0.5,0.9"``; repeated ones count once.

    Raises:
        HambenchError: If one is not a finite number of at least 0.
    """
    try:
        values = [float(part) for part in text.split(",")]
        if not all(0 <= value < math.inf for value in values):
            raise ValueError
    except ValueError as error:
        raise HambenchError(
            f"confidence must be comma-separated numbers of at least 0, e.g. 0.5,0.9, got {text!r}"
        ) from error
    return list(dict.fromkeys(values))
