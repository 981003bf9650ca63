"""Reads a model's sizes from its config alone, without weights, torch or network."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from hambench.errors import ModelError, UnknownNameError
from hambench.files import expanded


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a Llama-family model that determine its bytes and operations."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tie_embeddings: bool
    qkv_bias: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Reads the dictionary of a Hugging Face ``config.json``.

        Raises:
            ModelError: If a size is missing, or the model has experts, whose bytes per token are not modelled.
        """
        if (method := quantization_of(config)) is not None:
            raise ModelError(
                f"the byte model only covers unquantised weights, and this config is quantised ({method}): take "
                "quantization_config out to forecast the model without it"
            )
        if any(config.get(name) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
            raise ModelError("the byte model only covers dense models, and this config has experts")
        try:
            heads = int(config["num_attention_heads"])
            hidden = int(config["hidden_size"])
            return cls(
                num_layers=int(config["num_hidden_layers"]),
                hidden_size=hidden,
                intermediate_size=int(config["intermediate_size"]),
                num_heads=heads,
                num_kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or hidden // heads),
                vocab_size=int(config["vocab_size"]),
                tie_embeddings=bool(config.get("tie_word_embeddings", False)),
                qkv_bias=config.get("model_type") == "qwen2",
            )
        except KeyError as error:
            raise ModelError(
                f"the config has no {error.args[0]!r}: is it of a decoder-only model?"
            ) from error
        except (TypeError, ValueError) as error:
            raise ModelError(f"the config contains a size that is not a number: {error}") from error

    @classmethod
    def from_scalars(cls, scalars: Mapping[str, Any]) -> Self | None:
        """Reads the result of :meth:`as_scalars`; returns ``None`` if a field is missing or is not a size."""
        fields = {field.name: scalars.get(field.name) for field in dataclasses.fields(cls)}
        switches = ("tie_embeddings", "qkv_bias")
        if not all(
            isinstance(value, bool) if name in switches else type(value) is int and value > 0
            for name, value in fields.items()
        ):
            return None
        return cls(**fields)  # type: ignore[arg-type]

    def as_scalars(self) -> dict[str, int | bool]:
        """Returns the fields to store with a run."""
        return dataclasses.asdict(self)

    @property
    def layer_params(self) -> int:
        """Parameters of one decoder layer, its two norms included."""
        query, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * query + 2 * kv) + (query + 2 * kv) * self.qkv_bias
        return attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size

    @property
    def layer_rows(self) -> int:
        """Output channels of one layer's weights, which is the number of scales of its int8 copy."""
        query, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return query + 2 * kv + self.hidden_size + 2 * self.intermediate_size + self.hidden_size

    @property
    def body_params(self) -> int:
        """Parameters of all layers and the final norm, which every forward reads besides the head."""
        return self.num_layers * self.layer_params + self.hidden_size

    @property
    def head_params(self) -> int:
        """Parameters of the LM head."""
        return self.vocab_size * self.hidden_size

    @property
    def total_params(self) -> int:
        """Parameters in memory, embeddings included."""
        return self.body_params + self.head_params * (1 if self.tie_embeddings else 2)


def quantization_of(config: Mapping[str, Any]) -> str | None:
    """Returns the quantization method that a config declares; ``None`` for unquantised weights."""
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    for part in parts:
        quantization = part.get("quantization_config") or part.get("compression_config")
        if quantization:
            named = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
            return str(named or "of an unnamed method")
    return None


def shape_scalars(shape: object) -> dict[str, int | bool]:
    """Reads the sizes from an object's attributes, e.g. a loaded model's shape; empty if one is missing."""
    found = {field.name: getattr(shape, field.name, None) for field in dataclasses.fields(ModelShape)}
    return {} if None in found.values() else ModelShape(**found).as_scalars()  # type: ignore[arg-type]


def _known(
    layers: int, hidden: int, ffn: int, heads: tuple[int, int, int], vocab: int, tied: bool = True
) -> ModelShape:
    return ModelShape(
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=heads[2],
        vocab_size=vocab,
        tie_embeddings=tied,
    )


# from each model's public config.json
SHAPES: dict[str, ModelShape] = {
    "llama-3.2-1b": _known(16, 2048, 8192, (32, 8, 64), 128_256),
    "llama-3.2-3b": _known(28, 3072, 8192, (24, 8, 128), 128_256),
    "llama-3.1-8b": _known(32, 4096, 14_336, (32, 8, 128), 128_256, tied=False),
    "smollm2-135m": _known(30, 576, 1536, (9, 3, 64), 49_152),
    "smollm2-360m": _known(32, 960, 2560, (15, 5, 64), 49_152),
    "smollm2-1.7b": _known(24, 2048, 8192, (32, 32, 64), 49_152),
    "qwen3-0.6b": _known(28, 1024, 3072, (16, 8, 128), 151_936),
}
"""Known shapes by name."""


def find_shape(name: str) -> tuple[str, ModelShape]:
    """Returns display name and shape of a config file, a model folder, a known model, or a model in the hub cache.

    Raises:
        ModelError: If the file is not a model config.
        UnknownNameError: If none of these exists; nothing is downloaded.
    """
    path = expanded(name)
    if path.is_dir():
        path = path / "config.json"
    if path.is_file():
        return (path.resolve().parent.name if path.name == "config.json" else path.stem), _read(path)
    if path.is_absolute() or name.startswith((".", "~")) or path.suffix == ".json":
        raise ModelError(f"{name} has no config.json")
    short = name.rsplit("/", 1)[-1].lower().removesuffix("-instruct")
    if short in SHAPES:
        return name, SHAPES[short]
    if (cached := _cached_config(name)) is not None:
        return name, _read(cached)
    raise UnknownNameError("model (give its config.json, or one of these names)", name, SHAPES)


def _read(path: Path) -> ModelShape:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not a model config: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a model config: it does not contain a JSON object")
    # multimodal configs have the language model's sizes one level down
    return ModelShape.from_config(config.get("text_config") or config)


def _cached_config(repo: str) -> Path | None:
    if repo.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
