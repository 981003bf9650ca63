"""The two training objectives, over a batch of merged sequences.

Letters in shapes: M macro-steps, S most tokens per macro-step, F feature layers, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hambench.methods.hamburger.base import FusedGate
from hambench.methods.hamburger.grafts import Grafts
from hambench.methods.hamburger.training.losses import MicroTargets, frozen_head_loss, micro_loss
from hambench.methods.hamburger.training.merged_forward import (
    FusedBatch,
    base_features,
    merged_layers,
    teacher_forced,
)
from hambench.methods.hamburger.training.recipes import Recipe

Losses = dict[str, Tensor]


class BatchLesson:
    """Lesson of the unmerged base at the start of each macro-step of a batch.

    Args:
        features: ``[M, F, D]``.
        spread: ``[F, D]``: the standard deviation of each feature over the corpus.
        targets: Tokens that follow, independently of the segments.
    """

    def __init__(self, features: Tensor, spread: Tensor, targets: MicroTargets) -> None:
        self.features, self.spread, self.targets = features, spread, targets

    def to(self, device: torch.device | str) -> BatchLesson:
        """Returns the same lesson on another device."""
        moved = MicroTargets(**{name: getattr(self.targets, name).to(device) for name in vars(self.targets)})
        return BatchLesson(self.features.to(device), self.spread.to(device), moved)

    def rows(self, chosen: Tensor) -> BatchLesson:
        """Returns the lesson on some of the macro-steps."""
        targets = {name: value[chosen] for name, value in vars(self.targets).items()}
        return BatchLesson(self.features[chosen], self.spread, MicroTargets(**targets))

    @staticmethod
    def joined(parts: Sequence[BatchLesson]) -> BatchLesson:
        """Joins several lessons into one."""
        targets = {
            name: torch.cat([getattr(part.targets, name) for part in parts])
            for name in vars(parts[0].targets)
        }
        features = torch.cat([part.features for part in parts])
        return BatchLesson(features, parts[0].spread, MicroTargets(**targets))


class Student(nn.Module):
    """Base and grafts in one module, so that one optimiser, one wrapper and one device placement serve both.

    Args:
        model: A transformers causal LM, with or without low-rank adapters.
        grafts: Modules grafted onto the model.
        recipe: Selects the objective and its weights.
        gate: Gate after the adapters, if they apply only to merged slots.
    """

    def __init__(
        self, model: nn.Module, grafts: Grafts, recipe: Recipe, gate: FusedGate | None = None
    ) -> None:
        super().__init__()
        self.model, self.grafts, self.recipe, self.gate = model, grafts, recipe, gate

    def forward(
        self, batch: FusedBatch, lesson: BatchLesson | None = None, *, first_layers_only: bool = False
    ) -> Losses:
        """Returns losses by name. Training minimises ``loss``; the others are for the curve."""
        if lesson is not None and first_layers_only:
            return self._read(batch, lesson)
        if lesson is not None:
            return self._distil(batch, lesson)
        return self._published(batch)

    def _published(self, batch: FusedBatch) -> Losses:
        hidden, stop_logits = teacher_forced(self.model, self.grafts, batch, self.gate)
        real = batch.target_mask
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        logits = head(hidden[real].to(head.weight.dtype)).float()
        tokens = F.cross_entropy(logits, batch.targets[real])
        is_last = F.one_hot(batch.target_lengths - 1, batch.targets.shape[1])
        stop = F.binary_cross_entropy_with_logits(stop_logits[real].float(), is_last[real].float())
        accuracy = (logits.argmax(-1) == batch.targets[real]).float().mean()
        return {
            "loss": tokens + self.recipe.stop_weight * stop,
            "tokens": tokens,
            "stop": stop,
            "accuracy": accuracy,
        }

    def _read(self, batch: FusedBatch, lesson: BatchLesson) -> Losses:
        """Returns the distance of the first feature from the unmerged one, with merged slots counting three times."""
        first = self.grafts.architecture.feature_layers[0]
        (stream,) = merged_layers(self.model, self.grafts, batch, (first,), self.gate)
        at, slot = batch.sources.T
        distance = (stream.float() - lesson.features[:, 0].float()) / lesson.spread[0]
        errors = distance.clamp(-10, 10).square().mean(-1)
        weights = torch.where(batch.lengths[at, slot] > 1, 3.0, 1.0)
        return {"loss": (weights * errors).sum() / weights.sum()}

    def _distil(self, batch: FusedBatch, lesson: BatchLesson) -> Losses:
        recipe, targets = self.recipe, lesson.targets
        features = base_features(self.model, self.grafts, batch, self.gate)
        head = self.model.get_output_embeddings().weight.detach()  # type: ignore[operator]
        num = features.shape[0]
        first = frozen_head_loss(
            features[:, -1].float(),
            head,
            ids=targets.top_ids[:, 0],
            probs=targets.top_probs[:, 0],
            weights=torch.ones(num, device=features.device),
        )
        distance = (features.float() - lesson.features.float()) / lesson.spread
        feature = distance.clamp(-20, 20).square().mean()
        micro = micro_loss(
            self.grafts,
            features,
            targets,
            embedding=self.model.get_input_embeddings().weight.detach(),  # type: ignore[operator]
            head=head,
        )
        tokens = micro.tokens / micro.num_tokens.clamp(min=1)
        stop = micro.stop / micro.num_stops.clamp(min=1)
        loss = first.loss / num + recipe.feature_weight * feature + recipe.micro_weight * tokens
        accuracy = (first.argmax == targets.top_ids[:, 0, 0]).float().mean()
        return {
            "loss": loss + recipe.micro_weight * recipe.stop_weight * stop,
            "tokens": first.loss.detach() / num,
            "features": feature.detach(),
            "micro": tokens.detach(),
            "stop": stop.detach(),
            "accuracy": accuracy,
        }
