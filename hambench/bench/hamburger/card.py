"""The card of HAMburger weights, and the picture of the stop head's reliability curve.

The card is a README.md whose every figure comes from the run's records or from ``measure``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hambench.bench.hamburger.text import number, spread
from hambench.errors import HambenchError
from hambench.files import replacing, write_text
from hambench.machine.fingerprint import fingerprint
from hambench.methods.hamburger.checkpoint import digest
from hambench.methods.hamburger.judging.reliability import markdown_table
from hambench.methods.hamburger.training.recipes import RECIPES
from hambench.methods.hamburger.weights_folder import read_config

if TYPE_CHECKING:
    from hambench.bench.hamburger.weights import WeightsJudgement
    from hambench.methods.hamburger.judging.reliability import Reliability

CARD_NAME = "README.md"
_MARK = "<!-- written by hambench hamburger -->"
_FACTS = (
    "cpu",
    "torch_threads",
    "gpu",
    "python",
    "torch",
    "transformers",
    "hambench",
    "commit",
    "commit_dirty",
)


def run_facts() -> dict[str, Any]:
    """Returns machine, versions and commit, for the provenance of a run."""
    found = fingerprint()
    return {name: found[name] for name in _FACTS if found.get(name) is not None}


def card_path(folder: Path) -> Path:
    """Returns where the card of the weights in a folder goes.

    Raises:
        HambenchError: If somebody else's README.md is there.
    """
    path = folder / CARD_NAME
    if path.is_file() and _MARK not in path.read_text(encoding="utf-8"):
        raise HambenchError(f"{path} was not written by hambench; move it away to have a card written")
    return path


def write_card(folder: Path, judged: WeightsJudgement | None = None) -> None:
    """Writes the card of the weights in a folder; replaces one that it wrote, and no other.

    Args:
        folder: Folder of weights, as a training run leaves it.
        judged: Figures to show; without them the card names the command that gives them.

    Raises:
        HambenchError: If the folder has a README.md by somebody else.
        ModelError: If it holds no weights.
    """
    path, config = card_path(folder), read_config(folder)
    size = sum((folder / name).stat().st_size for name in config["files"])
    sections = [_head(config, size, digest(folder)), _data(config), _training(config)]
    sections.append(_NO_FIGURES if judged is None else _figures(judged))
    write_text(path, "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n")


_NO_FIGURES = [
    "## Held-out figures",
    "`hambench hamburger measure --answers FOLDER/held_out.jsonl --checkpoint FOLDER --card` writes them here.",
]


def _head(config: Mapping[str, Any], size: int, sha256: str) -> list[str]:
    architecture = config["architecture"]
    layers = ", ".join(map(str, architecture["feature_layers"]))
    return [
        f"# HAMburger weights for {config['base']['name']}",
        _MARK,
        "",
        "| | |",
        "|---|---|",
        f"| SHA-256 of hamburger.json | `{sha256}` |",
        f"| size | {size / 2**20:.1f} MiB in {len(config['files'])} shards |",
        f"| architecture | {architecture['num_micro_layers']} micro layers, up to {architecture['max_micro_steps']} "
        f"tokens a macro-step, features of layers {layers}, {architecture['merge_heads']} merge heads |",
        f"| changes to the base | `{config['base_weights']}` |",
    ]


def _data(config: Mapping[str, Any]) -> list[str]:
    data = config.get("provenance", {}).get("data", {})
    if not data:
        return []
    return ["## Data", "| | |", "|---|---|"] + [
        f"| {name.replace('_', ' ')} | {value:,} |" if isinstance(value, int) else f"| {name} | `{value}` |"
        for name, value in data.items()
    ]


def _training(config: Mapping[str, Any]) -> list[str]:
    told = config.get("provenance", {})
    recipe = told.get("recipe")
    if not recipe:
        return []
    lines = ["## Training", "| | |", "|---|---|", f"| recipe | {recipe['name']}{_changes(recipe)} |"]
    for name, value in told.get("steps", {}).items():
        lines.append(f"| steps of {name} | {value:,} |")
    for name in ("seed", "minutes", "seconds", "start_from"):
        if told.get(name) is not None:
            lines.append(f"| {name.replace('_', ' ')} | {told[name]} |")
    for name, value in told.get("facts", {}).items():
        lines.append(f"| {name.replace('_', ' ')} | {value} |")
    for name in ("calibration", "held_out"):
        for key, value in told.get(name, {}).items():
            shown = f"{value:.4f}" if isinstance(value, float) else value
            lines.append(f"| {name.replace('_', ' ')}: {key.replace('_', ' ')} | {shown} |")
    return lines


def _changes(recipe: Mapping[str, Any]) -> str:
    known = RECIPES.get(recipe["name"])
    if known is None:
        return f": `{json.dumps(recipe)}`"
    own = json.loads(json.dumps(dataclasses.asdict(known)))
    changed = {name: value for name, value in recipe.items() if own.get(name) != value}
    return f" with `{json.dumps(changed)}`" if changed else ""


def _figures(judged: WeightsJudgement) -> list[str]:
    lines = [
        "## Held-out figures",
        f"`hambench hamburger measure` on {judged.answers} answers of the base, {judged.tokens:,} tokens "
        f"({judged.kernels} kernels); the base chooses {judged.base_again:.1%} of these tokens again. Brackets "
        "hold 95 % intervals over answers.",
        "",
        "| confidence | m along the answers | equal to the base's | next token after merged slots | m, free-running | "
        "regret, nats per token | repetitive answers |",
        "|---|---|---|---|---|---|---|",
    ]
    free = {each.confidence: each for each in judged.free_running}
    for each in judged.along:
        own = free.get(each.confidence)
        cells = (
            f"{each.confidence:g}",
            spread(each.m, 2),
            spread(each.same),
            spread(each.next_token),
            *(
                ("–", "–", "–")
                if own is None
                else (spread(own.m, 2), spread(own.regret), f"{own.repetitive} of {own.answers}")
            ),
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| | |", "|---|---|"]
    for m, share in judged.next_token_at_m.items():
        lines.append(f"| next token after merged slots at m = {m} | {spread(share)} |")
    for place, share in judged.token_accuracy.items():
        lines.append(f"| token {place} of a macro-step right, teacher forced | {spread(share)} |")
    if judged.reliability is not None:
        lines += [
            "",
            f"The stop head along the answers at confidence {judged.reliability_confidence:g} (expected "
            f"calibration error {number(judged.reliability.ece)}):",
            "",
            *markdown_table(judged.reliability),
        ]
    return lines


_PLOT_KINDS = ("png", "pdf", "svg")


def check_plot_path(path: Path) -> None:
    """Checks that the file's name says what to write.

    Raises:
        HambenchError: If it ends in something else.
    """
    if path.suffix.removeprefix(".").lower() not in _PLOT_KINDS:
        raise HambenchError(f"plot must be a .png, .pdf or .svg file, got {str(path)!r}")


def plot_reliability(curve: Reliability, path: Path, *, title: str) -> None:
    """Draws how often continuing was right against P(continue); the area of a dot is its number of decisions.

    Args:
        curve: The curve.
        path: File to write, see :func:`check_plot_path`.
        title: Shown above.
    """
    from hambench.reports.draw.canvas import GRID, INK, MUTED, Canvas

    canvas = Canvas("reliability", width=4.4, height=4.2)
    (ax,) = canvas.axes
    parts = [part for part in curve.bins if part.count]
    xs = [float(part.mean_probability or 0) for part in parts]
    ys = [float(part.share_right or 0) for part in parts]
    largest = max(part.count for part in parts)
    ax.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1)
    ax.plot(xs, ys, color=INK)
    ax.scatter(
        xs, ys, s=[20 + 180 * part.count / largest for part in parts], color=INK, edgecolors=GRID, zorder=3
    )
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xlabel("P(continue)")
    ax.set_ylabel("share where continuing was right")
    ax.set_title(f"{title}: {curve.count:,} decisions, ECE {curve.ece:.3f}", fontsize=9)
    kind = path.suffix.removeprefix(".").lower()
    content = canvas.file_svg().encode() if kind == "svg" else canvas.raster(kind)
    with replacing(path) as partial:
        partial.write_bytes(content)
