"""The base model for training: a transformers module, with low-rank adapters if requested."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hambench.engine.transformers_adapter import load_causal_lm
from hambench.models.folder import load_tokenizer, read_config

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA_SCALE = 2.0


def load_base(folder: Path, *, full: bool) -> Any:
    """Loads the base for training, in bfloat16 if it stays frozen and float32 if it is trained as a whole."""
    dtype = torch.float32 if full else torch.bfloat16
    read_config(folder)
    return load_causal_lm(folder, dtype)[0]


class FusedGate:
    """Applies low-rank changes only at chosen slots; at all slots while none are chosen."""

    def __init__(self) -> None:
        self._chosen: Tensor | None = None

    @contextmanager
    def only(self, chosen: Tensor) -> Iterator[None]:
        """Applies changes only where ``chosen`` ``[B, C]`` is true, while the context lasts."""
        self._chosen = chosen[..., None]
        try:
            yield
        finally:
            self._chosen = None

    def __call__(self, module: nn.Module, inputs: Any, change: Tensor) -> Tensor:
        """Applies the gate; serves as a forward hook on the second matrix of every adapter."""
        return change if self._chosen is None else change * self._chosen


def gate_low_rank(adapted: nn.Module) -> FusedGate:
    """Attaches one gate to all adapters of a model."""
    gate = FusedGate()
    for name, module in adapted.named_modules():
        if ".lora_B." in name:
            module.register_forward_hook(gate)
    return gate


def add_low_rank(model: nn.Module, rank: int, *, num_layers: int | None = None) -> nn.Module:
    """Adds adapters of ``rank`` to the linear layers of the base or of its first ``num_layers``; freezes the rest."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=LORA_SCALE * rank,
        lora_dropout=0.0,
        target_modules=list(LORA_TARGETS),
        bias="none",
        layers_to_transform=None if num_layers is None else list(range(num_layers)),
    )
    adapted: nn.Module = get_peft_model(model, config)
    return adapted


@contextmanager
def first_layers(model: Any, num_layers: int) -> Iterator[None]:
    """Runs no layer after the first ``num_layers`` while the context lasts, and no final norm unless these are all.

    The layers stay where they are: transformers records hidden states of those that it finds at its first call.
    """
    decoder = model.get_decoder()
    norm, num_all = decoder.norm, decoder.config.num_hidden_layers
    if num_layers < num_all:
        decoder.config.num_hidden_layers, decoder.norm = num_layers, nn.Identity()
    try:
        yield
    finally:
        decoder.config.num_hidden_layers, decoder.norm = num_all, norm


def low_rank_parameters(adapted: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the adapters' matrices as ``NAME.A`` and ``NAME.B``; empty for a model without adapters."""
    named = {}
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            layer, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
            named[f"{layer}.{rest[0]}"] = parameter
    return named


def low_rank_tensors(adapted: nn.Module) -> dict[str, Tensor]:
    """Returns the adapters' matrices as ``lora.NAME.A`` and ``lora.NAME.B``."""
    return {f"lora.{name}": p.detach().cpu() for name, p in low_rank_parameters(adapted).items()}


def tokenizer_of(folder: Path) -> tuple[Any | None, frozenset[int]]:
    """Returns a base's tokenizer (``None`` if its folder has none) and the ids that end its answers."""
    from hambench.models.target import _eos_ids

    tokenizer = load_tokenizer(folder)
    return tokenizer, _eos_ids(folder, read_config(folder), tokenizer)
