"""The files of a model folder other than its weights: config, tokenizer, end tokens, each damage one clear line."""

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
    """The transformers config of a folder.

    Raises:
        ModelError: If it can't be used, or the weights are quantised: their scales are not part of this forward pass.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (
        Exception
    ) as error:  # transformers raises what the odd value happens to trip: TypeError, KeyError, …
        raise ModelError(
            f"{printable(str(folder))} has no usable config.json: {_damage(folder) or first_line(error)}"
        ) from error
    refuse_quantized(getattr(config, "to_dict", dict)(), folder)
    return config


def refuse_quantized(config: Any, folder: Path) -> None:
    """Refuses a config that says that the weights are quantised.

    Raises:
        ModelError: Naming the method and the fix.
    """
    if (method := quantization_of(config)) is not None:
        raise ModelError(
            f"{printable(str(folder))} is quantised (quantization_config: {method}), and its scales would be ignored: "
            "use the unquantised weights, or a de-quantised copy whose config.json has no quantization_config"
        )


def load_tokenizer(folder: Path) -> Any | None:
    """The tokenizer of a folder; ``None`` if it has none.

    Raises:
        ModelError: If one of its files is damaged.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as for the config; the Rust side raises plain Exception
        raise ModelError(
            f"the tokenizer of {printable(str(folder))} can't be used: {_damage(folder) or first_line(error)}"
        ) from error


def declared_eos(folder: Path) -> list[Any]:
    """What ``generation_config.json`` says ends an answer: one id, several, or nothing.

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
    """The first damaged text file of a folder, and what is wrong with it; ``None`` where none looks so."""
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
        return f"{path.name} is damaged: it holds no object"
    return None
