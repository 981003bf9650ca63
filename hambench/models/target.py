"""Loads a target model: the embedded default, a local folder, or a Hugging Face hub id."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hambench.engine.chat import end_of_turn_ids
from hambench.errors import HambenchError, ModelError, UnknownNameError
from hambench.files import expanded, printable
from hambench.models import embedded
from hambench.models import safetensors as checkpoint
from hambench.models.folder import declared_eos, load_tokenizer, read_config

if TYPE_CHECKING:
    import torch

    from hambench.engine.language_model import LanguageModel

T = TypeVar("T")
DEFAULT_MODEL = embedded.SMOLLM2_135M.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Identifies the model that a record's figures belong to."""

    name: str
    source: str
    """``package index: ...``, ``hub: ...`` or ``folder: ...``."""
    sha256: str
    """sha256 of the weights: of the single file, or of the list of the files' digests."""
    architecture: str
    dtype: str
    note: str = ""
    """A note for readers, e.g. that the weights were de-quantised."""
    dequantised: bool = False
    """Whether the weights were stored with fewer bits than they run with."""


@dataclasses.dataclass
class TargetModel:
    """A loaded model with everything that decoding needs."""

    name: str
    llama: LanguageModel
    """The model on its engine."""
    tokenizer: Any | None
    """A transformers tokenizer; ``None`` if the folder has none, so that only ids work."""
    eos_ids: frozenset[int]
    """Ids that end an answer."""
    context_length: int
    """Maximum number of positions that the model supports."""
    identity: ModelIdentity
    companions: dict[str, str] = dataclasses.field(default_factory=dict, repr=False)
    """sha256 of weights that methods loaded in addition (a draft, grafts), by kind."""
    chat_arguments: Mapping[str, str | int | float | bool | None] = dataclasses.field(default_factory=dict)
    """Variables given to the chat template, e.g. ``enable_thinking``."""
    _shared: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights and activations."""
        return self.llama.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.llama.device

    @property
    def title(self) -> str:
        """Title for a command's output: name, dtype, device and a note."""
        note = f" ({self.identity.note})" if self.identity.note else ""
        return f"{self.name} in {self.identity.dtype} on {self.device}{note}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights read by one decode step."""
        return self.llama.weight_bytes

    def shared(self, key: str, make: Callable[[], T]) -> T:
        """Returns the result of ``make``, called once per key: weights that several cells share (a draft, a graft)."""
        if key not in self._shared:
            self._shared[key] = make()
        made: T = self._shared[key]
        return made


def load(name_or_path: str, *, dtype: str = "bfloat16", device: str | None = None) -> TargetModel:
    """Loads a causal LM from safetensors.

    Args:
        name_or_path: ``smollm2-135m``, a folder in Hugging Face layout, or a hub id ``owner/name``.
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        device: Defaults to the GPU if there is one, else the CPU.

    Raises:
        ModelError: If the checkpoint can't be fetched or used; the message says why in one line.
        UnknownNameError: If there is no model with this name.
    """
    import torch

    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    if dtype not in dtypes:
        raise UnknownNameError("dtype", dtype, dtypes)
    where = device_of(device)
    folder, source, note = locate(name_or_path)
    return _load_folder(folder, name_or_path, source, note, dtypes[dtype], where)


def device_of(name: str | None) -> torch.device:
    """Returns the device named ``cpu``, ``cuda`` or ``cuda:N``; without a name, the GPU if there is one.

    Raises:
        HambenchError: If this machine has no such device.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise HambenchError(f"the device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise HambenchError(f"device {name!r}: torch finds no CUDA device here; use cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            last = torch.cuda.device_count() - 1
            raise HambenchError(f"device {name!r}: the devices here are cuda:0 to cuda:{last}")
    return device


def _unstretched(config: Any, max_positions: int) -> str:
    """Returns a note if the config's context length does not include RoPE scaling."""
    rope = getattr(config, "rope_parameters", None)
    rope = rope if isinstance(rope, dict) else {}
    kind, factor = rope.get("rope_type"), rope.get("factor")
    # for llama3 and longrope, the factor is not the ratio by which the context grows
    if kind not in ("linear", "dynamic", "yarn") or not isinstance(factor, int | float) or not factor > 1:
        return ""
    original = rope.get("original_max_position_embeddings") or max_positions
    if not isinstance(original, int | float) or max_positions >= original * factor:
        return ""
    return (
        f"context of {max_positions} positions, as max_position_embeddings says, not the {original * factor:.0f} of "
        f"RoPE scaling {kind!r}"
    )


