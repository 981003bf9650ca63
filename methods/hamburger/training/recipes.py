"""How to train: named settings, importable without torch."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hambench.methods.hamburger.data.segmentation import Strategy

Objective = Literal["published", "distil"]
Stage = Literal["micro", "reader", "fused", "student"]


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
    stages: tuple[tuple[Stage, float], ...] = (("fused", 1.0),)
    """What is done in order, and at which share of the minutes given each ends.

    ``micro``: the micro-step decoder and the stop head from cached un-fused features, before the base is touched.
    ``reader``: embedder and adapters over fused inputs, through the base's layers up to the first feature only.
    ``fused``: all that is trained, through the whole base.
    ``student``: the micro-step decoder and the stop head from the features of the base that reads fused inputs.
    """
    data_share: float = 0.3
    """Share of the minutes given by which answers and lessons must be made; what is there by then is used."""
    epochs: float = 1.0
    stop_weight: float = 0.5
    feature_weight: float = 0.0
    """``distil``: of the squared distance of the features, each divided by its standard deviation."""
    micro_weight: float = 1.0
    """``distil``: of the micro-step decoder's cross-entropy."""
    micro_epochs: float = 0.0
    """Epochs of ``micro``."""
    micro_batch: int = 256
    """Macro-steps of an optimiser step of ``micro`` and ``student``."""
    shortlist: int = 0
    """Tokens that the loss of ``micro`` is taken over, beside a sample of the rest; 0 takes the whole vocabulary."""
    reader_epochs: float = 0.0
    """Epochs of ``reader``."""
    student_epochs: float = 0.0
    """Epochs of ``student``."""
    student_lr: float = 2e-4
    calibrate: bool = False
    """Whether the stop head is at last scaled and shifted on held-out responses, so that P(continue) is the chance that
    going on is right."""
    num_micro_layers: int = 4
    lora_rank: int = 0
    """Rank of the low-rank changes to the base's linear layers; 0 trains the whole base."""
    adapt_first_layers_only: bool = False
    """Low-rank changes go to the layers up to the first feature only."""
    adapt_fused_slots_only: bool = False
    """Low-rank changes count at slots of several tokens only: one-token decoding stays the base's own."""
    start_from_base: bool = False
    """Micro layers copied from the base's last ones, and new branches starting at zero."""
    merge_residual: Literal["mean", "last"] = "mean"
    micro_norm: bool = False
    strategy: Strategy = dataclasses.field(default_factory=Strategy)
    cut_by_stop_head: bool = False
    """After ``micro``, values to cut by are what the stop head says on un-fused features, not the base's entropies."""
    thresholds: tuple[float, float] | None = None
    """Draws the strategy's threshold log-uniformly between these, anew for every sequence and epoch."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "micro_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        numbers = (
            *(
                "base_lr",
                "graft_lr",
                "student_lr",
                "epochs",
                "micro_epochs",
                "reader_epochs",
                "student_epochs",
            ),
            *("lora_rank", "clip", "shortlist"),
        )
        for name in numbers:
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
    stages=(("micro", 0.62), ("reader", 0.86), ("student", 0.97)),
    base_lr=2e-3,
    graft_lr=6e-4,
    student_lr=2e-4,
    final_lr_share=0.05,
    warmup_steps=20,
    batch_size=8,
    betas=(0.9, 0.95),
    weight_decay=0.1,
    feature_noise=0.2,
    stop_weight=0.5,
    micro_epochs=3.0,
    micro_batch=384,
    shortlist=8192,
    reader_epochs=3.0,
    student_epochs=1.0,
    calibrate=True,
    num_micro_layers=2,
    lora_rank=24,
    adapt_first_layers_only=True,
    adapt_fused_slots_only=True,
    start_from_base=True,
    merge_residual="last",
    micro_norm=True,
    # values are P(stop) here: a token joins where the stop head would go on at a confidence of 1 - threshold
    strategy=Strategy(name="sliding", threshold=0.3),
    cut_by_stop_head=True,
    thresholds=(0.08, 0.6),
)
"""For an hour on a CPU: sane starts, cached features first, then fused inputs, then what both make of each other."""

CONTINUED = dataclasses.replace(
    SMALL,
    name="continued",
    stages=(("reader", 0.82), ("student", 0.97)),
    reader_epochs=12.0,
    student_epochs=2.0,
    base_lr=1e-3,
    graft_lr=3e-4,
    student_lr=1e-4,
    batch_size=4,
)
"""``small`` at half its pace and without its first stage, for ``--start-from``: a few new responses are learned by
heart sooner than they teach the micro-step decoder anything, and reading fused slots has most to gain."""

RECIPES = {recipe.name: recipe for recipe in (PAPER, SMALL, CONTINUED)}
