"""Bytes that the parts of one forward read, and the speed that memory bandwidth allows.

Decoding one sequence reads every weight once per forward and does next to nothing with it, so the time of a
step is at least its bytes over the bandwidth. Compute, launch gaps (unless ``gap_s`` is given) and caches are left
out, which makes the speeds ceilings, not forecasts. How many forwards of which kind a token costs is each method's
own to say: see :meth:`hambench.decoding.MethodConfig.bytes_read` and :meth:`~hambench.decoding.MethodConfig.ceilings`.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

from hambench.models.sizes import ModelShape

_KERNELS_PER_LAYER = 5
_KERNELS_PER_HEAD = 3
_KERNELS_PER_MERGE = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteModel:
    """Bytes that each part of a forward reads, for one model and element size.

    Args:
        shape: The model.
        dtype_bytes: Bytes of a weight and of a cached element.
        scale_bytes: Bytes of a scale of the int8 copy, one per output channel.
        int8_head: Whether the LM head is kept as int8, for every method.
    """

    shape: ModelShape
    dtype_bytes: int = 2
    scale_bytes: int = 2
    int8_head: bool = False

    @cached_property
    def body(self) -> int:
        """All layers and the final norm."""
        return self.shape.body_params * self.dtype_bytes

    @cached_property
    def head(self) -> int:
        """The LM head, read once per token that is chosen."""
        return self._int8_head if self.int8_head else self.shape.head_params * self.dtype_bytes

    @property
    def step(self) -> int:
        """One vanilla step."""
        return self.body + self.head

    @cached_property
    def int8_draft(self) -> int:
        """One forward of the int8 copy: weights and scales, norms as they are."""
        shape = self.shape
        norms = (2 * shape.num_layers + 1) * shape.hidden_size
        scales = shape.num_layers * shape.layer_rows * self.scale_bytes
        return shape.body_params - norms + norms * self.dtype_bytes + scales + self._int8_head

    @cached_property
    def layer(self) -> int:
        """One decoder layer."""
        return self.shape.layer_params * self.dtype_bytes

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream, in elements."""
        return self.shape.hidden_size

    @cached_property
    def kv_per_slot(self) -> int:
        """One cached key/value entry over all layers."""
        return 2 * self.shape.num_layers * self.shape.num_kv_heads * self.shape.head_dim * self.dtype_bytes

    @property
    def _int8_head(self) -> int:
        return self.shape.head_params + self.shape.vocab_size * self.scale_bytes

    def vanilla_bytes(self, *, context: int = 0) -> float:
        """Bytes per token of vanilla decoding with so many cached positions."""
        return self.step + context * self.kv_per_slot

    def kernels(self, *, layers: float = 0, heads: float = 0, merges: float = 0) -> float:
        """Kernels that so many layers, LM heads and merges of embeddings launch."""
        return _KERNELS_PER_LAYER * layers + _KERNELS_PER_HEAD * heads + _KERNELS_PER_MERGE * merges

    @property
    def kernels_per_forward(self) -> int:
        """Kernels that one forward launches, its head's included."""
        return int(self.kernels(layers=self.shape.num_layers, heads=1))

    def flops_per_token(self, *, context: int = 0) -> float:
        """Floating-point operations of a vanilla token: two per weight, four per cached element and query head."""
        attention = 4 * self.shape.num_layers * self.shape.num_heads * self.shape.head_dim * context
        return 2.0 * (self.shape.body_params + self.shape.head_params) + attention


def tokens_per_second(
    bytes_per_token: float, bandwidth: float, *, kernels_per_token: float = 0.0, gap_s: float = 0.0
) -> float:
    """Most tokens per second: the bytes of a token over the bandwidth, plus a gap for each kernel launched.

    Args:
        bytes_per_token: Bytes read per token.
        bandwidth: Bytes per second.
        kernels_per_token: Kernels launched per token.
        gap_s: Seconds lost between kernels: 1.3 µs were reported for CUDA graphs on Hopper.
    """
    return 1 / (bytes_per_token / bandwidth + kernels_per_token * gap_s)
