"""``hambench hamburger``: import the public implementation's checkpoints, cut answers in segments, train weights."""

from __future__ import annotations

from pathlib import Path

import click

from hambench.errors import HambenchError


@click.group()
def command() -> None:
    """Weights for the HAMburger method: import, segment, train."""


@command.command(
    "import",
    epilog="""
\b
Example:
  hambench hamburger import hamburger.ckpt --base meta-llama--Llama-3.2-1B-Instruct --out hamburger-1b
  hambench generate --model meta-llama--Llama-3.2-1B-Instruct --method hamburger --checkpoint hamburger-1b "Hello"
""",
)
@click.argument("ckpt", type=click.Path(path_type=Path))
@click.option(
    "--base",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the model it was made from; config.json is enough.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--feature-layers", metavar="LIST", help="Instead of 3,7,11,15, which the public code fixes.")
@click.option("--merge-heads", type=int, help="Instead of 64, which the public code fixes.")
def import_(ckpt: Path, base: Path, out: Path, feature_layers: str | None, merge_heads: int | None) -> None:
    """Convert the Lightning checkpoint CKPT to a folder of safetensors; no code in it is run."""
    from hambench.methods.hamburger.checkpoint import CONFIG_NAME, save
    from hambench.methods.hamburger.lightning import import_checkpoint

    if (out / CONFIG_NAME).exists():
        raise HambenchError(f"{out} holds HAMburger weights already; give another --out")
    layers = None if feature_layers is None else parse_layers(feature_layers)
    checkpoint = import_checkpoint(ckpt, base, feature_layers=layers, merge_heads=merge_heads)
    save(checkpoint, out)
    architecture = checkpoint.architecture
    click.echo(
        f"{out}: {len(checkpoint.tensors)} tensors, {architecture.num_micro_layers} micro layers, up to "
        f"{architecture.max_micro_steps} tokens a macro-step, features of layers "
        f"{', '.join(map(str, architecture.feature_layers))}"
    )


def parse_layers(text: str) -> tuple[int, ...]:
    """``"3,7"`` as numbers.

    Raises:
        HambenchError: If it is anything else.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise HambenchError(f"feature-layers must be numbers with commas, e.g. 3,7,11,15, got {text!r}") from error
