"""A corpus in the form that training draws from: batches of merged sequences with the unmerged base's lessons."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from hambench.errors import DataError
from hambench.methods.hamburger.grafts import Grafts
from hambench.methods.hamburger.training.losses import MicroTargets
from hambench.methods.hamburger.training.merged_forward import FusedBatch, collate
from hambench.methods.hamburger.training.objectives import BatchLesson
from hambench.methods.hamburger.training.recipes import Recipe
from hambench.methods.hamburger.training.teacher import Corpus


class MicroBatches:
    """Targets and features of the macro-steps that start at every response token, by the row of that token.

    Args:
        corpus: Lessons of the unmerged base.
        max_micro_steps: Number of tokens to follow a macro-step for.
    """

    def __init__(self, corpus: Corpus, max_micro_steps: int) -> None:
        self.corpus, self.steps = corpus, max_micro_steps
        self.tokens, self.remaining = corpus.response_ids(), corpus.remaining()

    def targets(self, starts: Tensor) -> MicroTargets:
        """Returns what the macro-steps whose first tokens are rows ``starts`` ``[M]`` should emit."""
        offsets = torch.arange(self.steps)
        valid = offsets < self.remaining[starts][:, None]
        rows = (starts[:, None] + offsets).clamp(max=len(self.tokens) - 1)
        return MicroTargets(
            tokens=self.tokens[rows],
            top_ids=self.corpus.top_ids[rows],
            top_probs=self.corpus.top_probs[rows],
            valid=valid,
        )

    def features(self, starts: Tensor) -> Tensor:
        """Returns the unmerged features ``[M, F, D]`` that the macro-steps start from."""
        return self.corpus.features[starts]


class Lessons:
    """Lessons that the stages of ``distil`` learn from.

    Args:
        corpus: Lessons of the base.
        recipe: Decides how to cut segments.
        max_micro_steps: Most tokens per segment.
        train: Sequences to train on.
        held: Held-out sequences, never trained on.
        written: Sequences that HAMburger weights wrote, whose segments are those of decoding.
    """

    def __init__(
        self,
        corpus: Corpus,
        recipe: Recipe,
        max_micro_steps: int,
        *,
        train: Sequence[int],
        held: Sequence[int],
        written: range = range(0),
    ) -> None:
        self.corpus, self.recipe, self.train, self.held = corpus, recipe, list(train), list(held)
        self.max_micro_steps, self.written = max_micro_steps, written
        self.batches = MicroBatches(corpus, max_micro_steps)
        self.lengths = corpus.offsets.diff().tolist()
        generator = torch.Generator().manual_seed(0)
        sample = torch.randperm(corpus.num_rows, generator=generator)[:4096]
        self.spread = corpus.features[sample].float().std(0).clamp(min=1e-3)
        """``[F, D]``: standard deviation of each feature."""
        self._values = corpus.entropies

    @torch.no_grad()
    def cut_by_stop_head(self, grafts: Grafts) -> None:
        """Cuts segments from now on where the stop head would, on unmerged features, and no longer by entropy.

        Asks the stop head at every token as if that were the first of a macro-step, which takes no micro-step. Its
        answer at token g decides whether token g + 1 joins.
        """
        device = next(grafts.stop_head.parameters()).device
        stops = [
            torch.sigmoid(grafts.stop_head(rows[:, -1].to(device).float())).cpu()
            for rows in torch.split(self.corpus.features, 8192)
        ]
        self._values = torch.cat(stops).roll(1)

    def segments(self, index: int, threshold: float | None = None) -> list[int]:
        """Returns the segment lengths of one response: as it was written, else by ``threshold`` or the recipe's."""
        start, end = self.corpus.row_offsets[index : index + 2].tolist()
        if index in self.written:
            firsts = (~self.corpus.joins[start:end]).nonzero()[:, 0]
            return torch.diff(firsts, append=torch.tensor([end - start])).tolist()
        strategy = dataclasses.replace(self.recipe.strategy, max_length=self.max_micro_steps)
        if threshold is not None:
            strategy = dataclasses.replace(strategy, threshold=threshold)
        return strategy.cut(self._values[start:end].tolist())

    def batch_of(self, indices: Sequence[int], rng: random.Random | None) -> tuple[FusedBatch, BatchLesson]:
        """Builds a batch; with an ``rng``, each sequence gets its own threshold if the recipe says so."""
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
        """Returns the unmerged base's lesson on macro-steps whose first tokens are rows ``starts`` ``[M]``."""
        return BatchLesson(self.batches.features(starts), self.spread, self.batches.targets(starts))

    def trained_rows(self) -> Tensor:
        """Returns the rows of training sequences that at least one more token follows.

        Raises:
            DataError: If there are none.
        """
        spans = [torch.arange(*self.corpus.row_offsets[i : i + 2].tolist()) for i in self.train]
        rows = torch.cat(spans)
        rows = rows[self.batches.remaining[rows] > 1]
        if not len(rows):
            raise DataError("training needs responses of at least 2 tokens, and every one has a single token")
        return rows
