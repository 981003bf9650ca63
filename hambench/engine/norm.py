"""RMS normalisation: one small fused operation on devices that have one."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class RMSNorm:
    """``rows / sqrt(mean(rows²) + eps) * weight`` over the last dimension, computed in float32.

    Args:
        weight: ``[D]``.
        eps: Added to the mean square.
    """

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self.weight, self.eps = weight, eps
        self._mirrored = torch.cat([weight, weight]) if weight.device.type == "cpu" else None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight."""
        return self.weight.nbytes

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalises ``[..., D]``."""
        if self._mirrored is None:
            return F.rms_norm(rows, self.weight.shape, self.weight, self.eps)
        # on a CPU torch's rms_norm is nine operations but its layer_norm is one kernel. rows followed by their
        # negatives have mean zero and the same mean square, so their layer norm is the rows' RMS norm
        both = F.layer_norm(
            torch.cat([rows, -rows], dim=-1), self._mirrored.shape, self._mirrored, None, self.eps
        )
        return both.narrow(-1, 0, rows.shape[-1]).contiguous()
