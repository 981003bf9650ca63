"""The linear layers of the engine: one call signature, a storage format chosen for the device."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F


class Linear(Protocol):
    """``[T, in] -> [T, out]`` with weights in whatever form the device likes."""

    @property
    def weight_bytes(self) -> int:
        """Bytes read by one call."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Projects each row."""


class DenseLinear:
    """The weight as the checkpoint has it.

    Args:
        weight: ``[out, in]``.
        bias: ``[out]`` or ``None``.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    @property
    def weight_bytes(self) -> int:
        """Bytes read by one call."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Projects ``[T, in]`` to ``[T, out]``."""
        return F.linear(rows, self.weight, self.bias)


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """The fastest linear layer for the weight's device and type."""
    return DenseLinear(weight, bias)
