"""Chooses the implementation that a call runs: the fused kernel or the reference."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from typing import Literal

import torch
from torch import Tensor

Impl = Literal["auto", "reference", "fused"]

OLDEST_CAPABILITY = (8, 0)
"""Oldest compute capability that the kernels are compiled and checked for."""

_log = logging.getLogger("hambench.kernels")


def interpreting() -> bool:
    """Returns True if Triton kernels run under its CPU interpreter. Triton reads this when a kernel is decorated."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def use_fused(op: str, impl: Impl, tensor: Tensor, *, unsupported: str | None = None) -> bool:
    """Returns True if this call runs the fused kernel.

    Args:
        op: Name of the op for messages.
        impl: The implementation that the caller asked for.
        tensor: A tensor on the device of the call.
        unsupported: Why the fused version can't take these arguments, or `None` if it can.

    Raises:
        ValueError: If `impl` is unknown, or is `fused` although the kernel can't run.
    """
    if impl == "reference":
        return False
    if impl not in ("auto", "fused"):
        raise ValueError(f"impl must be 'auto', 'reference' or 'fused', got {impl!r}")
    reason = unsupported or _obstacle(tensor.device)
    if reason is None:
        return impl == "fused" or tensor.device.type == "cuda"
    if impl == "fused":
        raise ValueError(f"impl must be 'auto' or 'reference' for this call of {op}: {reason}")
    if tensor.device.type == "cuda":
        _log_once(op, reason)
    return False


def _obstacle(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cpu":
        return (
            None
            if interpreting()
            else "its tensors are on the CPU (TRITON_INTERPRET=1 interprets kernels there)"
        )
    if device.type != "cuda" or torch.version.cuda is None:
        return f"device {device} is not an NVIDIA GPU"
    capability = _capability(device.index or 0)
    if capability < OLDEST_CAPABILITY:
        return f"compute capability must be >= 8.0, got {capability[0]}.{capability[1]}"
    return None


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@functools.cache
def _log_once(op: str, reason: str) -> None:
    _log.warning("%s: reference path, because %s", op, reason)
