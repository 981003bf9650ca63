"""Results of a forward pass."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True, slots=True)
class ForwardOutput:
    """Logits and hidden states of one forward."""

    logits: torch.Tensor
    """``[R, V]`` float32, for the last R rows requested."""
    hidden: torch.Tensor
    """``[T, D]`` after the final norm (a prefill returns the last row only)."""
    features: torch.Tensor
    """``[len(feature_layers), T, D]``: the hidden state after each requested layer (0-based); for the last layer,
    its value after the final norm."""
