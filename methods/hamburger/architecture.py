"""Description of a HAMburger checkpoint: every setting that affects the computation, saved with the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from hambench.errors import ModelError

MergeResidual = Literal["mean", "last"]
PositionConvention = Literal["train", "hf"]
BaseWeights = Literal["unchanged", "lora", "fused_lora", "full"]
"""Changes to the base: none, low-rank changes to every pass, low-rank changes only to passes of merged slots (one-token
decoding is then the base's own), or all weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Grafts on a base model. The defaults are the paper's, for a base of 16 layers."""

    feature_layers: tuple[int, ...] = (3, 7, 11, 15)
    """Base layers (0-based) whose hidden state the micro-step decoder reads; token 1 comes from the last of them."""
    num_micro_layers: int = 4
    max_micro_steps: int = 4
    """Most tokens per macro-step."""
    merge_heads: int = 64
    """Heads of the compositional embedder's cross-attention."""
    merge_residual: MergeResidual = "mean"
    """Vector that the merge result is added to: the tokens' mean embedding (published) or the last token's."""
    micro_norm: bool = False
    """True if a final RMS norm precedes the heads in the micro path (published: false)."""
    position_convention: PositionConvention = "train"
    """``train``: a slot has its last token's index; ``hf``: generated slots have one more, as in the public
    Hugging Face decoding path."""

    def __post_init__(self) -> None:
        if not self.feature_layers or list(self.feature_layers) != sorted(set(self.feature_layers)):
            raise ValueError(f"feature_layers must be ascending and not empty, got {self.feature_layers}")
        if self.feature_layers[0] < 0:
            raise ValueError(f"feature_layers must be >= 0, got {self.feature_layers}")
        for name in ("num_micro_layers", "max_micro_steps", "merge_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name, kind in (("merge_residual", MergeResidual), ("position_convention", PositionConvention)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {get_args(kind)}, got {getattr(self, name)!r}")

    @property
    def num_features(self) -> int:
        """Number of feature vectors at the start of every micro-step sequence."""
        return len(self.feature_layers)

    def micro_slots(self, num_micro_steps: int) -> int:
        """Returns the rows that so many micro-steps store: the first takes features and a token, others a token."""
        return self.num_features + num_micro_steps if num_micro_steps else 0

    @classmethod
    def for_base(cls, num_layers: int, **changes: Any) -> Self:
        """Returns the published architecture with its four feature layers spread over a base of ``num_layers``."""
        quarters = sorted({max(1, num_layers * i // 4) - 1 for i in (1, 2, 3, 4)})
        return cls(**{"feature_layers": tuple(quarters), **changes})

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Reads fields that :func:`dataclasses.asdict` wrote.

        Raises:
            ModelError: If a field is missing, unknown or invalid.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if set(fields) != known:
            wrong = ", ".join(sorted(set(fields) ^ known))
            raise ModelError(f"hamburger.json: the architecture lacks or has unknown fields: {wrong}")
        try:
            return cls(**{**fields, "feature_layers": tuple(fields["feature_layers"])})
        except (TypeError, ValueError) as error:
            raise ModelError(f"hamburger.json: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseReference:
    """Identity of the base model that the grafts belong to."""

    name: str
    fingerprint: str | None
    """See :func:`hambench.methods.hamburger.checkpoint.fingerprint`; ``None`` if the base came without weights."""
    sizes: Mapping[str, Any]
    """The base's shape, field by field."""

    def check(self, sizes: Mapping[str, Any], fingerprint: str | None) -> None:
        """Checks that the sizes, and the fingerprints if both are known, are those of this base.

        Raises:
            ModelError: If they differ; the message names the difference.
        """
        for name, value in self.sizes.items():
            if sizes.get(name) != value:
                raise ModelError(
                    f"the HAMburger checkpoint is for another base ({self.name}): {name} is {value} there, "
                    f"{sizes.get(name)} in the model given"
                )
        if self.fingerprint and fingerprint and self.fingerprint != fingerprint:
            raise ModelError(
                f"the HAMburger checkpoint was trained on different weights from the given model's: {self.name} with "
                f"fingerprint {self.fingerprint[:12]}, here {fingerprint[:12]}; give the base it was made for"
            )
