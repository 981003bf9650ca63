"""Bytes that the parts of one forward read, and the speed that memory bandwidth allows.

Decoding one sequence reads every weight once per forward and computes little with it. So the time of a step is at least
its bytes over the bandwidth. The model ignores compute, caches, and launch gaps (unless ``gap_s`` is given), so
its speeds are ceilings, not forecasts. Each method states how many forwards of which kind a token costs: see
:meth:`hambench.decoding.MethodConfig.bytes_read` and :meth:`~hambench.decoding.MethodConfig.ceilings`.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

from hambench.models.sizes import ModelShape

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of one element, by a model's type."""
INT8_KV_SCALE_BYTES = 2
_KERNELS_PER_LAYER = 5
_KERNELS_PER_HEAD = 3
_KERNELS_PER_MERGE = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteModel:
    """Bytes that each part of a forward reads, for one model and element size.

    Args:
        shape: Shape of the model.
        dtype_bytes: Bytes per weight and per cached element.
        scale_bytes: Bytes per scale of the int8 copy, which has one per output channel.
        int8_head: Store the LM head as int8, for every method.
    """

    shape: ModelShape
    dtype_bytes: int = 2
    scale_bytes: int = 2
    int8_head: bool = False

    @cached_property
    def body(self) -> int:
        """Bytes of all layers and the final norm."""
        return self.shape.body_params * self.dtype_bytes

    @cached_property
    def head(self) -> int:
        """Bytes of the LM head, read once per chosen token."""
        return self._int8_head if self.int8_head else self.shape.head_params * self.dtype_bytes

    @property
    def step(self) -> int:
        """Bytes of one vanilla step."""
        return self.body + self.head

    @cached_property
    def int8_draft(self) -> int:
        """Bytes of one forward of the int8 copy: weights and scales, with unchanged norms."""
        shape = self.shape
        norms = (2 * shape.num_layers + 1) * shape.hidden_size
        scales = shape.num_layers * shape.layer_rows * self.scale_bytes
        return shape.body_params - norms + norms * self.dtype_bytes + scales + self._int8_head

    @cached_property
    def layer(self) -> int:
        """Bytes of one decoder layer."""
        return self.shape.layer_params * self.dtype_bytes

    @property
    def hidden_size(self) -> int:
        """Width of the hidden state, in elements."""
        return self.shape.hidden_size

    @cached_property
    def kv_per_slot(self) -> int:
        """Bytes of one cached key/value entry over all layers."""
        return 2 * self.shape.num_layers * self.shape.num_kv_heads * self.shape.head_dim * self.dtype_bytes

    @cached_property
    def int8_kv_per_slot(self) -> int:
        """Bytes of one entry of an 8-bit cache: its elements, and a scale of two bytes per key or value of a head."""
        shape = self.shape
        return 2 * shape.num_layers * shape.num_kv_heads * (shape.head_dim + INT8_KV_SCALE_BYTES)

    @property
    def _int8_head(self) -> int:
        return self.shape.head_params + self.shape.vocab_size * self.scale_bytes

    def vanilla_bytes(self, *, context: int = 0) -> float:
        """Returns the bytes per token of vanilla decoding with ``context`` cached positions."""
        return self.step + context * self.kv_per_slot

    def kernels(self, *, layers: float = 0, heads: float = 0, merges: float = 0) -> float:
        """Returns the number of kernels that these layers, LM heads and merges of embeddings launch."""
        return _KERNELS_PER_LAYER * layers + _KERNELS_PER_HEAD * heads + _KERNELS_PER_MERGE * merges

    @property
    def kernels_per_forward(self) -> int:
        """Number of kernels that one forward launches, including its head's."""
        return int(self.kernels(layers=self.shape.num_layers, heads=1))

    def flops_per_token(self, *, context: int = 0) -> float:
        """Returns the floating-point operations per token: two per weight, four per cached element and query head."""
        attention = 4 * self.shape.num_layers * self.shape.num_heads * self.shape.head_dim * context
        return 2.0 * (self.shape.body_params + self.shape.head_params) + attention


def tokens_per_second(
    bytes_per_token: float, bandwidth: float, *, kernels_per_token: float = 0.0, gap_s: float = 0.0
) -> float:
    """Returns the most tokens per second: a token's bytes over the bandwidth, plus a gap per launched kernel.

    Args:
        bytes_per_token: Bytes read per token.
        bandwidth: Bytes per second.
        kernels_per_token: Kernels launched per token.
        gap_s: Seconds lost between kernels; 1.3 µs were reported for CUDA graphs on Hopper.
    """
    return 1 / (bytes_per_token / bandwidth + kernels_per_token * gap_s)
