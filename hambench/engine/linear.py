"""Linear layers of the engine, with weights stored in the form that the device reads fastest.

Reading weights bounds a decode step. On a CPU, ``F.linear`` re-orders a bfloat16 weight on every call, which costs more
than reading it. oneDNN accepts a weight that was re-ordered once, and fuses the activation, the product of gate and up,
and the residual sum into the same pass. A CPU without arithmetic in the model's type multiplies many rows faster in
float32. On any other device the dense weight is already in the right form.
"""

from __future__ import annotations

import functools
from typing import Protocol

import torch
import torch.nn.functional as F

LEAST_WIDENED = 8
"""Rows from which a CPU without arithmetic in the weight's type multiplies in float32; see docs/adr/0005."""
WIDENED_BYTES = 4 * 2**20
"""Bytes of a weight to widen at a time; a float32 copy of a whole LM head costs more in page faults than in sums."""


class Linear(Protocol):
    """A linear layer: maps ``[T, in]`` to ``[T, out]``."""

    @property
    def weight(self) -> torch.Tensor:
        """Dense weight ``[out, in]`` (a copy if stored in another form)."""

    @property
    def bias(self) -> torch.Tensor | None:
        """Bias ``[out]``, or ``None``."""

    @property
    def weight_bytes(self) -> int:
        """Bytes that one call reads."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Projects each row."""

    def add_to(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Returns ``hidden`` plus the projected rows."""


class GatedLinear(Protocol):
    """``[T, in] -> [T, out]``: ``silu(gate(rows)) * up(rows)``."""

    @property
    def weight(self) -> torch.Tensor:
        """Dense weight ``[2 * out, in]``, gate above up."""

    @property
    def weight_bytes(self) -> int:
        """Bytes that one call reads."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Projects each row twice, activates the gate and multiplies the two."""


class DenseLinear:
    """A weight stored as in the checkpoint.

    Args:
        weight: ``[out, in]``.
        bias: ``[out]`` or ``None``.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    @property
    def weight_bytes(self) -> int:
        """Bytes that one call reads."""
        return self.weight.nbytes + _bytes(self.bias)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps ``[T, in]`` to ``[T, out]``."""
        return F.linear(rows, self.weight, self.bias)

    def add_to(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Returns ``hidden`` plus the projected rows."""
        return hidden + self(rows)


class DenseGated:
    """Gate and up projections as one product.

    Args:
        gate: ``[out, in]``.
        up: ``[out, in]``.
    """

    def __init__(self, gate: torch.Tensor, up: torch.Tensor) -> None:
        self.weight = torch.cat([gate, up])

    @property
    def weight_bytes(self) -> int:
        """Bytes that one call reads."""
        return self.weight.nbytes

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps ``[T, in]`` to ``[T, out]``."""
        gate, up = F.linear(rows, self.weight).chunk(2, dim=-1)
        return F.silu(gate) * up


class WidenedLinear(DenseLinear):
    """A 16-bit weight on a CPU without 16-bit products; multiplies many rows in float32 and rounds once.

    On such a CPU, torch's 16-bit product takes the same time for each further row, at a tenth of float32's speed. For a
    few rows that is still faster than widening the weight.
    """

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps ``[T, in]`` to ``[T, out]``."""
        return widened(rows, self.weight, self.bias).to(rows.dtype)


class WidenedGated(DenseGated):
    """Gate and up projections like :class:`WidenedLinear`; rounds after activation and product."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps ``[T, in]`` to ``[T, out]``."""
        gate, up = widened(rows, self.weight).chunk(2, dim=-1)
        return (F.silu(gate) * up).to(rows.dtype)


class PackedLinear:
    """A weight that is re-ordered once for oneDNN's kernels (CPU only).

    Args:
        weight: ``[out, in]``.
        bias: ``[out]`` or ``None``.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._packed, self.bias = _pack(weight), bias

    @property
    def weight(self) -> torch.Tensor:
        """Dense copy, built on each call."""
        return self._packed.to_dense()

    @property
    def weight_bytes(self) -> int:
        """Bytes that one call reads."""
        return self._packed.nbytes + _bytes(self.bias)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps ``[T, in]`` to ``[T, out]``."""
        return _project(rows, self._packed, self.bias, "none")

    def add_to(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Returns ``hidden`` plus the projected rows, in one pass."""
        return _project_with(rows, hidden, self._packed, self.bias, "add")


class PackedGated:
    """Gate and up projections re-ordered once for oneDNN's kernels, which fuse activation and product (CPU only).

    Args:
        gate: ``[out, in]``.
        up: ``[out, in]``.
    """

    def __init__(self, gate: torch.Tensor, up: torch.Tensor) -> None:
        self._gate, self._up = _pack(gate), _pack(up)

    @property
    def weight(self) -> torch.Tensor:
        """Dense copy, built on each call."""
        return torch.cat([self._gate.to_dense(), self._up.to_dense()])

    @property
    def weight_bytes(self) -> int:
        """Bytes that one call reads."""
        return self._gate.nbytes + self._up.nbytes

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps ``[T, in]`` to ``[T, out]``."""
        return _project_with(rows, _project(rows, self._gate, None, "swish"), self._up, None, "mul")


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """Returns the fastest layer for the weight's device and type."""
    if can_pack(weight):
        return PackedLinear(weight, bias)
    return (WidenedLinear if must_widen(weight) else DenseLinear)(weight, bias)


def make_gated(gate: torch.Tensor, up: torch.Tensor) -> GatedLinear:
    """Returns the fastest gated layer for the weights' device and type."""
    if can_pack(gate):
        return PackedGated(gate, up)
    return (WidenedGated if must_widen(gate) else DenseGated)(gate, up)


def can_pack(weight: torch.Tensor) -> bool:
    """Returns True if oneDNN has pre-packed kernels for this weight on this machine."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and _multiplies(weight.dtype))


def must_widen(tensor: torch.Tensor) -> bool:
    """Returns True if this machine emulates products of this 16-bit type."""
    return tensor.device.type == "cpu" and tensor.dtype.itemsize == 2 and not _multiplies(tensor.dtype)


def widened(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Computes ``F.linear``; multiplies many rows in float32."""
    if rows.shape[:-1].numel() < LEAST_WIDENED:
        return F.linear(rows, weight, bias)
    wide = rows.float()
    slices = torch.split(weight, max(WIDENED_BYTES // (4 * weight.shape[1]), 1))
    parts = [F.linear(wide, part.float()) for part in slices]
    projected = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    return projected if bias is None else projected + bias.float()


@functools.cache
def _multiplies(dtype: torch.dtype) -> bool:
    """Returns True if oneDNN has matrix products of this 16-bit type on this CPU."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return bool(supported[dtype]())


def _pack(weight: torch.Tensor) -> torch.Tensor:
    # 1 is the batch size to optimise for; as measured, its layout is as fast at hundreds of rows
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)
    return packed


def _project(
    rows: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    projected: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, activation, [], "")
    return projected


def _project_with(
    rows: torch.Tensor, other: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, operation: str
) -> torch.Tensor:
    combined: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, other, packed, bias, operation)
    return combined


def _bytes(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.nbytes
