"""Reads the public implementation's Lightning checkpoints, without running any code they contain.

That implementation fixes settings that its files do not record: 64 merge heads, feature layers 3, 7, 11 and 15, the
mean as residual, no norm in the micro path.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hambench.engine.shape import LlamaShape
from hambench.errors import ModelError
from hambench.methods.hamburger.architecture import Architecture, BaseReference
from hambench.methods.hamburger.checkpoint import Checkpoint, sizes_of
from hambench.models.contents import sizes_of as llama_sizes

PUBLIC_MERGE_HEADS = 64
PUBLIC_FEATURE_LAYERS = (3, 7, 11, 15)

_RENAMED = (
    (r"comp_embedder\.merger\.(pos|[qkv]_proj\..+)", r"embedder.\1"),
    (r"comp_embedder\.out_proj\.(.+)", r"embedder.out_proj.\1"),
    (r"micro_step_decoder\.decoders\.(.+)", r"micro.layers.\1"),
    (r"micro_step_decoder\.stop_head\.0\.(.+)", r"stop_head.layers.0.\1"),
    (r"micro_step_decoder\.stop_head\.2\.(.+)", r"stop_head.layers.1.\1"),
    (r"micro_step_decoder\.stop_head\.4\.(.+)", r"stop_head.layers.2.\1"),
    (r"model\.((?:model|lm_head)\..+)", r"base.\1"),
)
# copies of other tensors, buffers, and the teacher that a distillation run stores
_PASSED_OVER = re.compile(r"comp_embedder\.embedding\.|.*rotary_emb\.|teacher\.|kl_loss\.")


def read_lightning(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the state dict and hyper-parameters of a Lightning checkpoint.

    Raises:
        ModelError: If the file is absent, truncated, not such a checkpoint, or a pickle that would run code.
    """
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    try:
        # weights_only builds tensors and plain containers and refuses every other global a pickle names
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)|global ([\w.]+)", str(error))
        what = f" ({named.group(1) or named.group(2)})" if named else ""
        raise ModelError(
            f"{path} is refused: its pickle is damaged or asks for objects other than tensors and plain "
            f"containers{what}, and loading those could run code"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{path} is truncated or not a torch checkpoint: {line}") from error
    state = loaded.get("state_dict") if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} is not a Lightning checkpoint: it has no state_dict of tensors")
    hyper = loaded.get("hyper_parameters")
    return state, dict(hyper) if isinstance(hyper, Mapping) else {}


def convert(
    state: Mapping[str, Tensor],
    hyper: Mapping[str, Any],
    shape: LlamaShape,
    *,
    base_name: str,
    fingerprint: str | None,
    feature_layers: tuple[int, ...] | None = None,
    merge_heads: int | None = None,
    source: str = "",
) -> Checkpoint:
    """Converts the weights to our format, together with the fine-tuned base.

    Args:
        state: Tensors by the public code's names.
        hyper: Hyper-parameters of the public code; ``max_steps`` is compared with the tensors.
        shape: Shape of the base, which every tensor must fit.
        base_name: Name of the base.
        fingerprint: Fingerprint of the original base, if its weights are available.
        feature_layers: Overrides the public code's layers (a base of fewer layers gets its quarters).
        merge_heads: Overrides the public code's 64.
        source: Text for the provenance.

    Raises:
        ModelError: If tensors are missing, unknown, or belong to another base.
    """
    tensors = _rename(state)
    if shape.tie_embeddings:
        tensors.pop("base.lm_head.weight", None)
    layers = {int(m.group(1)) for name in tensors if (m := re.match(r"micro\.layers\.(\d+)\.", name))}
    if not layers or "embedder.pos" not in tensors:
        raise ModelError(
            "the checkpoint has no micro_step_decoder or comp_embedder tensors: it is not HAMburger's"
        )
    max_steps = tensors["embedder.pos"].shape[0]
    if int(hyper.get("max_steps", max_steps)) != max_steps:
        raise ModelError(
            f"the checkpoint contradicts itself: max_steps is {hyper['max_steps']}, "
            f"its position table has {max_steps} rows"
        )
    heads = merge_heads or PUBLIC_MERGE_HEADS
    if shape.hidden_size % heads:
        raise ModelError(f"--merge-heads must divide the hidden size {shape.hidden_size}, got {heads}")
    changes: dict[str, Any] = {
        "num_micro_layers": max(layers) + 1,
        "max_micro_steps": max_steps,
        "merge_heads": heads,
    }
    if feature_layers is None and shape.num_layers > PUBLIC_FEATURE_LAYERS[-1]:
        feature_layers = PUBLIC_FEATURE_LAYERS
    if feature_layers is None:
        architecture = Architecture.for_base(shape.num_layers, **changes)
    else:
        architecture = Architecture(feature_layers=feature_layers, **changes)
    if architecture.feature_layers[-1] >= shape.num_layers:
        raise ModelError(f"--feature-layers {feature_layers} reach past the base's {shape.num_layers} layers")
    _check_sizes(tensors, shape, architecture)
    return Checkpoint(
        architecture=architecture,
        base=BaseReference(name=base_name, fingerprint=fingerprint, sizes=sizes_of(shape)),
        base_weights="full",
        tensors=tensors,
        provenance={"imported_from": source, "hyper_parameters": {k: str(v) for k, v in hyper.items()}},
    )


def _rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if _PASSED_OVER.match(name):
            continue
        for pattern, replacement in _RENAMED:
            if re.fullmatch(pattern, name):
                tensors[re.sub(pattern, replacement, name)] = tensor
                break
        else:
            raise ModelError(f"the checkpoint has a tensor that HAMburger's does not: {name}")
    return tensors


def _check_sizes(tensors: Mapping[str, Tensor], shape: LlamaShape, architecture: Architecture) -> None:
    from hambench.methods.hamburger.grafts import Grafts

    with torch.device("meta"):
        grafts = Grafts(shape, architecture)
    expected = {name: tuple(t.shape) for name, t in grafts.state_dict().items()}
    expected |= {f"base.{name}": size for name, size in llama_sizes(shape).items()}
    for name, size in expected.items():
        if name not in tensors:
            raise ModelError(f"the checkpoint lacks {name}; is --base the model it was made from?")
        if tuple(tensors[name].shape) != size:
            raise ModelError(
                f"the checkpoint is for another base: {name} is {tuple(tensors[name].shape)}, --base wants {size}"
            )
    if extra := sorted(set(tensors) - set(expected)):
        raise ModelError(f"the checkpoint is for another base: --base has no {extra[0]}")


def import_checkpoint(
    path: Path,
    base: Path,
    *,
    feature_layers: tuple[int, ...] | None = None,
    merge_heads: int | None = None,
) -> Checkpoint:
    """Reads a Lightning checkpoint made from the base in folder ``base`` (its weights and tokenizer may be absent).

    Raises:
        ModelError: See :func:`read_lightning` and :func:`convert`.
    """
    from transformers import AutoConfig

    from hambench.methods.hamburger.checkpoint import fingerprint

    if not (base / "config.json").is_file():
        raise ModelError(
            f"--base {base} has no config.json: it must be a model folder in Hugging Face layout"
        )
    shape = LlamaShape.from_hf(
        AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    )
    state, hyper = read_lightning(path)
    return convert(
        state,
        hyper,
        shape,
        base_name=base.resolve().name,
        fingerprint=fingerprint(sorted(base.glob("*.safetensors"))),
        feature_layers=feature_layers,
        merge_heads=merge_heads,
        source=path.name,
    )
