"""Runs the unmerged base once over its own answers, for the lessons of the grafts and the values that cut segments.

Letters in shapes: R response tokens, F feature layers, D hidden size, K most probable tokens to store.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hambench.files import replacing
from hambench.methods.hamburger.training.packed_base import packed_layers

TOP_TOKENS = 16
"""Entries of the teacher's distribution to store; on greedy answers they hold nearly all of its mass."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lesson:
    """Lesson of the unmerged base on one response; row r holds the distribution that predicts response token r."""

    features: torch.Tensor
    """``[R, F, D]``: hidden states that row r's distribution came from."""
    top_ids: torch.Tensor
    """``[R, K]`` int32."""
    top_probs: torch.Tensor
    """``[R, K]``: their probabilities, renormalised to sum to one."""
    entropies: torch.Tensor
    """``[R]``: entropy of the distribution, in nats."""
    probabilities: torch.Tensor
    """``[R]``: probability of the response token itself."""


def hidden_layers(model: Any, layers: Sequence[int], **inputs: Any) -> list[torch.Tensor]:
    """Returns hidden states ``[B, T, D]`` after ``layers`` of a Hugging Face causal LM.

    Those of the last layer are after the final norm.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.model
    hidden = decoder(**inputs, output_hidden_states=True, use_cache=False, return_dict=True).hidden_states
    return [hidden[layer + 1] for layer in layers]


@torch.inference_mode()
def study(
    model: Any,
    sequences: Sequence[tuple[Sequence[int], int]],
    *,
    feature_layers: Sequence[int],
    batch_tokens: int = 4096,
) -> Iterator[tuple[int, Lesson]]:
    """Yields ``(index, lesson)`` for each ``(ids, prompt length)``; sequences of similar length share a batch."""
    head = model.get_output_embeddings().weight
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]))
    for chosen in _batches(order, [len(ids) for ids, _ in sequences], batch_tokens):
        streams = _streams(model, feature_layers, [sequences[i][0] for i in chosen])
        for place, index in enumerate(chosen):
            tokens, prompt = sequences[index]
            features = torch.stack([s[place][prompt - 1 : len(tokens) - 1] for s in streams], dim=1)
            response = torch.tensor(tokens[prompt:], device=head.device)
            yield index, _lesson(features, response, head)


def _streams(
    model: Any, layers: Sequence[int], sequences: Sequence[Sequence[int]]
) -> list[Sequence[torch.Tensor]]:
    """Returns hidden states after each layer, ``[at least T, D]`` for each sequence."""
    embed = model.get_input_embeddings()
    device = embed.weight.device
    lengths = [len(ids) for ids in sequences]
    if device.type == "cpu":
        rows = embed(torch.tensor([token for ids in sequences for token in ids]))
        positions = torch.cat([torch.arange(length) for length in lengths])
        streams = packed_layers(model, layers, rows, lengths=lengths, positions=positions)
        return [torch.split(stream, lengths) for stream in streams]
    width = max(lengths)
    ids = torch.tensor([list(ids) + [0] * (width - len(ids)) for ids in sequences], device=device)
    # always pass a mask: without one, transformers reads positions that skip as packed sequences
    mask = torch.tensor([[1] * length + [0] * (width - length) for length in lengths], device=device)
    return [list(stream) for stream in hidden_layers(model, layers, input_ids=ids, attention_mask=mask)]


def _lesson(features: torch.Tensor, response: torch.Tensor, head: torch.Tensor) -> Lesson:
    parts = []
    for rows, wanted in zip(torch.split(features[:, -1], 256), torch.split(response, 256), strict=True):
        logits = (rows @ head.T).float()
        top = logits.topk(min(TOP_TOKENS, logits.shape[-1]), dim=-1)
        # one exponential serves sum, probability and entropy; the vocabulary is long
        below = logits.sub_(top.values[:, :1])
        chosen = below.gather(1, wanted[:, None])[:, 0]
        exponentials = below.exp()
        sums = exponentials.sum(-1)
        entropies = sums.log() - exponentials.mul_(below).sum(-1) / sums
        parts.append((top.indices, torch.softmax(top.values, -1), entropies, chosen - sums.log()))
    ids, probs, entropies, chosen = (torch.cat(column) for column in zip(*parts, strict=True))
    return Lesson(
        features=features.to(torch.bfloat16).cpu(),
        top_ids=ids.int().cpu(),
        top_probs=probs.half().cpu(),
        entropies=entropies.cpu(),
        probabilities=chosen.exp().cpu(),
    )


def _batches(order: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """Many lessons laid end to end: row g is response token g of the whole, and training uses no other index.

    ``ids`` holds every sequence whole (prompts too), sequence i at ``offsets[i] : offsets[i + 1]``; its response rows
    are ``row_offsets[i] : row_offsets[i + 1]``. ``joins`` ``[rows]`` is true where HAMburger weights wrote the text and
    stored the token in the slot of the token before it.
    """

    ids: torch.Tensor
    offsets: torch.Tensor
    row_offsets: torch.Tensor
    features: torch.Tensor
    top_ids: torch.Tensor
    top_probs: torch.Tensor
    entropies: torch.Tensor
    probabilities: torch.Tensor
    joins: torch.Tensor

    @classmethod
    def of(cls, sequences: Sequence[tuple[Sequence[int], int]], lessons: Sequence[Lesson]) -> Corpus:
        """Joins lessons end to end."""
        room = CorpusRoom(sequences)
        for index, lesson in enumerate(lessons):
            room.add(index, lesson)
        return room.first(len(lessons))

    @classmethod
    def joined(cls, parts: Sequence[Corpus]) -> Corpus:
        """Joins several corpora."""
        columns = {}
        for field in dataclasses.fields(cls):
            tensors = [getattr(part, field.name) for part in parts]
            if field.name.endswith("offsets"):
                ends = _offsets([int(t[-1]) for t in tensors])
                tensors = [t[(1 if i else 0) :] + ends[i] for i, t in enumerate(tensors)]
            columns[field.name] = torch.cat(tensors)
        return cls(**columns)

    @property
    def num_sequences(self) -> int:
        """Number of sequences."""
        return len(self.offsets) - 1

    @property
    def num_rows(self) -> int:
        """Number of response tokens."""
        return len(self.entropies)

    def sequence(self, index: int) -> tuple[torch.Tensor, int]:
        """Returns the ids and the prompt length of one sequence."""
        ids = self.ids[self.offsets[index] : self.offsets[index + 1]]
        return ids, len(ids) - int(self.row_offsets[index + 1] - self.row_offsets[index])

    def response_ids(self) -> torch.Tensor:
        """Returns every response token ``[rows]``."""
        prompts = [self.sequence(i)[1] for i in range(self.num_sequences)]
        return torch.cat([self.sequence(i)[0][p:] for i, p in enumerate(prompts)])

    def remaining(self) -> torch.Tensor:
        """Returns how many tokens are left in each row's response, including its own, ``[rows]``."""
        lengths = self.row_offsets.diff()
        return torch.cat([torch.arange(int(n), 0, -1) for n in lengths])

    def save(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Writes one safetensors file, with ``metadata`` in its header."""
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        with replacing(path) as partial:
            save_file(
                {name: tensor.contiguous() for name, tensor in columns.items()}, partial, dict(metadata or {})
            )

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Reads a file that :meth:`save` wrote."""
        columns = load_file(path)
        # files of earlier versions hold only texts whose segments are cut
        columns.setdefault("joins", torch.zeros(len(columns["entropies"]), dtype=torch.bool))
        return cls(**columns)


class CorpusRoom:
    """Room for the lessons of sequences, each of which is copied to its rows when it comes.

    Lessons that are collected and then joined take their memory twice, which is 9 GB for a million rows of a base with
    576 hidden units. Rows that stay empty take none, because no page of them is touched.

    Args:
        sequences: Ids and prompt length of each.
    """

    def __init__(self, sequences: Sequence[tuple[Sequence[int], int]]) -> None:
        self._sequences = sequences
        self._row_offsets = _offsets([len(ids) - prompt for ids, prompt in sequences])
        self._columns: dict[str, torch.Tensor] = {}

    def add(self, index: int, lesson: Lesson) -> None:
        """Copies the lesson of sequence ``index`` to its rows."""
        start, end = self._row_offsets[index : index + 2].tolist()
        for field in dataclasses.fields(Lesson):
            rows: torch.Tensor = getattr(lesson, field.name)
            if field.name not in self._columns:
                num_rows = int(self._row_offsets[-1])
                self._columns[field.name] = torch.empty((num_rows, *rows.shape[1:]), dtype=rows.dtype)
            self._columns[field.name][start:end] = rows

    def first(self, num: int) -> Corpus:
        """Returns the corpus of the first ``num`` sequences, all of whose lessons have come."""
        sequences, ends = self._sequences[:num], self._row_offsets[: num + 1]
        return Corpus(
            ids=torch.tensor([token for ids, _ in sequences for token in ids]),
            offsets=_offsets([len(ids) for ids, _ in sequences]),
            row_offsets=ends,
            joins=torch.zeros(int(ends[-1]), dtype=torch.bool),
            **{name: column[: int(ends[-1])] for name, column in self._columns.items()},
        )


def _offsets(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)
