"""Initial weights of a training run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from hambench.errors import ModelError
from hambench.methods.hamburger.architecture import BaseReference
from hambench.methods.hamburger.base import low_rank_parameters
from hambench.methods.hamburger.checkpoint import Checkpoint
from hambench.methods.hamburger.grafts import Grafts


@torch.no_grad()
def start_sane(grafts: Grafts, base: Mapping[str, torch.Tensor]) -> None:
    """Copies micro layers from the base's last ones and their norm from the base's, and starts branches at zero.

    With zeroed projections the merged vector equals its residual exactly, and the stop head says one half.

    Args:
        grafts: Modules to change in place.
        base: The base's tensors by Hugging Face name.
    """
    last = grafts.shape.num_layers - len(grafts.micro.layers)
    for number, layer in enumerate(grafts.micro.layers):
        prefix = f"model.layers.{last + number}."
        layer.load_state_dict(
            {n.removeprefix(prefix): t.float() for n, t in base.items() if n.startswith(prefix)}, strict=True
        )
    if grafts.micro.norm is not None:
        grafts.micro.norm.weight.copy_(base["model.norm.weight"].float())
    for branch in (grafts.embedder.out_proj, grafts.stop_head.layers[-1]):
        assert isinstance(branch, nn.Linear)
        nn.init.zeros_(branch.weight)
        nn.init.zeros_(branch.bias)


@torch.no_grad()
def start_from(checkpoint: Checkpoint, grafts: Grafts, model: nn.Module, base: BaseReference) -> None:
    """Loads the weights of another run, including its low-rank changes.

    Args:
        checkpoint: Checkpoint of the other run.
        grafts: Modules to change in place.
        model: The base with adapters of the same rank on the same layers; changed in place.
        base: Identity of that base.

    Raises:
        ModelError: If base, architecture or adapters differ.
    """
    checkpoint.base.check(base.sizes, base.fingerprint)
    if checkpoint.architecture != grafts.architecture:
        raise ModelError(
            f"the weights to start from are of another architecture: {checkpoint.architecture} instead of "
            f"{grafts.architecture}"
        )
    changes = checkpoint.group("lora")
    adapters = low_rank_parameters(model)
    sizes = {name: tuple(p.shape) for name, p in adapters.items()}
    if checkpoint.base_weights == "full" or sizes != {name: tuple(t.shape) for name, t in changes.items()}:
        raise ModelError(
            "the weights to start from hold other low-rank changes to the base than this recipe trains; give the "
            "--lora-rank and layers they were made with"
        )
    grafts.load_state_dict({n: t for n, t in checkpoint.tensors.items() if not n.startswith("lora.")})
    for name, parameter in adapters.items():
        parameter.copy_(changes[name])
