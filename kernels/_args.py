"""Checks of op arguments. Each error message names the argument, its value and the fix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check_tensor(
    name: str,
    tensor: Tensor,
    shape: Sequence[int | None],
    *,
    dtypes: Sequence[torch.dtype],
    device: torch.device | None = None,
    last_dim_only: bool = False,
) -> None:
    """Checks shape (`None` = any size), dtype, device and contiguity.

    Args:
        name: Argument name for the message.
        tensor: The argument.
        shape: Required sizes, `None` where any size is valid.
        dtypes: Dtypes that the op accepts.
        device: Where the op's first tensor lives, or `None` for that tensor itself.
        last_dim_only: Only the last dimension must be dense (a cache view may be strided).

    Raises:
        ValueError: If one of them is wrong.
    """
    wanted = "[" + ", ".join("*" if size is None else str(size) for size in shape) + "]"
    fits = tensor.dim() == len(shape) and all(
        size is None or size == got for size, got in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must have shape {wanted}, got {list(tensor.shape)}")
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        got_dtype = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{name} must be {names}, got {got_dtype}; convert it with .to()")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} must be on {device} like the first tensor, got {tensor.device}")
    dense = tensor.stride(-1) == 1 if last_dim_only and tensor.dim() else tensor.is_contiguous()
    if not dense:
        raise ValueError(
            f"{name} must be contiguous, got strides {list(tensor.stride())}; call .contiguous()"
        )


def check_flag(name: str, flag: Tensor | None, device: torch.device) -> None:
    """Checks a device flag: one int32, or absent."""
    if flag is not None:
        check_tensor(name, flag, [1], dtypes=(torch.int32,), device=device)


def check_weight(
    name: str, weight: Tensor, scale: Tensor | None, shape: Sequence[int | None], like: Tensor
) -> None:
    """Checks a weight matrix: either the activations' dtype, or INT8 with one float32 scale per output row."""
    if weight.dtype == torch.int8:
        check_tensor(name, weight, shape, dtypes=(torch.int8,), device=like.device)
        if scale is None:
            raise ValueError(f"{name} is int8, so its scale must be given: float32 [{weight.shape[0]}]")
        check_tensor(
            f"scale of {name}", scale, [weight.shape[0]], dtypes=(torch.float32,), device=like.device
        )
        return
    check_tensor(name, weight, shape, dtypes=(like.dtype, torch.int8), device=like.device)
    if scale is not None:
        raise ValueError(
            f"{name} is {weight.dtype}, so its scale must be None: scales belong to int8 weights"
        )


def output(
    out: Tensor | None, shape: Sequence[int], *, like: Tensor, done: Tensor | None, name: str = "out"
) -> Tensor:
    """Returns the tensor to write: `out` if given (checked), else a new one like `like`.

    Raises:
        ValueError: If `done` is given without `out`. A skipped call leaves its output as it was, so there must be one.
    """
    if out is None:
        if done is not None:
            raise ValueError(f"{name} must be given with done: a skipped call leaves its output as it was")
        return torch.empty(list(shape), dtype=like.dtype, device=like.device)
    check_tensor(name, out, shape, dtypes=(like.dtype,), device=like.device)
    return out


def is_done(done: Tensor | None) -> bool:
    """Returns True if the flag is set. Only reference paths call it: it waits for the device."""
    return done is not None and bool(done.item())
