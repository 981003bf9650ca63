"""The teacher-forced forward over fused inputs: what training computes and what decoding must agree with.

Letters in shapes: B sequences, C slots (prompt tokens and macro-steps), S tokens of a slot at most, M macro-steps of
the whole batch, F feature vectors, D hidden size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hambench.methods.hamburger.base import FusedGate
from hambench.methods.hamburger.data.segmentation import check_lengths
from hambench.methods.hamburger.grafts import CompositionalEmbedder, Grafts
from hambench.methods.hamburger.training.teacher import hidden_layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusedBatch:
    """Sequences whose responses are cut in segments, as tensors; padding is on the right."""

    tokens: Tensor
    """``[B, C, S]``: ids of each slot, zero where it has fewer."""
    lengths: Tensor
    """``[B, C]``: tokens of each slot; 1 for prompt tokens and padding."""
    positions: Tensor
    """``[B, C]``: index of each slot's last token."""
    mask: Tensor
    """``[B, C]``: 1 where there is a slot."""
    sources: Tensor
    """``[M, 2]``: sequence, and the slot whose features each macro-step is decoded from: the one before its own."""
    targets: Tensor
    """``[M, S]``: the macro-step's tokens."""
    target_lengths: Tensor
    """``[M]``."""
    starts: Tensor
    """``[M]``: index of each macro-step's first token in its response."""

    @property
    def target_mask(self) -> Tensor:
        """``[M, S]``: which targets are tokens."""
        return torch.arange(self.targets.shape[1], device=self.targets.device) < self.target_lengths[:, None]

    def to(self, device: torch.device | str) -> FusedBatch:
        """The same on another device."""
        return FusedBatch(**{f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self)})


def collate(sequences: Sequence[tuple[Sequence[int], int, Sequence[int]]], max_steps: int) -> FusedBatch:
    """A batch from ``(ids, prompt length, segment lengths)``.

    Raises:
        DataError: If segment lengths don't fit their response.
    """
    rows = []
    for number, (ids, prompt, segments) in enumerate(sequences):
        check_lengths(segments, len(ids) - prompt, max_steps, where=f"sequence {number}")
        rows.append([1] * prompt + list(segments))
    width = max(map(len, rows))
    num = len(rows)
    tokens = torch.zeros(num, width, max_steps, dtype=torch.int64)
    lengths = torch.ones(num, width, dtype=torch.int64)
    positions = torch.zeros(num, width, dtype=torch.int64)
    mask = torch.zeros(num, width, dtype=torch.int64)
    sources, starts, first_slots = [], [], []
    for b, ((ids, prompt, segments), row) in enumerate(zip(sequences, rows, strict=True)):
        sizes = torch.tensor(row)
        ends = sizes.cumsum(0)
        lengths[b, : len(row)] = sizes
        positions[b, : len(row)] = ends - 1
        mask[b, : len(row)] = 1
        slots = torch.repeat_interleave(torch.arange(len(row)), sizes)
        within = torch.arange(len(ids)) - (ends - sizes)[slots]
        tokens[b, slots, within] = torch.as_tensor(ids, dtype=torch.int64)
        sources += [(b, prompt + k - 1) for k in range(len(segments))]
        starts.append((ends - sizes)[prompt:] - prompt)
        first_slots += [(b, prompt + k) for k in range(len(segments))]
    at, slot = torch.tensor(first_slots).T
    return FusedBatch(
        tokens=tokens,
        lengths=lengths,
        positions=positions,
        mask=mask,
        sources=torch.tensor(sources),
        targets=tokens[at, slot],
        target_lengths=lengths[at, slot],
        starts=torch.cat(starts),
    )


def fuse(batch: FusedBatch, embedding: Tensor, embedder: CompositionalEmbedder) -> Tensor:
    """Input vectors ``[B, C, D]``: embeddings, and merged ones where a slot holds several tokens."""
    single = F.embedding(batch.tokens[..., 0], embedding)
    several = (batch.lengths > 1).nonzero(as_tuple=True)
    if several[0].numel() == 0:
        return single
    merged = embedder(F.embedding(batch.tokens[several], embedding), batch.lengths[several])
    return single.index_put(several, merged.to(single.dtype))


def base_features(
    model: Any,
    grafts: Grafts,
    batch: FusedBatch,
    gate: FusedGate | None = None,
) -> Tensor:
    """Features ``[M, F, D]`` that each macro-step is decoded from, the base reading fused inputs.

    With a ``gate``, the base's low-rank changes count at slots of several tokens only.
    """
    inputs = fuse(batch, model.get_input_embeddings().weight, grafts.embedder)
    with nullcontext() if gate is None else gate.only(batch.lengths > 1):
        streams = hidden_layers(
            model,
            grafts.architecture.feature_layers,
            inputs_embeds=inputs,
            attention_mask=batch.mask,
            position_ids=batch.positions,
        )
    at, slot = batch.sources.T
    return torch.stack([stream[at, slot] for stream in streams], dim=1)


def teacher_forced(
    model: Any,
    grafts: Grafts,
    batch: FusedBatch,
    gate: FusedGate | None = None,
) -> tuple[Tensor, Tensor]:
    """Hidden states for the LM head ``[M, S, D]`` and stop logits ``[M, S]`` of every macro-step, teacher forced."""
    features = base_features(model, grafts, batch, gate)
    embedded = F.embedding(batch.targets[:, :-1], model.get_input_embeddings().weight)
    hidden = grafts.micro(features, embedded)
    return hidden, grafts.stop_head(hidden)
