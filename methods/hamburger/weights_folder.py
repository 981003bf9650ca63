"""Finds a folder of HAMburger weights and reads its ``hamburger.json``; does not need torch, so a config can use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from hambench.errors import ModelError
from hambench.files import expanded
from hambench.methods.hamburger.architecture import BaseWeights

FORMAT = 1
CONFIG_NAME = "hamburger.json"
SHIPPED = Path(__file__).parent / "checkpoints"
"""Weights that the package ships, one folder per model name."""


def find_weights(checkpoint: str | None, model_name: str) -> Path:
    """Returns the folder of weights, either the given one or the one shipped for the model.

    Raises:
        ModelError: If there is none.
    """
    folder = expanded(checkpoint) if checkpoint else SHIPPED / model_name.replace("/", "--")
    if checkpoint and not folder.is_dir():
        raise ModelError(f"there is no folder {checkpoint}, given as HAMburger checkpoint")
    if not (folder / CONFIG_NAME).is_file():
        where = f"{checkpoint} has no {CONFIG_NAME}" if checkpoint else f"none are shipped for {model_name}"
        raise ModelError(
            f"no HAMburger weights: {where}; give checkpoint=FOLDER (hambench hamburger train or import writes one)"
        )
    return folder.resolve()


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the raw ``hamburger.json``.

    Raises:
        ModelError: If it is absent, is not JSON, or has another format.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ModelError(f"{folder} holds no HAMburger weights: there is no {CONFIG_NAME}")
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ModelError(f"{path} is not of format {FORMAT}, which this version reads")
    missing = {"architecture", "base", "base_weights", "lora_scale", "files"} - set(config)
    if missing or config["base_weights"] not in get_args(BaseWeights):
        raise ModelError(
            f"{path}: missing or unknown fields ({', '.join(sorted(missing)) or 'base_weights'})"
        )
    return config
