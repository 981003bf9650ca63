"""Finds, reads and hashes the weight files of a checkpoint folder.

It reads only safetensors, because a pickle can run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hambench.errors import ModelError, first_line
from hambench.files import reason_of, remember

if TYPE_CHECKING:
    import torch

POINTER = b"version https://git-lfs"
"""The first bytes of a file that Git LFS has not fetched."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a folder, in order.

    Raises:
        ModelError: If there are none, or if one that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            outside = [name for name in names if Path(name).name != name]
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ModelError(f"{index} is damaged: it has no weight_map of file names") from error
        except OSError as error:
            raise ModelError(f"can't read {index}: {reason_of(error)}") from error
        if outside or not names:
            raise ModelError(f"{index} is damaged: its weight_map must name files of the folder")
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return [folder / name for name in names]
    if any(path for pattern in PICKLES for path in folder.glob(pattern)):
        raise ModelError(
            f"{folder} has only pickled weights, which can run code and are not loaded: convert them to safetensors"
        )
    raise ModelError(f"{folder} has no {missing[0]}")


def read_tensors(files: list[Path]) -> dict[str, torch.Tensor]:
    """Returns all tensors by name, memory-mapped instead of copied.

    Raises:
        ModelError: If a file is damaged.
    """
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        with _damages(path):
            tensors.update(load_file(path))
    return tensors


@contextlib.contextmanager
def _damages(path: Path) -> Iterator[None]:
    """Turns errors of a weight file into one line that names the file."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        raise ModelError(f"can't read {path}: {reason_of(error)}") from error
    except (SafetensorError, ValueError, LookupError, TypeError) as error:
        with contextlib.suppress(OSError), path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise ModelError(
                    f"{path} is a pointer of Git LFS and not the file: fetch it with `git lfs pull`"
                ) from error
        raise ModelError(f"{path} is damaged: {first_line(error)}") from error


_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def stored_dtypes(files: list[Path]) -> set[str]:
    """Returns the dtypes of the stored floating-point weights, read from the files' headers."""
    found = {_DTYPES.get(dtype, "") for dtype in _stored(files).values()}
    return found - {""}


def refuse_quantized_weights(files: list[Path]) -> None:
    """Raises an error for quantised matrices, whose scales would be ignored.

    Raises:
        ModelError: If there are any; the message names the dtype and a tensor.
    """
    codes = {name: dtype for name, dtype in _stored(files).items() if name.endswith("weight")}
    for name, dtype in codes.items():
        if dtype not in _DTYPES:
            raise ModelError(
                f"{files[0].parent} is quantised: {name} is stored as {dtype}; use the unquantised weights, or a "
                "de-quantised copy"
            )


def _stored(files: list[Path]) -> dict[str, str]:
    """Returns the dtype of each tensor, read from the files' headers."""
    from safetensors import safe_open

    dtypes: dict[str, str] = {}
    for path in files:
        with _damages(path), safe_open(path, framework="numpy") as file:
            dtypes |= {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return dtypes


def digest(files: list[Path], cache: Path) -> str:
    """Returns the sha256 of one file or of several files' digests, cached by path, size and modification time."""
    digests = [_digest_of(path, cache) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Returns the hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(path: Path, cache: Path) -> str:
    state = path.stat()
    key = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}"
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError, RecursionError):
        known = {}
    if not isinstance(known, dict) or not isinstance(known.get(key, ""), str):
        known = {}
    if key not in known:
        known[key] = sha256_of(path)
        # with two concurrent writers, or a read-only folder, an entry may be lost and is then computed again
        remember(cache, json.dumps(known))
    digest_: str = known[key]
    return digest_
