"""The knobs of HAMburger."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from hambench.decoding import DecodingMethod, KnobValue, MethodConfig

if TYPE_CHECKING:
    from hambench.models.target import TargetModel

ONE_TOKEN_CONTROL = 1.1
"""A confidence that no probability reaches: one token per macro-step, from the weights that HAMburger uses. Without
this point a gain in quality can't be told from the effect of fine-tuning."""
LOOPS = ("run-ahead", "predicated", "conditional")
"""Those of :mod:`hambench.engine.cuda.early_exit` that the graph regime has, named here because that needs torch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HamburgerConfig(MethodConfig):
    """Emits up to four tokens per forward of the base and stores them in one KV slot; not lossless."""

    method: ClassVar[str] = "hamburger"
    axis: ClassVar[str | None] = "confidence"
    axis_values: ClassVar[tuple[KnobValue, ...]] = (0.5, 0.6, 0.7, 0.8, 0.9, ONE_TOKEN_CONTROL)
    control: ClassVar[dict[str, KnobValue]] = {"confidence": ONE_TOKEN_CONTROL}
    aliases: ClassVar[dict[str, str]] = {"c": "confidence"}

    confidence: float = 0.5
    """A macro-step goes on while the stop head's P(continue) reaches this; above 1 it is the one-token control."""
    checkpoint: str | None = None
    """Folder of weights (``hambench hamburger import`` or ``train`` writes one); by default those shipped for the
    model."""
    position_convention: str | None = None
    """``train`` or ``hf`` instead of what the weights say."""
    loop: str = "run-ahead"
    """How greedy macro-steps are launched where they run on the device (regime ``graph``): ``run-ahead``,
    ``predicated`` or ``conditional``, see :mod:`hambench.engine.cuda.early_exit`; elsewhere it changes nothing."""

    def __post_init__(self) -> None:
        if not self.confidence >= 0:
            raise ValueError(f"confidence must be >= 0, got {self.confidence}")
        if self.position_convention not in (None, "train", "hf"):
            raise ValueError(f"position_convention must be 'train' or 'hf', got {self.position_convention!r}")
        if self.loop not in LOOPS:
            raise ValueError(f"loop must be one of {', '.join(LOOPS)}, got {self.loop!r}")

    def build(self, target: TargetModel) -> DecodingMethod:
        """Loads the grafts, and the base weights that come with them, once per target and checkpoint.

        Raises:
            ModelError: If there are no weights for this model, or they belong to another.
        """
        from hambench.methods.hamburger.method import build

        return build(self, target)
