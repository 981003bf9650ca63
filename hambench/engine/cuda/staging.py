"""Small tensors joined in one buffer, so that one copy moves them all between the device and the host."""

from __future__ import annotations

from collections.abc import Mapping

import torch

ALIGNMENT = 16
"""Bytes. Kernels are compiled for pointers with this alignment, which whole tensors have."""


class StagingBuffer:
    """Named vectors in one buffer.

    Args:
        fields: Type and length of each vector, in order.
        device: Where the buffer lives.
        pinned: Use page-locked host memory, so that the host need not wait for a copy.
    """

    def __init__(
        self,
        fields: Mapping[str, tuple[torch.dtype, int]],
        device: torch.device | str,
        *,
        pinned: bool = False,
    ) -> None:
        self._fields, self._device = dict(fields), torch.device(device)
        places: dict[str, slice] = {}
        end = 0
        for name, (dtype, length) in fields.items():
            places[name] = slice(end, end + dtype.itemsize * length)
            end += -(-dtype.itemsize * length // ALIGNMENT) * ALIGNMENT
        self.buffer = torch.zeros(end, dtype=torch.uint8, device=device, pin_memory=pinned)
        self._views = {name: self.buffer[places[name]].view(dtype) for name, (dtype, _) in fields.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        """Returns the vector of that name."""
        return self._views[name]

    def host_copy(self) -> StagingBuffer:
        """Returns the same fields in host memory, page-locked if the device is a CUDA device."""
        return StagingBuffer(self._fields, "cpu", pinned=self._device.type == "cuda")

    def copy_(self, other: StagingBuffer) -> None:
        """Copies another buffer's bytes in one copy; on a CUDA device without waiting for it."""
        self.buffer.copy_(other.buffer, non_blocking=True)
