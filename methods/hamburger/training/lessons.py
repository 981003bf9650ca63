"""A corpus as training draws from it: batches of fused sequences, each with what the un-fused base says of them."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from hambench.methods.hamburger.grafts import Grafts
from hambench.methods.hamburger.training.merged_forward import FusedBatch, collate
from hambench.methods.hamburger.training.micro_batches import MicroBatches
from hambench.methods.hamburger.training.objectives import BatchLesson
from hambench.methods.hamburger.training.recipes import Recipe
from hambench.methods.hamburger.training.teacher import Corpus


class Lessons:
    """What the stages of ``distil`` learn from.

    Args:
        corpus: The base's lessons.
        recipe: How segments are cut.
        max_micro_steps: Most tokens of a segment.
        train: Sequences to train on.
        held: Sequences never trained on.
    """

    def __init__(
        self,
        corpus: Corpus,
        recipe: Recipe,
        max_micro_steps: int,
        *,
        train: Sequence[int],
        held: Sequence[int],
    ) -> None:
        self.corpus, self.recipe, self.train, self.held = corpus, recipe, list(train), list(held)
        self.max_micro_steps = max_micro_steps
        self.batches = MicroBatches(corpus, max_micro_steps)
        self.lengths = corpus.offsets.diff().tolist()
        generator = torch.Generator().manual_seed(0)
        sample = torch.randperm(corpus.num_rows, generator=generator)[:4096]
        self.spread = corpus.features[sample].float().std(0).clamp(min=1e-3)
        """``[F, D]``: standard deviations of the features."""
        self._values = corpus.entropies

    @torch.no_grad()
    def cut_by_stop_head(self, grafts: Grafts) -> None:
        """From now on segments are those that the stop head would make on un-fused features, not the entropies'.

        It is asked at every token as if that were the first of a macro-step, which takes no micro-step; what it is
        asked at token g decides whether token g + 1 joins.
        """
        stops = [
            torch.sigmoid(grafts.stop_head(rows[:, -1].float()))
            for rows in torch.split(self.corpus.features, 8192)
        ]
        self._values = torch.cat(stops).roll(1)

    def segments(self, index: int, threshold: float | None = None) -> list[int]:
        """Segment lengths of one response; by the recipe's threshold unless another is given."""
        start, end = self.corpus.row_offsets[index : index + 2].tolist()
        strategy = dataclasses.replace(self.recipe.strategy, max_length=self.max_micro_steps)
        if threshold is not None:
            strategy = dataclasses.replace(strategy, threshold=threshold)
        return strategy.cut(self._values[start:end].tolist())

    def batch_of(self, indices: Sequence[int], rng: random.Random | None) -> tuple[FusedBatch, BatchLesson]:
        """A batch; with an ``rng``, every sequence has a threshold of its own where the recipe says so."""
        rows = []
        for index in indices:
            threshold = None
            if rng is not None and self.recipe.thresholds is not None:
                threshold = math.exp(rng.uniform(*map(math.log, self.recipe.thresholds)))
            ids, prompt = self.corpus.sequence(index)
            rows.append((ids.tolist(), prompt, self.segments(index, threshold)))
        batch = collate(rows, self.max_micro_steps)
        starts = self.corpus.row_offsets[torch.tensor(list(indices))][batch.sources[:, 0]] + batch.starts
        return batch, self.lesson(starts)

    def lesson(self, starts: Tensor) -> BatchLesson:
        """What the un-fused base says of macro-steps whose first tokens are rows ``starts`` ``[M]``."""
        return BatchLesson(self.batches.features(starts), self.spread, self.batches.targets(starts))

    def trained_rows(self) -> Tensor:
        """Rows of the training sequences that at least one more token follows."""
        spans = [torch.arange(*self.corpus.row_offsets[i : i + 2].tolist()) for i in self.train]
        rows = torch.cat(spans)
        return rows[self.batches.remaining[rows] > 1]
