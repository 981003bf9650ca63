"""Copies of a GGUF file with other types of weights: the same model for engines that read GGUF files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hambench.errors import ModelError
from hambench.models.contents import EMBEDDING, HEAD
from hambench.models.safetensors import weight_files

if TYPE_CHECKING:
    import numpy as np

COPY_TYPES = ("BF16", "Q8_0")
_FIELD_OF_TYPES = "general.file_type"
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Matrices in a GGUF file and in a checkpoint of the Llama family."""
_REORDERED = ("attn_q", "attn_k")
"""llama.cpp keeps the rows of each head in another order for its rotations; the rows themselves are the same."""


def write_copy(source: Path, copy: Path, kind: str) -> None:
    """Writes a GGUF file with the same model and all matrices in one type; vectors stay in float32.

    The matrices are de-quantised and rounded to bfloat16 first, as hambench's own weights are.

    Args:
        source: The GGUF file.
        copy: The file to write.
        kind: ``BF16`` or ``Q8_0``.

    Raises:
        ModelError: If the source is not a GGUF file that can be de-quantised.
    """
    import gguf

    if kind not in COPY_TYPES:
        raise ValueError(f"kind must be one of {', '.join(COPY_TYPES)}, got {kind!r}")
    kinds = gguf.GGMLQuantizationType
    reader = _reader(source)
    architecture = reader.get_field(gguf.Keys.General.ARCHITECTURE)
    if architecture is None:
        raise ModelError(f"{source.name} does not say its architecture: it is not a language model")
    writer = gguf.GGUFWriter(copy, architecture.contents())
    for name, field in reader.fields.items():
        # the writer writes the header and the architecture itself
        if name.startswith("GGUF.") or name in (gguf.Keys.General.ARCHITECTURE, _FIELD_OF_TYPES):
            continue
        is_array = field.types[0] is gguf.GGUFValueType.ARRAY
        writer.add_key_value(
            name, field.contents(), field.types[0], sub_type=field.types[-1] if is_array else None
        )
    file_type = {"BF16": gguf.LlamaFileType.MOSTLY_BF16, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
    writer.add_file_type(file_type[kind])
    for tensor in reader.tensors:
        if len(tensor.shape) < 2:
            writer.add_tensor(tensor.name, _values(tensor, source), raw_dtype=kinds.F32)
            continue
        stored = gguf.quantize(_values(tensor, source), kinds.BF16)
        if kind != "BF16":
            try:
                stored = gguf.quantize(gguf.dequantize(stored, kinds.BF16), kinds[kind])
            except gguf.quants.QuantError as error:  # rows that are not whole blocks
                raise ModelError(
                    f"{source.name}: {tensor.name} can't be stored as {kind}: {error}"
                ) from error
        writer.add_tensor(tensor.name, stored, raw_dtype=kinds[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main_type(path: Path) -> str:
    """Returns the type that most of a GGUF file's matrices have, such as ``Q4_1``."""
    counts = Counter(
        tensor.tensor_type.name for tensor in _reader(path).tensors if len(tensor.shape) > 1
    ).most_common(1)
    if not counts:
        raise ModelError(f"{path.name} has no matrix: it is not a language model")
    name: str = counts[0][0]
    return name


def bytes_read_per_token(path: Path) -> int:
    """Returns the bytes of all tensors that a decode step reads: no embeddings if the head is a tensor of its own."""
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in _reader(path).tensors}
    if "output.weight" in sizes:
        sizes.pop("token_embd.weight", None)
    return sum(sizes.values())


def differing_matrices(path: Path, folder: Path) -> tuple[int, int]:
    """Compares a GGUF file in bfloat16 with a checkpoint, bit by bit.

    Args:
        path: The GGUF file.
        folder: A checkpoint in Hugging Face layout.

    Returns:
        How many matrices are not the same in both, and how many there are. One that only the file or only the
        checkpoint has differs, except a head that is equal to the embeddings.
    """
    import torch
    from safetensors import safe_open

    theirs: dict[str, Any] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (it is not a dictionary)
                tensor = opened.get_tensor(name)
                if tensor.ndim > 1:
                    theirs[name] = tensor.to(torch.bfloat16)
    embeddings, head = theirs.get(EMBEDDING), theirs.get(HEAD)
    is_tied = head is None or (embeddings is not None and torch.equal(head, embeddings))
    if is_tied:
        theirs.pop(HEAD, None)
    num_different = num_matrices = 0
    for tensor in _reader(path).tensors:
        if len(tensor.shape) < 2:
            continue
        num_matrices += 1
        prefix, part = "", tensor.name.removesuffix(".weight")
        if part.startswith("blk.") and part.count(".") == 2:
            _, layer, part = part.split(".")
            prefix = f"model.layers.{layer}."
        name = f"{prefix}{_NAMES.get(part, part)}.weight"
        other = theirs.pop(name, embeddings if is_tied and name == HEAD else None)
        if other is None:
            num_different += 1
            continue
        ours = torch.from_numpy(_values(tensor, path).copy()).to(torch.bfloat16)
        is_same = ours.shape == other.shape
        if is_same and part in _REORDERED:
            ours, other = _distinct_rows(ours), _distinct_rows(other)
        num_different += not (is_same and torch.equal(ours, other))
    return num_different + len(theirs), num_matrices + len(theirs)


def _distinct_rows(matrix: Any) -> Any:
    """Returns the rows in an order of their own."""
    import torch

    return torch.unique(matrix.view(torch.int16), dim=0)


def _values(tensor: Any, path: Path) -> np.ndarray[Any, Any]:
    import gguf

    try:
        values: np.ndarray[Any, Any] = gguf.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ModelError(
            f"{path.name}: {tensor.name} is stored as {tensor.tensor_type.name}, which can't be de-quantised here"
        ) from error
    return values


def _reader(path: Path) -> Any:
    import gguf

    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError, LookupError) as error:
        raise ModelError(f"{path} is not a GGUF file that can be read: {error}") from error
