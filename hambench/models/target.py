"""Loading a target model: the embedded default, a local folder, or a Hugging Face hub id."""

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
    """What a record must say for its figures to belong to a model."""

    name: str
    source: str
    """``package index: ...``, ``hub: ...`` or ``folder: ...``."""
    sha256: str
    """Of the weights: of the one file, or of the list of the files' digests."""
    architecture: str
    dtype: str
    note: str = ""
    """What a reader must know, e.g. that the weights were de-quantised."""
    dequantised: bool = False
    """Whether the weights were stored with fewer bits than they run in."""


@dataclasses.dataclass
class TargetModel:
    """A loaded model with all that decoding needs to know about it."""

    name: str
    llama: LanguageModel
    """The model on the engine that runs it."""
    tokenizer: Any | None
    """A transformers tokenizer; ``None`` if the folder has none (only ids go in and out)."""
    eos_ids: frozenset[int]
    """Ids that end a generation."""
    context_length: int
    """Most positions the model was made for."""
    identity: ModelIdentity
    companions: dict[str, str] = dataclasses.field(default_factory=dict, repr=False)
    """sha256 of the weights that methods loaded next to the target's (a draft, grafts), by what they are."""
    chat_arguments: Mapping[str, str | int | float | bool | None] = dataclasses.field(default_factory=dict)
    """Variables given to the chat template, e.g. ``enable_thinking``."""
    _shared: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations."""
        return self.llama.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.llama.device

    @property
    def title(self) -> str:
        """What is run, for the head of a command's output: name, type, device, and what a reader must know."""
        note = f" ({self.identity.note})" if self.identity.note else ""
        return f"{self.name} in {self.identity.dtype} on {self.device}{note}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights read by one decode step."""
        return self.llama.weight_bytes

    def shared(self, key: str, make: Callable[[], T]) -> T:
        """What ``make`` gives, made once a model: weights that several cells of a run use (a draft, a graft)."""
        if key not in self._shared:
            self._shared[key] = make()
        made: T = self._shared[key]
        return made


def load(name_or_path: str, *, dtype: str = "bfloat16", device: str | None = None) -> TargetModel:
    """Loads a causal LM from safetensors.

    Args:
        name_or_path: ``smollm2-135m``, a folder in Hugging Face layout, or a hub id ``owner/name``.
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        device: By default the GPU if there is one, else the CPU.

    Raises:
        ModelError: If the checkpoint can't be fetched or used; one line says why.
        UnknownNameError: If there is no model of that name.
    """
    import torch

    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    if dtype not in dtypes:
        raise UnknownNameError("dtype", dtype, dtypes)
    where = device_of(device)
    folder, source, note = locate(name_or_path)
    return _load_folder(folder, name_or_path, source, note, dtypes[dtype], where)


def device_of(name: str | None) -> torch.device:
    """The device of a name: ``cpu``, ``cuda`` or ``cuda:N``; the GPU, if there is one, for no name.

    Raises:
        HambenchError: If there is no such device here.
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
    """A word where the context is the one before RoPE scaling, which the config does not count in."""
    rope = getattr(config, "rope_parameters", None)
    rope = rope if isinstance(rope, dict) else {}
    kind, factor = rope.get("rope_type"), rope.get("factor")
    # the factor of llama3 and longrope is not how far the context is stretched
    if kind not in ("linear", "dynamic", "yarn") or not isinstance(factor, int | float) or not factor > 1:
        return ""
    original = rope.get("original_max_position_embeddings") or max_positions
    if not isinstance(original, int | float) or max_positions >= original * factor:
        return ""
    return (
        f"context of {max_positions} positions, as max_position_embeddings says, not the {original * factor:.0f} that "
        f"RoPE scaling {kind!r} stretches it to"
    )


def locate(name_or_path: str) -> tuple[Path, str, str]:
    """The folder of a model (fetched if need be), where it came from, and what a reader must know about it."""
    if name_or_path in embedded.EMBEDDED:
        model = embedded.EMBEDDED[name_or_path]
        return embedded.ensure(model), f"package index: {model.requirement}", model.description
    if printable(name_or_path) != name_or_path:
        raise ModelError(
            f"the model {printable(name_or_path)} is not named in UTF-8, which a run stores: rename it"
        )
    path = expanded(name_or_path)
    if path.is_dir():
        return path, f"folder: {path.name}", ""
    if path.is_absolute() or name_or_path.startswith((".", "~")):
        raise ModelError(f"there is no folder {name_or_path}")
    if name_or_path.count("/") != 1:
        raise UnknownNameError("model", name_or_path, embedded.EMBEDDED)
    return _from_hub(name_or_path), f"hub: {name_or_path}", ""


def _from_hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted, ignore_patterns=["original/*", "onnx/*"]))
    except Exception as error:  # the hub client raises a dozen unrelated types: no network, no such id, gated
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{repo} is no folder here and could not be had from the hub: {reason}") from error


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
        # float32 of bfloat16 weights is exact and undoes no rounding; the other way rounds again
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
    # a chat model ends its turn with its template's own marker, which older configs don't name
    ids |= set() if tokenizer is None else end_of_turn_ids(tokenizer)
    return frozenset(ids)
