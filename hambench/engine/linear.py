"""Linear layers of the engine: a few call forms, and weights stored the way the device reads them fastest.

A decode step is bound by reading weights. On a CPU, ``F.linear`` re-orders a bfloat16 weight on every call, which
costs more than reading it; oneDNN takes a weight re-ordered once, and fuses the activation, the product of gate and
up, and the residual sum in the same pass. A CPU without arithmetic in the model's type multiplies many rows faster in
float32. On any other device the dense weight is already the right form.
"""

from __future__ import annotations

import functools
from typing import Protocol

import torch
import torch.nn.functional as F

LEAST_WIDENED = 8
"""Rows from which on a CPU without arithmetic in the weight's type multiplies in float32; docs/adr/0005."""
WIDENED_BYTES = 4 * 2**20
"""Of a weight that is held in float32 at a time: a copy of a whole LM head costs more in page faults than in sums."""


class Linear(Protocol):
    """``[T, in] -> [T, out]``."""

    @property
    def weight(self) -> torch.Tensor:
        """The dense weight ``[out, in]`` (a copy if it is stored otherwise)."""

    @property
    def bias(self) -> torch.Tensor | None:
        """``[out]``, where there is one."""

    @property
    def weight_bytes(self) -> int:
        """Bytes read by one call."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Projects each row."""

    def add_to(self, stream: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """``stream`` plus the projected rows."""


class GatedLinear(Protocol):
    """``[T, in] -> [T, out]``: ``silu(gate(rows)) * up(rows)``."""

    @property
    def weight(self) -> torch.Tensor:
        """The dense weight ``[2 * out, in]``, gate above up."""

    @property
    def weight_bytes(self) -> int:
        """Bytes read by one call."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Projects, activates and multiplies each row."""


class DenseLinear:
    """The weight as a checkpoint has it.

    Args:
        weight: ``[out, in]``.
        bias: ``[out]`` or ``None``.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    @property
    def weight_bytes(self) -> int:
        """Bytes read by one call."""
        return self.weight.nbytes + _bytes(self.bias)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """``[T, in] -> [T, out]``."""
        return F.linear(rows, self.weight, self.bias)

    def add_to(self, stream: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """``stream`` plus the projected rows."""
        return stream + self(rows)


class DenseGated:
    """Gate and up as one product.

    Args:
        gate: ``[out, in]``.
        up: ``[out, in]``.
    """

    def __init__(self, gate: torch.Tensor, up: torch.Tensor) -> None:
        self.weight = torch.cat([gate, up])

    @property
    def weight_bytes(self) -> int:
        """Bytes read by one call."""
        return self.weight.nbytes

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """``[T, in] -> [T, out]``."""
        gate, up = F.linear(rows, self.weight).chunk(2, dim=-1)
        return F.silu(gate) * up


class WidenedLinear(DenseLinear):
    """A 16-bit weight on a CPU that multiplies no such type: many rows are multiplied in float32, and rounded once.

    There torch's product takes as long again for each row, at a tenth of float32's speed. For a few rows that is still
    less than widening the weight takes.
    """

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """``[T, in] -> [T, out]``."""
        return widened(rows, self.weight, self.bias).to(rows.dtype)


class WidenedGated(DenseGated):
    """Gate and up as :class:`WidenedLinear` has them; activation and product come before the rounding."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """``[T, in] -> [T, out]``."""
        gate, up = widened(rows, self.weight).chunk(2, dim=-1)
        return (F.silu(gate) * up).to(rows.dtype)


class PackedLinear:
    """A weight re-ordered once for oneDNN's kernels (CPU only).

    Args:
        weight: ``[out, in]``.
        bias: ``[out]`` or ``None``.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._packed, self.bias = _pack(weight), bias

    @property
    def weight(self) -> torch.Tensor:
        """A dense copy, made on each call."""
        return self._packed.to_dense()

    @property
    def weight_bytes(self) -> int:
        """Bytes read by one call."""
        return self._packed.nbytes + _bytes(self.bias)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """``[T, in] -> [T, out]``."""
        return _project(rows, self._packed, self.bias, "none")

    def add_to(self, stream: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """``stream`` plus the projected rows, in one pass."""
        return _project_with(rows, stream, self._packed, self.bias, "add")


class PackedGated:
    """Gate and up re-ordered once for oneDNN's kernels, activation and product fused in them (CPU only).

    Args:
        gate: ``[out, in]``.
        up: ``[out, in]``.
    """

    def __init__(self, gate: torch.Tensor, up: torch.Tensor) -> None:
        self._gate, self._up = _pack(gate), _pack(up)

    @property
    def weight(self) -> torch.Tensor:
        """A dense copy, made on each call."""
        return torch.cat([self._gate.to_dense(), self._up.to_dense()])

    @property
    def weight_bytes(self) -> int:
        """Bytes read by one call."""
        return self._gate.nbytes + self._up.nbytes

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """``[T, in] -> [T, out]``."""
        return _project_with(rows, _project(rows, self._gate, None, "swish"), self._up, None, "mul")


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """The fastest layer for the weight's device and type."""
    if can_pack(weight):
        return PackedLinear(weight, bias)
    return (WidenedLinear if must_widen(weight) else DenseLinear)(weight, bias)


def make_gated(gate: torch.Tensor, up: torch.Tensor) -> GatedLinear:
    """The fastest gated layer for the weights' device and type."""
    if can_pack(gate):
        return PackedGated(gate, up)
    return (WidenedGated if must_widen(gate) else DenseGated)(gate, up)


def can_pack(weight: torch.Tensor) -> bool:
    """Whether oneDNN has pre-packed kernels for this weight on this machine."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and _multiplies(weight.dtype))


def must_widen(tensor: torch.Tensor) -> bool:
    """Whether products of this 16-bit type are emulated on this machine."""
    return tensor.device.type == "cpu" and tensor.dtype.itemsize == 2 and not _multiplies(tensor.dtype)


def widened(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``F.linear``, of many rows in float32."""
    if rows.shape[:-1].numel() < LEAST_WIDENED:
        return F.linear(rows, weight, bias)
    wide = rows.float()
    slices = torch.split(weight, max(WIDENED_BYTES // (4 * weight.shape[1]), 1))
    parts = [F.linear(wide, part.float()) for part in slices]
    projected = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    return projected if bias is None else projected + bias.float()


@functools.cache
def _multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN has matrix products of a 16-bit type on this CPU."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return bool(supported[dtype]())


def _pack(weight: torch.Tensor) -> torch.Tensor:
    # 1 is the batch size to optimise for; measured, the layout it picks is as good at hundreds of rows
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
