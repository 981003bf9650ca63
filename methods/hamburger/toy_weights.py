"""Seeded weights for the exact gate's toy model: the same bits on every machine.

Their stop head decides differently from token to token, so that groups of every length occur.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hambench.methods.hamburger.architecture import Architecture, BaseReference
from hambench.methods.hamburger.checkpoint import Checkpoint, save, sizes_of
from hambench.methods.hamburger.grafts import Grafts

if TYPE_CHECKING:
    from hambench.decoding import Target

SEED = 31


def save_toy_weights(folder: Path, target: Target) -> Path:
    """Writes seeded weights for a small target of four layers; returns the folder."""
    shape = target.llama.shape
    architecture = Architecture(feature_layers=(0, 1, 2, 3), num_micro_layers=2, merge_heads=4)
    grafts = Grafts(shape, architecture)
    bits = np.random.PCG64(SEED)
    tensors = {}
    for name, tensor in grafts.state_dict().items():
        values = (bits.random_raw(tensor.numel()) >> 40).astype(np.float64) / 2**23 - 1
        scale = 1.4 / tensor.shape[-1] ** 0.5 if tensor.ndim > 1 else 0.1
        scale *= 4 if name.startswith("stop_head") else 1
        drawn = torch.tensor(values * scale, dtype=torch.float32).reshape(tensor.shape)
        tensors[name] = drawn if tensor.ndim > 1 or name.endswith("bias") else torch.ones_like(drawn)
    base = BaseReference(name=target.name, fingerprint=None, sizes=sizes_of(shape))
    save(Checkpoint(architecture=architecture, base=base, base_weights="unchanged", tensors=tensors), folder)
    return folder
