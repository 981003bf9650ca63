"""Training recipes: named settings, importable without torch."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Literal

from hambench.methods.hamburger.data.segmentation import Strategy

Objective = Literal["published", "distil"]
Stage = Literal["micro", "reader", "fused", "student"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every number of a training run that does not concern its data."""

    name: str
    objective: Objective
    """``published``: cross-entropy of all response tokens + ``stop_weight`` x BCE of the segments' last tokens.
    ``distil``: the unmerged base's distribution and features at segment starts, and the micro-step decoder's
    agreement with the base's greedy tokens."""
    base_lr: float
    graft_lr: float
    final_lr_share: float
    """Share of each peak at which the cosine ends."""
    warmup_steps: int = 0
    batch_size: int = 8
    """Sequences per optimiser step per device."""
    accumulate: int = 1
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    feature_noise: float = 0.0
    """Noise added to cached features, in standard deviations, because few responses are soon memorised."""
    stages: tuple[tuple[Stage, float], ...] = (("fused", 1.0),)
    """Stages in order, each with the share of the minutes at which it ends.

    ``micro``: the micro-step decoder and the stop head, from cached unmerged features, before the base changes.
    ``reader``: embedder and adapters over merged inputs, through the base's layers up to the last one that its
    objective needs.
    ``fused``: all trained parts over merged inputs, through the whole base.
    ``student``: the micro-step decoder and the stop head, from features of the base that reads merged inputs.
    """
    data_share: float = 0.3
    """Share of the minutes for producing answers and lessons; training then uses those that are ready."""
    written_share: float = 0.0
    """``distil``: share of the minutes, after those for data, in which the weights that the run starts from decode
    prompts of the training answers and the base reads what they wrote, slot by slot (on-policy learning)."""
    written_confidences: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8)
    """Confidences to decode these texts at, in turn."""
    written_times: int = 1
    """How often an epoch trains on each of these texts."""
    epochs: float = 1.0
    stop_weight: float = 0.5
    feature_weight: float = 0.0
    """``distil``: weight of the squared distance of the features, each divided by its standard deviation."""
    micro_weight: float = 1.0
    """``distil``: weight of the micro-step decoder's cross-entropy."""
    micro_epochs: float = 0.0
    """Epochs of ``micro``."""
    micro_batch: int = 256
    """Macro-steps per optimiser step of ``micro`` and ``student``."""
    shortlist: int = 0
    """Tokens over which the losses of ``micro``, ``student`` and ``reader`` are computed, with a sample of the rest; 0
    uses the whole vocabulary."""
    reader_epochs: float = 0.0
    """Epochs of ``reader``."""
    reader_feature_weight: float = 1.0
    """``reader``: weight of the squared distance from the unmerged features, each divided by its standard deviation:
    of the first feature, or of all if the low-rank changes are in all layers."""
    reader_token_weight: float = 0.0
    """``reader``: weight of the divergence (KL) of the next token's distribution after each slot from the unmerged
    base's 16 most probable tokens. It needs a pass through the whole base and its head."""
    student_epochs: float = 0.0
    """Epochs of ``student``."""
    student_lr: float = 2e-4
    calibrate: bool = False
    """Scale and shift the stop head on held-out responses at the end, so that P(continue) is the chance that continuing
    is right."""
    num_micro_layers: int = 4
    lora_rank: int = 0
    """Rank of the low-rank changes to the base's linear layers; 0 trains the whole base."""
    adapt_first_layers_only: bool = False
    """Apply low-rank changes only to the layers up to the first feature."""
    adapt_fused_slots_only: bool = False
    """Apply low-rank changes only at slots of several tokens, so that one-token decoding stays the base's own."""
    start_from_base: bool = False
    """Copy micro layers from the base's last ones, and start new branches at zero."""
    merge_residual: Literal["mean", "last"] = "mean"
    micro_norm: bool = False
    strategy: Strategy = dataclasses.field(default_factory=Strategy)
    cut_by_stop_head: bool = False
    """After ``micro``, cut by the stop head's values on unmerged features instead of the base's entropies."""
    thresholds: tuple[float, float] | None = None
    """Draw the strategy's threshold log-uniformly between these, anew per sequence and epoch."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise ValueError(f"{field.name} must be >= 0 and finite, got {value}")
        for name in ("batch_size", "accumulate", "micro_batch", "num_micro_layers", "written_times"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers from 0 to below 1, got {self.betas}")
        if self.thresholds is not None and not 0 < self.thresholds[0] <= self.thresholds[1] < math.inf:
            raise ValueError(
                f"thresholds must be two ascending numbers above 0, or be left out, got {self.thresholds}"
            )
        if ("reader" in dict(self.stages)) and not self.reader_feature_weight + self.reader_token_weight:
            raise ValueError(
                "reader_feature_weight or reader_token_weight must be > 0 for the stage reader, got 0 for both"
            )
        if self.written_share and self.objective != "distil":
            raise ValueError(
                f"written_share must be 0 for the objective {self.objective}, which learns from no base's lessons, "
                f"got {self.written_share:g}"
            )
        if not self.written_confidences or not all(0 <= c < math.inf for c in self.written_confidences):
            raise ValueError(
                f"written_confidences must be at least one number >= 0, got {self.written_confidences}"
            )
        self._check_stages()

    @property
    def data_ends(self) -> float:
        """Share of the minutes at which the first stage begins."""
        return self.data_share + self.written_share

    def without_data_share(self) -> Recipe:
        """Returns the recipe for a run whose data is ready: what follows divides the time for data by its shares."""
        last = self.stages[-1][1]
        stretch = last / (last - self.data_share)
        stages = tuple((name, (end - self.data_share) * stretch) for name, end in self.stages[:-1])
        return dataclasses.replace(
            self,
            data_share=0.0,
            written_share=self.written_share * stretch,
            stages=(*stages, self.stages[-1]),
        )

    def _check_stages(self) -> None:
        names, ends = [name for name, _ in self.stages], [self.data_ends, *(end for _, end in self.stages)]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"stages must name at least one stage, each of them once, got {names}")
        if not all(before < end <= 1 for before, end in itertools.pairwise(ends)):
            data = "data_share + written_share" if self.written_share else "data_share"
            raise ValueError(
                f"stages must end one after another, after {data} "
                f"({self.data_ends:g}) and by 1, got {', '.join(f'{end:g}' for end in ends[1:])}"
            )


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
"""The published recipe: trains everything jointly, for one epoch."""

SMALL = Recipe(
    name="small",
    objective="distil",
    stages=(("micro", 0.62), ("reader", 0.9), ("student", 0.97)),
    data_share=0.27,
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
    reader_token_weight=1.0,
    adapt_fused_slots_only=True,
    start_from_base=True,
    merge_residual="last",
    micro_norm=True,
    # values are P(stop) here: a token joins if the stop head would continue at a confidence of 1 - threshold
    strategy=Strategy(name="sliding", threshold=0.3),
    cut_by_stop_head=True,
    thresholds=(0.08, 0.6),
)
"""For about an hour on a CPU: sane starts, cached features, merged inputs, then the trained base's own features."""

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
"""``small`` at half its pace and without its first stage, for ``--start-from``. The micro-step decoder would memorise a
few new responses before it learns from them, while reading merged slots has most to gain."""

RECIPES = {recipe.name: recipe for recipe in (PAPER, SMALL, CONTINUED)}
