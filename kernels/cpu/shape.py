"""A model's sizes for the native kernels, and a check whether they can run it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from hambench.kernels.cpu.library import Library
from hambench.kernels.cpu.operands import FLOATS


class NativeShape(NamedTuple):
    """Sizes of a Llama-family model."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float


def shape_obstacle(
    shape: NativeShape, dtype: torch.dtype, device: torch.device, library: Library
) -> str | None:
    """Returns why the kernels can't run a model; ``None`` if they can."""
    if device.type != "cpu":
        return f"the model is on {device}"
    if dtype not in FLOATS:
        return f"the model is in {str(dtype).removeprefix('torch.')}, the kernels take bfloat16 and float32"
    if min(shape[:-1]) < 1:
        return f"a size of {shape} is not positive"
    if shape.head_dim % 2 or shape.head_dim > library.limits.head_dim:
        return (
            f"its head size is {shape.head_dim}, the kernels take even ones up to {library.limits.head_dim}"
        )
    if shape.num_heads % shape.num_kv_heads or shape.num_heads // shape.num_kv_heads > library.limits.rows:
        return f"it has {shape.num_heads} query heads over {shape.num_kv_heads} key/value heads"
    return None
