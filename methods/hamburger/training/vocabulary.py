"""Parts of the vocabulary to compute a loss over: all, or the tokens a corpus uses and a sample of the rest.

For a small base, the LM head costs most of the micro-step decoder's time, while a few thousand tokens hold nearly all
of a corpus's probability.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hambench.methods.hamburger.training.recipes import Recipe
from hambench.methods.hamburger.training.teacher import Corpus


class Vocabulary:
    """Rows of a head, in the head's order.

    Args:
        head: ``[V, D]``.
    """

    def __init__(self, head: Tensor) -> None:
        self.head = head
        self.bias: Tensor | None = None

    def find(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the rows of ``ids`` and a mask of those present; absent ones map to row 0."""
        return ids, torch.ones_like(ids, dtype=torch.bool)


class _Part(Vocabulary):
    def __init__(self, head: Tensor, bias: Tensor, places: Tensor) -> None:
        super().__init__(head)
        self.bias, self._places = bias, places

    def find(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        places = self._places[ids]
        return places.clamp(min=0), places >= 0


class Shortlist:
    """Tokens that hold most of a teacher's probability, with new negatives from the rest at every draw.

    A negative stands for all tokens that were not drawn, so its logit is raised by the log of their number.

    Args:
        head: ``[V, D]``, frozen.
        top_ids: ``[R, K]``: most probable tokens of the teacher at each row of a corpus.
        top_probs: ``[R, K]``.
        size: Number of tokens that every draw contains.
        num_negatives: Number of other tokens per draw.
    """

    def __init__(
        self, head: Tensor, top_ids: Tensor, top_probs: Tensor, *, size: int, num_negatives: int = 512
    ) -> None:
        mass = torch.zeros(head.shape[0])
        mass.index_add_(0, top_ids.flatten().long(), top_probs.flatten().float())
        order = mass.argsort(descending=True).to(head.device)
        self._rest = order[size:]
        self._num_negatives = min(num_negatives, len(self._rest))
        self._places = torch.full((head.shape[0],), -1, device=head.device)
        self._places[order[:size]] = torch.arange(min(size, len(order)), device=head.device)
        self._all, self._head = head, head[order[:size]]
        self.covered = float(mass[order[:size].cpu()].sum() / mass.sum())
        """Share of the teacher's probability on the tokens that every draw contains."""

    @classmethod
    def of(cls, recipe: Recipe, head: Tensor, corpus: Corpus) -> Shortlist | None:
        """Returns a recipe's shortlist of a corpus; ``None`` if it computes losses over the whole vocabulary."""
        if not recipe.shortlist:
            return None
        return cls(head, corpus.top_ids, corpus.top_probs, size=recipe.shortlist)

    def draw(self) -> Vocabulary:
        """Returns the shortlist with a new sample of the rest."""
        if not self._num_negatives:
            return _Part(self._head, self._head.new_zeros(len(self._head), dtype=torch.float32), self._places)
        chosen = torch.randint(len(self._rest), (self._num_negatives,), device=self._head.device)
        bias = torch.zeros(len(self._head) + len(chosen), device=self._head.device)
        bias[len(self._head) :] = math.log(len(self._rest) / len(chosen))
        return _Part(torch.cat([self._head, self._all[self._rest[chosen]]]), bias, self._places)
