"""HAMburger's knobs, and the facts that it states about itself to the rest of hambench."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from hambench.decoding import DecodingMethod, KnobValue, MethodConfig
from hambench.errors import ModelError
from hambench.method_facts import Look, MethodCeilings, ModelBytes, Phase, ShortOption
from hambench.methods.common.verified import CONFIDENCE
from hambench.methods.hamburger.architecture import Architecture
from hambench.methods.hamburger.byte_rule import HamburgerBytes
from hambench.methods.hamburger.weights_folder import find_weights, read_config

if TYPE_CHECKING:
    from pathlib import Path

    from hambench.decoding import Target
    from hambench.records import StepRecord

ONE_TOKEN_CONTROL = 1.1
"""A confidence that no probability reaches, for one token per macro-step from the weights that HAMburger uses. Without
this point, a gain in quality can't be told from the effect of fine-tuning."""
LOOPS = ("run-ahead", "predicated", "conditional")
"""Loops of :mod:`hambench.engine.cuda.early_exit` in the graph regime, repeated here because that module needs
torch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HamburgerConfig(MethodConfig):
    """Emits up to four tokens per forward of the base and stores them in one KV slot; lossless only if verified."""

    method: ClassVar[str] = "hamburger"
    axis: ClassVar[str | None] = "confidence"
    axis_values: ClassVar[tuple[KnobValue, ...]] = (0.5, 0.6, 0.7, 0.8, 0.9, ONE_TOKEN_CONTROL)
    control: ClassVar[dict[str, KnobValue]] = {"confidence": ONE_TOKEN_CONTROL}
    aliases: ClassVar[dict[str, str]] = {"c": "confidence"}
    all_settings: ClassVar[tuple[Mapping[str, KnobValue], ...]] = ({}, {"verify": True, "confidence": 0.5})
    beyond_all: ClassVar[str] = "other confidences (--confidence), verified drafts at them, and other weights"
    look: ClassVar[Look | None] = Look("orange", "o")
    phases: ClassVar[tuple[Phase, ...]] = (
        Phase("hambench.methods.hamburger.session", "choose", "sample"),
        Phase("hambench.methods.hamburger.model", "HamburgerModel.merge", "embedder"),
        Phase("hambench.methods.hamburger.model", "HamburgerModel.micro_step", "micro-step"),
        Phase("hambench.methods.hamburger.model", "HamburgerModel.continue_probability", "stop head"),
        Phase("hambench.methods.hamburger.device.native_step", "NativeStep.next", "native macro-step"),
    )
    short_options: ClassVar[tuple[ShortOption, ...]] = (
        CONFIDENCE,
        ShortOption(
            flags=("--checkpoint",),
            knob="checkpoint",
            help="HAMburger: folder of weights for the model.",
            metavar="FOLDER",
            is_axis=False,
        ),
        ShortOption(
            flags=("--position-convention",),
            knob="position_convention",
            help="HAMburger: train or hf, instead of the convention stored with the weights.",
        ),
    )
    gate_settings: ClassVar[tuple[dict[str, KnobValue], ...]] = ({"confidence": 0.5},)
    max_bars: ClassVar[int] = 2
    merges_tokens: ClassVar[bool] = True

    confidence: float = 0.5
    """Least P(continue) of the stop head to continue a macro-step; above 1 it is the one-token control."""
    checkpoint: str | None = None
    """Folder of weights, as ``hambench hamburger import`` or ``train`` writes it; by default the weights shipped for
    the model."""
    position_convention: str | None = None
    """``train`` or ``hf``, instead of the convention stored with the weights."""
    verify: bool = False
    """Lossless: nothing is merged, the micro-step decoder drafts from the base's own features, and the base verifies
    the draft in one forward. The confidence is the stop head's, as without."""
    loop: str = "run-ahead"
    """Loop that launches greedy macro-steps on the device (regime ``graph``): ``run-ahead``, ``predicated`` or
    ``conditional``, see :mod:`hambench.engine.cuda.early_exit`. It has no effect elsewhere."""

    def __post_init__(self) -> None:
        if not self.confidence >= 0:
            raise ValueError(f"confidence must be >= 0, got {self.confidence}")
        if self.position_convention not in (None, "train", "hf"):
            raise ValueError(f"position_convention must be 'train' or 'hf', got {self.position_convention!r}")
        if self.loop not in LOOPS:
            raise ValueError(f"loop must be one of {', '.join(LOOPS)}, got {self.loop!r}")

    @property
    def is_control(self) -> bool:
        """True if no probability reaches the confidence, so that every step yields one token."""
        return self.confidence > 1

    @property
    def is_lossless(self) -> bool:
        """True if the target verifies what is drafted."""
        return self.verify

    @property
    def variant(self) -> str:
        """Verified settings are a curve of their own."""
        return "verified" if self.verify else ""

    @classmethod
    def sweep(cls, knobs: Mapping[str, Any] | None = None) -> tuple[Self, ...]:
        """Returns the default sweep; verified, the one-token control would draft nothing and is left out."""
        return tuple(
            config
            for config in super().sweep(knobs)
            if not (config.verify and config.is_control and "confidence" not in cls._given(knobs))
        )

    def own_sizes(self, model: str) -> dict[str, KnobValue]:
        """Returns layers and longest group of the micro-step decoder, for the weights that this config would use."""
        try:
            config = read_config(find_weights(self.checkpoint, model))
            architecture = Architecture.from_json(config["architecture"])
        except ModelError:
            return {}
        return {name: getattr(architecture, name) for name in ("num_micro_layers", "max_micro_steps")}

    def bytes_read(
        self, step: StepRecord, before: StepRecord, sizes: ModelBytes, own_sizes: Mapping[str, KnobValue]
    ) -> float | None:
        """Counts base forwards, heads, merges and micro-steps; ``None`` if the decoder's sizes are unknown."""
        rule = bytes_with(sizes, own_sizes)
        if rule is None:
            return None
        return rule.of_verified_step(step) if self.verify else rule.of_step(step, before)

    @classmethod
    def ceilings(cls, sizes: ModelBytes, *, model: str, context: int) -> MethodCeilings:
        """Computes ceilings for the weights shipped for the model, else for the paper's (four micro layers)."""
        rule = bytes_with(sizes, cls().own_sizes(model)) or HamburgerBytes(sizes)
        return rule.ceilings(context=context)

    def for_toy(self, target: Target, folder: Path) -> HamburgerConfig:
        """Returns the config with seeded random weights, because none are shipped for the toy."""
        if self.checkpoint is not None:
            return self
        from hambench.methods.hamburger.toy_weights import save_toy_weights

        return dataclasses.replace(self, checkpoint=str(save_toy_weights(folder, target)))

    def unavailable_for(self, model: str) -> str | None:
        """Returns why there are no weights, neither given nor shipped for the model; ``None`` if there are."""
        try:
            find_weights(self.checkpoint, model)
        except ModelError as error:
            return str(error)
        return None

    def unavailable_on(self, target: Target) -> str | None:
        """Returns why the target does not fit: the grafts read the hidden states of the engine's own layers."""
        if target.llama.reference is None:
            return f"HAMburger needs a Llama-family model on the engine's own layers; {target.name} is not"
        return None

    def build(self, target: Target) -> DecodingMethod:
        """Loads the grafts, and the base weights that come with them, once per target and checkpoint.

        Raises:
            ModelError: If there are no weights for this model, or they belong to another.
        """
        from hambench.methods.hamburger.method import build, build_verified

        return build_verified(self, target) if self.verify else build(self, target)


def bytes_with(sizes: ModelBytes, own_sizes: Mapping[str, KnobValue]) -> HamburgerBytes | None:
    """Returns the byte rule for a micro-step decoder of these sizes; ``None`` if they are unknown."""
    layers, longest = own_sizes.get("num_micro_layers"), own_sizes.get("max_micro_steps")
    if not isinstance(layers, int) or not isinstance(longest, int):
        return None
    return HamburgerBytes(sizes, layers, longest)
