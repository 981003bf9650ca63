"""``hambench hamburger``: imports checkpoints of the public implementation, segments answers, trains weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from hambench.cli._hamburger_measure import measure
from hambench.cli._hamburger_overlap import overlap, protected_rows
from hambench.cli._options import DEFAULT_MODEL, FiniteRange, UserPath
from hambench.cli._repeats import ListOption
from hambench.errors import HambenchError

STRATEGIES = ("decreasing", "decreasing_v2", "sliding", "small_group")


@click.group()
def command() -> None:
    """Import, train and measure weights for the HAMburger method."""


command.add_command(overlap)
command.add_command(measure)


@command.command(
    "import",
    epilog="""
\b
Example:
  hambench hamburger import hamburger.ckpt --base meta-llama--Llama-3.2-1B-Instruct --out hamburger-1b
  hambench generate --model meta-llama--Llama-3.2-1B-Instruct --method hamburger --checkpoint hamburger-1b "Hello"
""",
)
@click.argument("ckpt", type=UserPath(path_type=Path))
@click.option(
    "--base",
    required=True,
    type=UserPath(path_type=Path),
    help="Folder of the model that it was trained from; config.json is enough.",
)
@click.option("--out", required=True, type=UserPath(path_type=Path), help="Folder to write to.")
@click.option(
    "--feature-layers",
    cls=ListOption,
    metavar="LIST",
    help="Replaces 3,7,11,15, the public code's constant.",
)
@click.option("--merge-heads", type=int, help="Replaces 64, the public code's constant.")
def import_(ckpt: Path, base: Path, out: Path, feature_layers: str | None, merge_heads: int | None) -> None:
    """Convert Lightning checkpoint CKPT to a folder of safetensors.

    Does not run any code that the checkpoint contains.
    """
    from hambench.methods.hamburger.checkpoint import save
    from hambench.methods.hamburger.import_lightning import import_checkpoint
    from hambench.methods.hamburger.weights_folder import CONFIG_NAME

    if (out / CONFIG_NAME).exists():
        raise HambenchError(f"{out} already holds HAMburger weights; give another --out")
    layers = None if feature_layers is None else parse_layers(feature_layers)
    checkpoint = import_checkpoint(ckpt, base, feature_layers=layers, merge_heads=merge_heads)
    save(checkpoint, out)
    architecture = checkpoint.architecture
    click.echo(
        f"{out}: {len(checkpoint.tensors)} tensors, {architecture.num_micro_layers} micro layers, up to "
        f"{architecture.max_micro_steps} tokens per macro-step, features of layers "
        f"{', '.join(map(str, architecture.feature_layers))}"
    )


def parse_layers(text: str) -> tuple[int, ...]:
    """Parses layer numbers such as ``"3,7"``.

    Raises:
        HambenchError: If it is anything else.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise HambenchError(
            f"feature-layers must be comma-separated numbers, e.g. 3,7,11,15, got {text!r}"
        ) from error