def locate(name_or_path: str) -> tuple[Path, str, str]:
    """Returns a model's folder (fetched if needed), its source, and a note for readers."""
    if name_or_path in embedded.EMBEDDED:
        model = embedded.EMBEDDED[name_or_path]
        return embedded.ensure(model), f"package index: {model.requirement}", model.description
    if printable(name_or_path) != name_or_path:
        raise ModelError(
            f"the model name {printable(name_or_path)} is not valid UTF-8, so a run can't store it: rename it"
        )
    path = expanded(name_or_path)
    if path.is_dir():
        return path, f"folder: {path.name}", ""
    if path.is_absolute() or name_or_path.startswith((".", "~")):
        raise ModelError(f"folder {name_or_path} does not exist")
    if name_or_path.count("/") != 1:
        raise UnknownNameError("model", name_or_path, embedded.EMBEDDED)
    return _from_hub(name_or_path), f"hub: {name_or_path}", ""


def _from_hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted, ignore_patterns=["original/*", "onnx/*"]))
    except (
        Exception
    ) as error:  # the hub client raises a dozen unrelated types: no network, unknown id, gated model
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{repo} is neither a local folder nor downloadable from the hub: {reason}"
        ) from error


def _load_folder(
    folder: Path, name: str, source: str, note: str, dtype: torch.dtype, device: torch.device
) -> TargetModel:
    from hambench.engine.shape import LlamaShape

    config = read_config(folder)
    files = checkpoint.weight_files(folder)
    checkpoint.refuse_quantized_weights(files)
    stored = checkpoint.stored_dtypes(files)
    where = printable(str(folder))
    if stored and stored != {_name_of(dtype)}:
        # bfloat16 to float32 is exact but does not undo rounding; the other way rounds again
        note = "; ".join(
            filter(
                None, (note, f"weights stored in {' and '.join(sorted(stored))}, run in {_name_of(dtype)}")
            )
        )
    llama: LanguageModel
    try:
        shape = LlamaShape.from_hf(config)
    except ModelError as unsupported:
        from hambench.engine.transformers_adapter import load_adapter

        llama, unread = load_adapter(folder, dtype, device)
        note = "; ".join(filter(None, (note, f"transformers adapter (slower): {unsupported}", unread)))
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise ModelError(f"{where}: config.json has no usable sizes: {error}") from error
    else:
        from hambench.engine.llama import Llama
        from hambench.models.contents import fit_to_weights

        shape, weights, odd = fit_to_weights(shape, checkpoint.read_tensors(files), where)
        note = "; ".join(filter(None, (note, odd)))
        llama = Llama(shape, weights, dtype, device)
    note = "; ".join(filter(None, (note, _unstretched(config, llama.shape.max_positions))))
    tokenizer = load_tokenizer(folder)
    identity = ModelIdentity(
        name=name,
        source=source,
        sha256=checkpoint.digest(files, embedded.hash_cache()),
        architecture=str(config.model_type),
        dtype=_name_of(dtype),
        note=note,
        dequantised=name in embedded.EMBEDDED,
    )
    return TargetModel(
        name=name,
        llama=llama,
        tokenizer=tokenizer,
        eos_ids=_eos_ids(folder, config, tokenizer),
        context_length=llama.shape.max_positions,
        identity=identity,
    )


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _eos_ids(folder: Path, config: Any, tokenizer: Any | None) -> frozenset[int]:
    declared = declared_eos(folder)
    declared += [config.eos_token_id, None if tokenizer is None else tokenizer.eos_token_id]
    ids = {
        i for entry in declared if entry is not None for i in (entry if isinstance(entry, list) else [entry])
    }
    # a chat model ends its turn with its template's own marker, which older configs omit
    ids |= set() if tokenizer is None else end_of_turn_ids(tokenizer)
    return frozenset(ids)
