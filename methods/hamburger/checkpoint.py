"""HAMburger weights on disk: ``hamburger.json`` and safetensors shards, checked before anything long starts.

A checkpoint holds grafts on an unchanged base, grafts with low-rank changes to the base (``lora.*``) for all slots or
for merged ones, or grafts with a whole fine-tuned base (``base.*``). :data:`.architecture.BaseWeights` says which.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from hambench.engine.shape import LlamaShape
from hambench.errors import ModelError
from hambench.files import replacing, write_text
from hambench.methods.hamburger.architecture import Architecture, BaseReference, BaseWeights
from hambench.methods.hamburger.weights_folder import CONFIG_NAME, FORMAT, read_config

SHARD_BYTES = 16 * 2**20 - 2**16
"""Most tensor bytes per shard, not counting its header; a larger tensor gets a shard of its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Grafts with their architecture, base and provenance."""

    architecture: Architecture
    base: BaseReference
    base_weights: BaseWeights
    tensors: Mapping[str, torch.Tensor]
    """Tensors of :class:`~hambench.methods.hamburger.grafts.Grafts` by its own names, with ``base.NAME`` or
    ``lora.NAME.A`` / ``lora.NAME.B`` (the change to NAME.weight is ``lora_scale * B @ A``)."""
    lora_scale: float = 1.0
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Origin of the weights."""

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """Returns the tensors under ``prefix.``, without the prefix."""
        start = f"{prefix}."
        return {name.removeprefix(start): t for name, t in self.tensors.items() if name.startswith(start)}


def sizes_of(shape: LlamaShape) -> dict[str, Any]:
    """Returns the fields of a base's shape that its grafts depend on, in the form that JSON returns."""
    fields = dataclasses.asdict(shape)
    fields.pop("max_positions")
    sizes: dict[str, Any] = json.loads(json.dumps(fields))
    return sizes


def fingerprint(files: Sequence[Path]) -> str | None:
    """Returns a SHA-256 over a sample of a base's tensors in bfloat16; ``None`` if there are no files.

    A float32 and a bfloat16 copy have the same fingerprint.
    """
    sample: dict[str, torch.Tensor] = {}
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            names = [name for name in tensors.keys() if _is_sampled(name)]  # noqa: SIM118 - not a mapping
            sample |= {name: tensors.get_slice(name)[:64] for name in names}
    if not sample:
        return None
    digest = hashlib.sha256()
    for name in sorted(sample):
        digest.update(name.encode())
        digest.update(sample[name].to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _is_sampled(name: str) -> bool:
    return name.endswith(("embed_tokens.weight", "model.norm.weight", "q_proj.weight", "down_proj.weight"))


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes a checkpoint, ``hamburger.json`` last, so that a folder that has it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(checkpoint.tensors)
    files = {}
    for number, names in enumerate(shards, 1):
        path = folder / f"hamburger-{number:05d}-of-{len(shards):05d}.safetensors"
        # write to a temporary name, so that an interrupted save leaves no half-written shard under the real one
        with replacing(path) as partial:
            save_file({name: checkpoint.tensors[name].contiguous().cpu() for name in names}, partial)
        files[path.name] = _sha256(path)
    config = {
        "format": FORMAT,
        "architecture": dataclasses.asdict(checkpoint.architecture),
        "base": dataclasses.asdict(checkpoint.base),
        "base_weights": checkpoint.base_weights,
        "lora_scale": checkpoint.lora_scale,
        "files": files,
        "provenance": dict(checkpoint.provenance),
    }
    write_text(folder / CONFIG_NAME, json.dumps(config, indent=2) + "\n")


def _shards(tensors: Mapping[str, torch.Tensor]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = SHARD_BYTES
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= tensor.nbytes
    return shards


def load(folder: Path) -> Checkpoint:
    """Reads a checkpoint and checks the digests of its shards.

    Raises:
        ModelError: If a file is absent, truncated, or not the one that was saved.
    """
    config = read_config(folder)
    architecture = Architecture.from_json(config["architecture"])
    tensors: dict[str, torch.Tensor] = {}
    for name, digest in config["files"].items():
        path = folder / Path(name).name
        if not path.is_file():
            raise ModelError(f"{folder} lacks the shard {name}")
        if _sha256(path) != digest:
            raise ModelError(f"{path} is truncated or damaged: its SHA-256 is not the one in {CONFIG_NAME}")
        try:
            tensors.update(load_file(path))
        except SafetensorError as error:
            raise ModelError(f"{path} is damaged: {error}") from error
    return Checkpoint(
        architecture=architecture,
        base=BaseReference(**config["base"]),
        base_weights=config["base_weights"],
        tensors=tensors,
        lora_scale=float(config["lora_scale"]),
        provenance=config.get("provenance", {}),
    )


def digest(folder: Path) -> str:
    """Returns the SHA-256 of a checkpoint's configuration; it holds the shards' digests, so it identifies the weights.

    Raises:
        ModelError: If it is absent or has another format.
    """
    read_config(folder)
    return _sha256(folder / CONFIG_NAME)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