@command.command(
    epilog="""
\b
Examples:
  hambench hamburger segment chats.jsonl --out segments.jsonl
  hambench hamburger segment chats.jsonl --out s.jsonl --strategy sliding --threshold 0.5 --model FOLDER
""",
)
@click.argument("conversations", type=UserPath(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=UserPath(path_type=Path),
    help="JSONL to write: token ids, prompt length, segments.",
)
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME", help="The base.")
@click.option("--strategy", type=click.Choice(STRATEGIES), default="decreasing_v2", show_default=True)
@click.option("--metric", type=click.Choice(["entropy", "probability"]), default="entropy", show_default=True)
@click.option("--max-length", type=int, default=4, show_default=True, help="Maximum tokens per segment.")
@click.option(
    "--ratio", type=FiniteRange(), default=0.3, show_default=True, help="decreasing, decreasing_v2."
)
@click.option(
    "--threshold",
    type=FiniteRange(),
    help="Defaults to 0.05 (decreasing_v2), 4.139 (sliding) or 0.787 (small_group).",
)
def segment(conversations: Path, out: Path, model: str, metric: str, **rule: Any) -> None:
    """Split responses into segments that the base model finds easy.

    CONVERSATIONS is a JSONL file.
    """
    from hambench.methods.hamburger.data.segment import segment_file
    from hambench.methods.hamburger.data.segmentation import Strategy

    try:
        strategy = Strategy(name=rule.pop("strategy"), **rule)
    except ValueError as error:
        raise HambenchError(str(error)) from error
    counted = segment_file(conversations, out, model_name=model, strategy=strategy, metric=metric)  # type: ignore[arg-type]
    click.echo(
        f"{out}: {counted.responses} responses, {counted.tokens} tokens, {counted.segments} segments, "
        f"{counted.tokens_per_segment:.3f} tokens per segment"
    )
    for length, count in counted.histogram.items():
        click.echo(f"  {length} token(s)  {count:8d} segments  {count / counted.segments:6.1%}")
    shares = "  ".join(f"{position}: {share:.1%}" for position, share in counted.share_by_position.items())
    click.echo(f"  share of tokens by position in their segment  {shares}")


@command.command(
    epilog="""
\b
Examples:
  hambench hamburger train --minutes 60 --out weights
  hambench hamburger train --self-distil 2000 --read 4000 --minutes 90 --out weights
  hambench hamburger train --model FOLDER --recipe paper --data chats.jsonl --data sums.jsonl:20 --out weights
  hambench hamburger train --self-distil 2000 --read 4000 --minutes 90 --out weights --resume
  hambench hamburger train --corpus weights --recipe mine.toml --steps micro=800,reader=200,student=50 --out mine
  accelerate launch -m hambench hamburger train ...        (several GPUs)
""",
)
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME", help="The base.")
@click.option(
    "--recipe",
    default="small",
    show_default=True,
    metavar="NAME|FILE.toml",
    help="small, continued, paper, or a file that names one of them (from = ...) and the fields it changes.",
)
@click.option(
    "--data",
    "sources",
    multiple=True,
    metavar="FILE[:TIMES]",
    help="JSONL of conversations; TIMES repeats its rows.",
)
@click.option("--segments", type=UserPath(path_type=Path), help="A file that `segment` wrote (recipe paper).")
@click.option(
    "--self-distil",
    type=int,
    metavar="N",
    help="Train on the base's own answers to N generated prompts. Without any data, recipes that learn from the base "
    "take 70 prompts and half as many windows for each of --minutes.",
)
@click.option(
    "--read",
    type=click.IntRange(min=0),
    metavar="N",
    help="Also train on N windows of installed packages' sources and documentation.",
)
@click.option(
    "--corpus",
    type=UserPath(path_type=Path),
    metavar="FOLDER",
    help="Train on the answers, windows and lessons of another run (its --out), and hold out the same answers.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=160,
    show_default=True,
    help="Most tokens of a self-distilled answer.",
)
@click.option(
    "--out", required=True, type=UserPath(path_type=Path), help="Folder for the run and its weights."
)
@click.option("--epochs", type=FiniteRange(), help="Replaces the recipe's number.")
@click.option(
    "--steps",
    cls=ListOption,
    metavar="N|STAGE=N,...",
    help="Optimizer steps by stage, e.g. micro=800,reader=200,student=50, instead of epochs; "
    "N alone counts for all stages but micro.",
)
@click.option(
    "--minutes",
    type=FiniteRange(min=0, min_open=True),
    help="Wall-clock budget, over which the learning rate decays.",
)
@click.option("--lora-rank", type=int, help="Replaces the recipe's rank; 0 trains the whole base.")
@click.option(
    "--held-out", type=FiniteRange(min=0, max=1), help="Share of responses to hold out; 0.05 by default."
)
@click.option(
    "--save-minutes", type=FiniteRange(min=0), default=5.0, show_default=True, help="Minutes between saves."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--start-from",
    type=UserPath(path_type=Path),
    metavar="FOLDER",
    help="Start from an earlier run's weights, of the same base and architecture.",
)
@click.option(
    "--keep-apart/--no-keep-apart",
    default=True,
    show_default=True,
    help="Leave out answers and windows that share 13 words in a row with a suite's row.",
)
@click.option("--resume", is_flag=True, help="Continue from the last save in --out.")
def train(model: str, recipe: str, out: Path, **options: Any) -> None:
    """Train HAMburger weights for a base model."""
    from hambench.bench.hamburger.card import card_path, has_current_card, run_facts, write_card
    from hambench.methods.hamburger.data.pipeline import DataSource
    from hambench.methods.hamburger.data.pipeline import train as run
    from hambench.methods.hamburger.data.self_distill import SelfDistillation, default_amounts
    from hambench.methods.hamburger.training.budget import RunOptions, parse_steps
    from hambench.methods.hamburger.training.recipe_files import recipe_of
    from hambench.models.target import load
    from hambench.runner.backend import run_by

    changes = {name: options[name] for name in ("epochs", "lora_rank") if options[name] is not None}
    asked = options["self_distil"]
    if asked is not None and asked < 2:
        raise HambenchError(f"self-distil must be >= 2 prompts (one is held out), got {asked}")
    try:
        chosen = dataclasses.replace(recipe_of(recipe), **changes)
    except ValueError as error:
        raise HambenchError(str(error)) from error
    num_windows = options["read"]
    has_data = any(options[name] for name in ("sources", "segments", "corpus")) or asked is not None
    if not has_data and chosen.objective == "distil":
        asked, windows = default_amounts(options["minutes"])
        num_windows = windows if num_windows is None else num_windows
    held_out = options["held_out"]
    if options["corpus"] is not None and held_out is not None:
        raise HambenchError(
            f"the corpus says which answers are held out, the same for all runs; leave --held-out {held_out:g} out"
        )
    # before anything long begins
    card_path(out)
    steps = options["steps"]
    trainer = run(
        model,
        chosen,
        RunOptions(
            out=out,
            seed=options["seed"],
            steps=None if steps is None else parse_steps(steps, chosen),
            minutes=options["minutes"],
            save_minutes=options["save_minutes"],
            resume=options["resume"],
            start_from=options["start_from"],
            held_out_share=0.05 if held_out is None else held_out,
            progress=True,
            facts=run_facts(),
        ),
        sources=[DataSource.parse(text) for text in options["sources"]],
        segments=options["segments"],
        self_distillation=None
        if asked is None
        else SelfDistillation(
            num_prompts=asked, num_user_turns=asked // 5, max_new_tokens=options["max_new_tokens"]
        ),
        num_windows=num_windows or 0,
        corpus_folder=options["corpus"],
        protected=(lambda: protected_rows(None)) if options["keep_apart"] else None,
        engine=lambda: run_by(load(model), kernels="auto"),
        report=click.echo,
    )
    if trainer.accelerator.is_main_process and not has_current_card(out):
        write_card(out)
    if trainer.was_finished:
        click.echo(
            f"{out}: this run had ended, so nothing was changed; give more --steps or --minutes to go on"
        )
        return
    click.echo(f"{out}: {trainer.step} steps; held out: {trainer.held_out}")
    click.echo(f"hambench generate --model {model} --method hamburger --checkpoint {out} 'Hello'")
