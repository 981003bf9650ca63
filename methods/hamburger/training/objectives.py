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
from hambench.methods.hamburger.training.vocabulary import Vocabulary

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

    @property
    def reader_features(self) -> tuple[int, ...]:
        """The feature layers whose features the stage ``reader`` compares."""
        layers = self.grafts.architecture.feature_layers
        return layers[:1] if self.recipe.adapt_first_layers_only else layers

    @property
    def reader_layers(self) -> int:
        """Number of the base's layers that the stage ``reader`` runs."""
        compared = self.reader_features[-1] + 1 if self.recipe.reader_feature_weight else 0
        return self.grafts.shape.num_layers if self.recipe.reader_token_weight else compared

    def forward(
        self,
        batch: FusedBatch,
        lesson: BatchLesson | None = None,
        *,
        is_reading: bool = False,
        vocabulary: Vocabulary | None = None,
    ) -> Losses:
        """Returns losses by name. Training minimises ``loss``; the others are for the curve.

        Args:
            batch: Merged sequences.
            lesson: The unmerged base's lesson; without one, the loss is the published one.
            is_reading: Compute the loss of the stage ``reader``.
            vocabulary: The part of the vocabulary over which ``reader`` compares distributions; by default all.
        """
        if lesson is not None and is_reading:
            return self._read(batch, lesson, vocabulary)
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

    def _read(self, batch: FusedBatch, lesson: BatchLesson, vocabulary: Vocabulary | None) -> Losses:
        """Returns the distance from the unmerged features and distributions, with merged slots counting three times."""
        recipe, compared = self.recipe, self.reader_features
        layers = sorted({*(compared if recipe.reader_feature_weight else ()), self.reader_layers - 1})
        streams = merged_layers(self.model, self.grafts, batch, layers, self.gate)
        at, slot = batch.sources.T
        weights = torch.where(batch.lengths[at, slot] > 1, 3.0, 1.0)
        weights = weights / weights.sum()
        losses: Losses = {}
        loss = streams[-1].new_zeros((), dtype=torch.float32)
        if recipe.reader_feature_weight:
            merged = torch.stack(streams[: len(compared)], dim=1).float()
            distance = (merged - lesson.features[:, : len(compared)].float()) / lesson.spread[: len(compared)]
            features = (weights * distance.clamp(-10, 10).square().mean((1, 2))).sum()
            loss, losses["features"] = loss + recipe.reader_feature_weight * features, features.detach()
        if recipe.reader_token_weight:
            divergence, is_same = self._next_tokens(streams[-1], lesson.targets, weights, vocabulary)
            loss, losses["tokens"] = loss + recipe.reader_token_weight * divergence, divergence.detach()
            losses["accuracy"] = is_same.float().mean()
        return {"loss": loss, **losses}

    def _next_tokens(
        self, hidden: Tensor, targets: MicroTargets, weights: Tensor, vocabulary: Vocabulary | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the weighted sum of the divergences after ``hidden`` ``[M, D]``, and where the best tokens agree."""
        if vocabulary is None:
            vocabulary = Vocabulary(self.model.get_output_embeddings().weight.detach())  # type: ignore[operator]
        ids, is_inside = vocabulary.find(targets.top_ids[:, 0].long())
        shares = targets.top_probs[:, 0].float() * is_inside
        out = frozen_head_loss(
            hidden.float(), vocabulary.head, ids=ids, probs=shares, weights=weights, bias=vocabulary.bias
        )
        # a cross-entropy is the divergence and the target's own entropy, which is no error
        entropies = -torch.xlogy(shares, shares).sum(-1)
        return out.loss - (weights * entropies).sum(), (out.argmax == ids[:, 0]) & is_inside[:, 0]

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
