"""Treats every response token of a corpus as the start of a macro-step."""

from __future__ import annotations

import torch
from torch import Tensor

from hambench.methods.hamburger.training.losses import MicroTargets
from hambench.methods.hamburger.training.teacher import Corpus


class MicroBatches:
    """Targets and features of macro-steps, indexed by the row of their first token.

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
