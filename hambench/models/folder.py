"""Reads a model folder's config, tokenizer and end tokens; reports damage in one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hambench.errors import ModelError, first_line
from hambench.files import printable, reason_of
from hambench.models.safetensors import POINTER
from hambench.models.sizes import quantization_of

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "chat_template.json",
    "chat_template.jinja",
    "merges.txt",
)


def read_config(folder: Path) -> Any:
    """Reads the transformers config of a folder.

    Raises:
        ModelError: If it can't be used, or the weights are quantised, since this forward pass does not apply scales.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises any type for an invalid value: TypeError, KeyError, …
        raise ModelError(
            f"{printable(str(folder))} has no usable config.json: {_damage(folder) or first_line(error)}"
        ) from error
    refuse_quantized(getattr(config, "to_dict", dict)(), folder)
    return config


def refuse_quantized(config: Any, folder: Path) -> None:
    """Raises an error if a config declares quantised weights.

    Raises:
        ModelError: If it does; the message names the method and the fix.
    """
    if (method := quantization_of(config)) is not None:
        raise ModelError(
            f"{printable(str(folder))} is quantised (quantization_config: {method}), and its scales would be ignored: "
            "use the unquantised weights, or a de-quantised copy whose config.json has no quantization_config"
        )


def load_tokenizer(folder: Path) -> Any | None:
    """Loads the tokenizer of a folder; returns ``None`` if it has none.

    Raises:
        ModelError: If one of its files is damaged.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # any type, as for the config; the Rust side raises plain Exception
        raise ModelError(
            f"the tokenizer of {printable(str(folder))} can't be used: {_damage(folder) or first_line(error)}"
        ) from error


def declared_eos(folder: Path) -> list[Any]:
    """Returns the end-of-sequence ids that ``generation_config.json`` declares, possibly none.

    Raises:
        ModelError: If the file is damaged.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    if (damage := _damage_of(path)) is not None:
        raise ModelError(damage)
    declared = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    entries = declared if isinstance(declared, list) else [declared]
    if not all(entry is None or type(entry) is int for entry in entries):
        raise ModelError(f"{path}: eos_token_id must be a token id or a list of them, got {declared!r}")
    return entries


def _damage(folder: Path) -> str | None:
    """Describes the first damaged text file of a folder; returns ``None`` if none seems damaged."""
    damages = (_damage_of(folder / name) for name in _TEXT_FILES if (folder / name).is_file())
    return next((damage for damage in damages if damage is not None), None)


def _damage_of(path: Path) -> str | None:
    try:
        content = path.read_bytes()
    except OSError as error:
        return f"can't read {path.name}: {reason_of(error)}"
    if content.startswith(POINTER):
        return f"{path.name} is a pointer of Git LFS and not the file: fetch it with `git lfs pull`"
    try:
        text = content.decode("utf-8")
        parsed = json.loads(text) if path.suffix == ".json" else {}
    except (ValueError, RecursionError) as error:
        return f"{path.name} is damaged: {first_line(error)}"
    if not isinstance(parsed, dict):
        return f"{path.name} is damaged: it does not contain a JSON object"
    return None
