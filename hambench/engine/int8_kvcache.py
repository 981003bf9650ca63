"""A KV cache that holds 8-bit keys and values, each head's row with a scale of its own.

A row of Dh elements is Dh codes and one bfloat16 scale behind them: (Dh + 2) / (2 Dh) of the bytes in bfloat16. Codes
are symmetric, from -127 to 127. Rows are quantised as they are written and never again.
"""

from __future__ import annotations

import torch

from hambench.engine.kvcache import KVCache

SCALE_BYTES = 2
LARGEST_CODE = 127


class Int8KVCache(KVCache):
    """Keys and values of one sequence, ``[num_layers, KVH, capacity, Dh + 2]`` bytes each.

    Args:
        num_layers: Layers that write to the cache.
        num_kv_heads: Key/value heads of a layer (KVH).
        head_dim: Elements of one head (Dh), even.
        capacity: Slots reserved.
        dtype: Type of the elements that attention gets.
        device: Where the storage lives.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        if head_dim % 2:
            raise ValueError(f"head_dim must be even for an int8 cache, got {head_dim}")
        super().__init__(
            num_layers=num_layers,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim + SCALE_BYTES,
            capacity=capacity,
            dtype=torch.uint8,
            device=device,
        )
        self._dtype = dtype

    @property
    def is_plain(self) -> bool:
        """See :class:`hambench.engine.kvcache.KVCache`."""
        return False

    @property
    def in_use(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What keys and values in use stand for, ``[num_layers, KVH, slots, Dh]`` each: copies."""
        keys, values = self.rows_in_use
        return dequantize_rows(keys, self._dtype), dequantize_rows(values, self._dtype)

    def write(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`hambench.engine.kvcache.KVCache`. What is returned was rounded, the new rows too."""
        seen_keys, seen_values = super().write(layer, quantize_rows(keys), quantize_rows(values))
        return dequantize_rows(seen_keys, self._dtype), dequantize_rows(seen_values, self._dtype)


def quantize_rows(rows: torch.Tensor) -> torch.Tensor:
    """Quantises rows ``[..., Dh]`` to bytes ``[..., Dh + 2]``: codes, then the scale.

    The scale is the largest magnitude of the row / 127, rounded to bfloat16; codes are multiples of the rounded scale.
    """
    wide = rows.float()
    scales = (wide.abs().amax(-1, keepdim=True) / LARGEST_CODE).to(torch.bfloat16)
    divisors = torch.where(scales == 0, torch.ones_like(scales), scales).float()
    codes = (wide / divisors).round().clamp(-LARGEST_CODE, LARGEST_CODE).to(torch.int8)
    return torch.cat([codes.view(torch.uint8), scales.view(torch.uint8)], dim=-1)


def dequantize_rows(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns what bytes ``[..., Dh + 2]`` of :func:`quantize_rows` stand for, ``[..., Dh]``."""
    codes = rows[..., :-SCALE_BYTES].view(torch.int8)
    scales = rows[..., -SCALE_BYTES:].view(torch.bfloat16)
    return (codes.float() * scales.float()).to(dtype)
