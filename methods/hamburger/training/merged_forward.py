"""The teacher-forced forward over merged inputs, which training computes and decoding must agree with.

Letters in shapes: B sequences, C slots (prompt tokens and macro-steps), S most tokens per slot, M macro-steps of
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

from hambench.methods.hamburger.base import FusedGate, first_layers
from hambench.methods.hamburger.data.segmentation import check_lengths
from hambench.methods.hamburger.grafts import CompositionalEmbedder, Grafts
from hambench.methods.hamburger.training.packed_base import packed_layers
from hambench.methods.hamburger.training.teacher import hidden_layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusedBatch:
    """Sequences whose responses are cut into segments, as tensors padded on the right."""

    tokens: Tensor
    """``[B, C, S]``: ids of each slot, followed by zeros."""
    lengths: Tensor
    """``[B, C]``: number of tokens per slot; 1 for prompt tokens and padding."""
    positions: Tensor
    """``[B, C]``: index of each slot's last token."""
    mask: Tensor
    """``[B, C]``: 1 for slots, 0 for padding."""
    sources: Tensor
    """``[M, 2]``: the sequence of each macro-step, and the slot before it, whose features it is decoded from."""
    targets: Tensor
    """``[M, S]``: tokens of each macro-step."""
    target_lengths: Tensor
    """``[M]``: number of tokens per macro-step."""
    starts: Tensor
    """``[M]``: index of each macro-step's first token in its response."""

    @property
    def target_mask(self) -> Tensor:
        """``[M, S]``: true for targets that are tokens, false for padding."""
        return torch.arange(self.targets.shape[1], device=self.targets.device) < self.target_lengths[:, None]

    def to(self, device: torch.device | str) -> FusedBatch:
        """Returns the same batch on another device."""
        return FusedBatch(**{f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self)})


def collate(sequences: Sequence[tuple[Sequence[int], int, Sequence[int]]], max_steps: int) -> FusedBatch:
    """Builds a batch from ``(ids, prompt length, segment lengths)``.

    Raises:
        DataError: If segment lengths do not fit their response.
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
    """Returns input vectors ``[B, C, D]``: merged vectors for slots of several tokens, embeddings for the others."""
    single = F.embedding(batch.tokens[..., 0], embedding)
    several = (batch.lengths > 1).nonzero(as_tuple=True)
    if several[0].numel() == 0:
        return single
    merged = embedder(F.embedding(batch.tokens[several], embedding), batch.lengths[several])
    return single.index_put(several, merged.to(single.dtype))


def merged_layers(
    model: Any,
    grafts: Grafts,
    batch: FusedBatch,
    layers: Sequence[int],
    gate: FusedGate | None = None,
) -> list[Tensor]:
    """Runs the base on merged inputs up to the last of ``layers``.

    Returns, after each layer, the hidden states ``[M, D]`` that each macro-step is decoded from. With a ``gate``, the
    base's low-rank changes apply only at slots of several tokens.
    """
    inputs = fuse(batch, model.get_input_embeddings().weight, grafts.embedder)
    at, slot = batch.sources.T
    if inputs.device.type == "cpu":
        real = batch.mask.bool()
        lengths = batch.mask.sum(1)
        merged = None if gate is None else (batch.lengths[real] > 1).nonzero()[:, 0]
        streams = packed_layers(
            model,
            layers,
            inputs[real],
            lengths=lengths.tolist(),
            positions=batch.positions[real],
            changed=merged,
            # without any merged slot, a loss still needs something to go back to
            fixed=before_the_first_merged(batch)
            if merged is not None and len(merged) and torch.is_grad_enabled()
            else None,
        )
        rows = (lengths.cumsum(0) - lengths)[at] + slot
        return [stream[rows] for stream in streams]
    with first_layers(model, layers[-1] + 1), gate.only(batch.lengths > 1) if gate else nullcontext():
        streams = hidden_layers(
            model,
            layers,
            inputs_embeds=inputs,
            attention_mask=batch.mask,
            position_ids=batch.positions,
        )
    return [stream[at, slot] for stream in streams]


def before_the_first_merged(batch: FusedBatch) -> list[int]:
    """Returns how many slots of each sequence precede its first one of several tokens; all slots if it has none.

    If low-rank changes apply at merged slots only, the base reads these as it would without any of what is trained, so
    they need no gradient.
    """
    merged = batch.lengths > 1
    before: list[int] = torch.where(merged.any(1), merged.int().argmax(1), batch.mask.sum(1)).tolist()
    return before


def base_features(
    model: Any,
    grafts: Grafts,
    batch: FusedBatch,
    gate: FusedGate | None = None,
) -> Tensor:
    """Returns the features ``[M, F, D]`` that each macro-step is decoded from; see :func:`merged_layers`."""
    return torch.stack(merged_layers(model, grafts, batch, grafts.architecture.feature_layers, gate), dim=1)


def teacher_forced(
    model: Any,
    grafts: Grafts,
    batch: FusedBatch,
    gate: FusedGate | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes, teacher forced, the inputs of LM head and stop head for every macro-step.

    Returns hidden states for the LM head ``[M, S, D]`` and stop logits ``[M, S]``.
    """
    features = base_features(model, grafts, batch, gate)
    embedded = F.embedding(batch.targets[:, :-1], model.get_input_embeddings().weight)
    hidden = grafts.micro(features, embedded)
    return hidden, grafts.stop_head(hidden)
