"""Checks tensors before a native call, because native code trusts addresses and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hambench.kernels.cpu.library import (
    Dense,
    Vector,
)

FLOATS = (torch.float32, torch.bfloat16)


TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class LinearWeight(NamedTuple):
    """A weight ``[out, in]`` in float32 or bfloat16, or int8 codes with one scale per output."""

    values: Tensor
    scales: Tensor | None = None
    """``[out]``, of int8."""
    bias: Tensor | None = None
    """``[out]``."""


def check_tensor(name: str, tensor: Tensor, size: tuple[int, ...], types: Sequence[torch.dtype]) -> None:
    """Checks size, dtype, device and layout of a tensor whose address goes to native code."""
    if (
        tensor.shape != size
        or tensor.dtype not in types
        or tensor.device.type != "cpu"
        or not tensor.is_contiguous()
    ):
        raise ValueError(
            f"{name} must be contiguous {list(size)} in {' or '.join(map(str, types))} on the CPU, got "
            f"{list(tensor.shape)} in {tensor.dtype} on {tensor.device} with strides {tensor.stride()}"
        )


def vector_tensor(name: str, tensor: Tensor | None, size: int) -> Vector:
    """Returns a checked vector ``[size]``; an empty one for ``None``."""
    if tensor is None:
        return Vector()
    check_tensor(name, tensor, (size,), FLOATS)
    return Vector(tensor.data_ptr(), TYPES[tensor.dtype], size)


def dense_weight(name: str, weight: LinearWeight, outputs: int, inputs: int) -> Dense:
    """Returns a checked weight ``[outputs, inputs]`` with its scales and bias."""
    values, scales, bias = weight
    check_tensor(f"{name}.values", values, (outputs, inputs), tuple(TYPES))
    if (values.dtype == torch.int8) != (scales is not None):
        raise ValueError(f"{name}.scales must be given with int8 values, and only with them")
    dense = Dense(
        values=values.data_ptr(), type=TYPES[values.dtype], outputs=outputs, inputs=inputs, row_stride=inputs
    )
    if scales is not None:
        check_tensor(f"{name}.scales", scales, (outputs,), FLOATS)
        dense.scales, dense.scale_type = scales.data_ptr(), TYPES[scales.dtype]
    if bias is not None:
        check_tensor(f"{name}.bias", bias, (outputs,), FLOATS)
        dense.bias, dense.bias_type = bias.data_ptr(), TYPES[bias.dtype]
    return dense
