"""How to train: named settings, importable without torch."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hambench.methods.hamburger.segmentation import Strategy

Objective = Literal["published", "distil"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every number of a training run that is not about its data."""

    name: str
    objective: Objective
    """``published``: cross-entropy of all response tokens + ``stop_weight`` x BCE of the segments' last tokens.
    ``distil``: the un-fused base's distribution and features where segments start, and the micro-step decoder's
    agreement with its greedy tokens."""
    base_lr: float
    graft_lr: float
    final_lr_share: float
    """The cosine ends at this share of each peak."""
    warmup_steps: int = 0
    batch_size: int = 8
    """Sequences of one optimiser step on one device."""
    accumulate: int = 1
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    feature_noise: float = 0.0
    """Noise added to cached features, in their standard deviations: few responses are soon known by heart."""
    epochs: float = 1.0
    stop_weight: float = 0.5
    feature_weight: float = 0.0
    """``distil``: of the squared distance of the features, each divided by its standard deviation."""
    micro_weight: float = 1.0
    """``distil``: of the micro-step decoder's cross-entropy."""
    micro_epochs: float = 0.0
    """Epochs over cached un-fused features, micro-step decoder and stop head alone, before the base is touched."""
    micro_batch: int = 256
    """Macro-steps of an optimiser step of that first stage."""
    reader_epochs: float = 0.0
    """Then: epochs over fused inputs through the base's first layers only, pulled towards the un-fused stream where
    the micro-step decoder's first feature is taken."""
    num_micro_layers: int = 4
    lora_rank: int = 0
    """Rank of the low-rank changes to the base's linear layers; 0 trains the whole base."""
    adapt_first_layers_only: bool = False
    """Low-rank changes go to the layers up to the first feature only."""
    start_from_base: bool = False
    """Micro layers copied from the base's last ones, and new branches starting at zero."""
    merge_residual: Literal["mean", "last"] = "mean"
    micro_norm: bool = False
    strategy: Strategy = dataclasses.field(default_factory=Strategy)
    thresholds: tuple[float, float] | None = None
    """Draws the strategy's threshold log-uniformly between these, anew for every sequence and epoch."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "micro_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("base_lr", "graft_lr", "epochs", "micro_epochs", "reader_epochs", "lora_rank", "clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")


PAPER = Recipe(
    name="paper",
    objective="published",
    base_lr=5e-5,
    graft_lr=1e-4,
    # both groups end at 1e-5 there; the share below is the grafts'
    final_lr_share=0.1,
    batch_size=8,
    # 8 GPUs x 8 sequences x 2: one GPU reaches the published 128 by accumulating
    accumulate=16,
)
"""The published recipe: everything trained jointly, one epoch."""

SMALL = Recipe(
    name="small",
    objective="distil",
    base_lr=2e-3,
    graft_lr=6e-4,
    final_lr_share=0.05,
    warmup_steps=20,
    batch_size=8,
    betas=(0.9, 0.95),
    weight_decay=0.1,
    feature_noise=0.25,
    epochs=4.0,
    stop_weight=0.5,
    feature_weight=0.5,
    micro_weight=0.5,
    micro_epochs=2.0,
    micro_batch=224,
    reader_epochs=2.0,
    num_micro_layers=2,
    lora_rank=24,
    adapt_first_layers_only=True,
    start_from_base=True,
    merge_residual="last",
    micro_norm=True,
    strategy=Strategy(name="sliding", threshold=0.3),
    thresholds=(0.02, 2.0),
)
"""For an hour or two on a CPU: sane starts, cached features first, then distillation through fused inputs."""

RECIPES = {recipe.name: recipe for recipe in (PAPER, SMALL)}
