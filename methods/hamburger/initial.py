"""Where training starts from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from hambench.methods.hamburger.grafts import Grafts


@torch.no_grad()
def start_sane(grafts: Grafts, base: Mapping[str, torch.Tensor]) -> None:
    """Micro layers from the base's last ones, their norm from the base's, and branches that start at zero.

    With zeroed projections the merged vector is exactly its residual and the stop head says one half.

    Args:
        grafts: Changed in place.
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
