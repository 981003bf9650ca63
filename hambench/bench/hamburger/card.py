"""The card of HAMburger weights, and the picture of the stop head's reliability curve.

The card is a README.md whose every figure comes from the run's records or from ``measure``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hambench.bench.hamburger.text import number, spread
from hambench.errors import HambenchError, count
from hambench.files import write_bytes, write_text
from hambench.machine.fingerprint import fingerprint
from hambench.methods.hamburger.checkpoint import digest
from hambench.methods.hamburger.judging.reliability import markdown_table
from hambench.methods.hamburger.training.recipes import RECIPES, Recipe
from hambench.methods.hamburger.training.run_folder import HELD_OUT_NAME
from hambench.methods.hamburger.weights_folder import read_config
from hambench.terminal_text import terminal_safe

if TYPE_CHECKING:
    from hambench.bench.hamburger.weights import WeightsJudgement
    from hambench.methods.hamburger.judging.reliability import Reliability

CARD_NAME = "README.md"
_MARK = re.compile(r"<!-- written by hambench hamburger(?:, sha256 ([0-9a-f]{64}))? -->\n")
"""Comment on a line of its own; the digest is that of the text without this line."""
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
        HambenchError: If a README.md is there that somebody else has written or changed.
    """
    path = folder / CARD_NAME
    if not path.is_file():
        return path
    text = _read(path)
    mark = _MARK.search(text)
    if mark is None:
        raise HambenchError(f"{path} was not written by hambench; move it away to have a card written")
    # a card without a digest is of an earlier version
    if mark[1] is not None and mark[1] != _sha256(_MARK.sub("", text, count=1)):
        raise HambenchError(
            f"{path} has changed since hambench wrote it; move it away to have a card written"
        )
    return path


def _read(path: Path) -> str:
    # others may have edited it in another encoding
    return path.read_bytes().decode("utf-8", "replace")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def has_current_card(folder: Path) -> bool:
    """Returns whether the card in a folder is of these very weights, so that the figures in it are theirs."""
    path = card_path(folder)
    return path.is_file() and _digest_row(digest(folder)) in _read(path).splitlines()


def _digest_row(sha256: str) -> str:
    return f"| SHA-256 of hamburger.json | `{sha256}` |"


def write_card(folder: Path, judged: WeightsJudgement | None = None) -> None:
    """Writes the card of the weights in a folder; replaces one that it wrote and nobody changed, and no other.

    Args:
        folder: Folder of weights, as a training run leaves it.
        judged: Figures to show; without them the card names the command that gives them.

    Raises:
        HambenchError: If the folder has a README.md that somebody else has written or changed.
        ModelError: If it holds no weights.
    """
    path, config = card_path(folder), read_config(folder)
    size = sum((folder / Path(name).name).stat().st_size for name in config["files"])
    told = _mapping(config.get("provenance"))
    sections = [_head(config, size, digest(folder)), _data(_mapping(told.get("data"))), _training(told)]
    sections.append(_no_figures(folder) if judged is None else _figures(judged))
    text = "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"
    title, rest = text.split("\n", 1)
    write_text(path, f"{title}\n<!-- written by hambench hamburger, sha256 {_sha256(text)} -->\n{rest}")


def _no_figures(folder: Path) -> list[str]:
    # a run over segments holds responses out that are not the base's own answers, and writes no such file
    answers = f"FOLDER/{HELD_OUT_NAME}" if (folder / HELD_OUT_NAME).is_file() else "ANSWERS_OF_THE_BASE"
    return [
        "## Held-out figures",
        f"`hambench hamburger measure --answers {answers} --checkpoint FOLDER --card` writes them here.",
    ]


def _mapping(value: object) -> Mapping[str, Any]:
    """Returns a mapping as it is: weights may come from anywhere, and their provenance may have any form."""
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    """Returns a value as text that can neither break a table nor be markup."""
    from hambench.reports.markdown import escape

    return escape(terminal_safe(str(value)))


def _named(name: str) -> str:
    return _text(name.replace("_", " "))


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _text(value)


def _code(text: str) -> str:
    """Returns text as code, in which only a backtick or a table's bar would be markup."""
    return "`" + " ".join(terminal_safe(text).split()).replace("`", "'").replace("|", r"\|") + "`"


def _head(config: Mapping[str, Any], size: int, sha256: str) -> list[str]:
    architecture = config["architecture"]
    layers = ", ".join(map(str, architecture["feature_layers"]))
    num_shards = len(config["files"])
    return [
        f"# HAMburger weights for {_text(config['base']['name'])}",
        "",
        "| | |",
        "|---|---|",
        _digest_row(sha256),
        f"| size | {size / 2**20:.1f} MiB in {count(num_shards, 'shard')} |",
        f"| architecture | {architecture['num_micro_layers']} micro layers, up to {architecture['max_micro_steps']} "
        f"tokens per macro-step, features of layers {layers}, {architecture['merge_heads']} merge heads |",
        f"| changes to the base | `{config['base_weights']}` |",
    ]


def _data(data: Mapping[str, Any]) -> list[str]:
    if not data:
        return []
    return ["## Data", "| | |", "|---|---|"] + [
        f"| {_named(name)} | {_code(value) if isinstance(value, str) else _shown(value)} |"
        for name, value in data.items()
    ]


def _training(told: Mapping[str, Any]) -> list[str]:
    recipe = _mapping(told.get("recipe"))
    if "name" not in recipe:
        return []
    lines = ["## Training", "| | |", "|---|---|", f"| recipe | {_text(recipe['name'])}{_changes(recipe)} |"]
    for name, value in _mapping(told.get("steps")).items():
        lines.append(f"| steps of {_named(name)} | {_shown(value)} |")
    for name in ("seed", "minutes", "seconds", "start_from"):
        if told.get(name) is not None:
            lines.append(f"| {_named(name)} | {_text(told[name])} |")
    for name, value in _mapping(told.get("facts")).items():
        lines.append(f"| {_named(name)} | {_shown(value)} |")
    for name in ("calibration", "held_out"):
        for key, value in _mapping(told.get(name)).items():
            lines.append(f"| {_named(name)}: {_named(key)} | {_shown(value)} |")
    return lines


def _changes(recipe: Mapping[str, Any]) -> str:
    """Returns what differs from the recipe of this name; of another name, from the one that it is nearest to."""
    known = str(recipe["name"]) in RECIPES
    near = {name: _differences(recipe, own) for name, own in RECIPES.items()}
    name = str(recipe["name"]) if known else min(near, key=lambda each: len(near[each]))
    changed = near[name]
    if len(changed) > len(recipe) / 2:
        return f": {_code(json.dumps(recipe))}"
    start = "" if known else f": {name}"
    return start + (f" with {_code(json.dumps(changed))}" if changed else "")


def _differences(recipe: Mapping[str, Any], known: Recipe) -> dict[str, Any]:
    own = json.loads(json.dumps(dataclasses.asdict(known)))
    return {name: value for name, value in recipe.items() if name != "name" and own.get(name) != value}


def _figures(judged: WeightsJudgement) -> list[str]:
    lines = [
        "## Held-out figures",
        f"`hambench hamburger measure` on {judged.answers} answers of the base in {_code(judged.answers_from)}, "
        f"{judged.tokens:,} tokens ({judged.kernels} kernels); the base chooses {judged.base_again:.1%} of these "
        "tokens again. Brackets hold 95 % intervals over answers.",
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
    """Draws how often continuing was right against P(continue); a dot grows with its number of decisions.

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
    write_bytes(path, canvas.file_svg().encode() if kind == "svg" else canvas.raster(kind))
