"""The files of a checkpoint folder: which hold the weights, what is in them, and their digest.

Only safetensors are read. A pickle can run code, and nothing in a checkpoint may.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hambench.errors import ModelError

if TYPE_CHECKING:
    import torch

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, in order.

    Raises:
        ModelError: If there are none, or one that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{index} is damaged: it has no weight_map") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return [folder / name for name in names]
    if any(path for pattern in PICKLES for path in folder.glob(pattern)):
        raise ModelError(
            f"{folder} has pickled weights only, which can run code and are not loaded: convert to safetensors"
        )
    raise ModelError(f"{folder} has no {missing[0]}")


def read_tensors(files: list[Path]) -> dict[str, torch.Tensor]:
    """All tensors by name, mapped from the files rather than copied.

    Raises:
        ModelError: If a file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        try:
            tensors.update(load_file(path))
        except SafetensorError as error:
            raise ModelError(f"{path} is damaged: {error}") from error
    return tensors


_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def stored_dtypes(files: list[Path]) -> set[str]:
    """Types of the floating-point weights as they are stored, read from the files' heads alone."""
    from safetensors import SafetensorError, safe_open

    found: set[str] = set()
    for path in files:
        try:
            with safe_open(path, framework="numpy") as file:
                found |= {_DTYPES.get(file.get_slice(name).get_dtype(), "") for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ModelError(f"{path} is damaged: {error}") from error
    return found - {""}


def digest(files: list[Path], cache: Path) -> str:
    """sha256 of one file, or of the digests of several; kept in ``cache`` by path, size and time of change."""
    digests = [_digest_of(path, cache) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(path: Path, cache: Path) -> str:
    state = path.stat()
    key = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}"
    try:
        known: dict[str, str] = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    if key not in known:
        known[key] = sha256_of(path)
        _write_whole(cache, json.dumps(known))
    return known[key]


def _write_whole(path: Path, text: str) -> None:
    # a reader sees the old file or the new one; of two writers at once one entry may be lost and is made again
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    Path(name).replace(path)
