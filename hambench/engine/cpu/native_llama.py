"""A Llama whose forwards are native calls, one per 64 rows; prompts stay with torch, on the same KV cache.

A row's result has the same bits whatever rows are next to it and however many threads work on it. So a verification of
several proposals gives exactly the tokens that decoding one by one gives, in bfloat16 too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypedDict, TypeVar

import torch

from hambench.engine.backed import BackedByLlama
from hambench.engine.cpu.packing import llama_obstacle, pack_llama
from hambench.engine.kvcache import KVCache
from hambench.engine.language_model import LanguageModel
from hambench.engine.llama import Llama
from hambench.engine.output import ForwardOutput
from hambench.engine.requests.rows import ChainStop, Ids, Rows
from hambench.errors import ModelError, NotFiniteError
from hambench.kernels.cpu.library import Library
from hambench.kernels.cpu.model import CachePart, NonFiniteLogitError
from hambench.kernels.cpu.parts import GreedyRows

T = TypeVar("T")


class NativeLlama(BackedByLlama):
    """A language model on the native kernels, with a :class:`~hambench.engine.llama.Llama` for prompts.

    It satisfies :class:`hambench.engine.language_model.LanguageModel`. Activations and sums are float32 whatever the
    weights are, but rows that meet int8 weights are rounded to 15 bits; keys and values are rounded to the model's type
    when they are stored.

    Args:
        llama: The model, on a CPU. Its weights are copied in the kernels' order; the embedding is shared.
        library: The compiled kernels.
        instruction_set: One of the library's; by default the best that this machine has.

    Raises:
        ModelError: If the kernels can't run the model.
        ValueError: If the machine lacks the instruction set.
    """

    def __init__(self, llama: Llama, library: Library, *, instruction_set: str | None = None) -> None:
        reason = llama_obstacle(llama, library)
        if reason is not None:
            raise ModelError(f"the native kernels can't run this model: {reason}; use --kernels reference")
        super().__init__(llama)
        self.library = library
        self.instruction_set = library.instruction_set(instruction_set)
        self.native = pack_llama(llama, library)

    @property
    def threads(self) -> int:
        """Threads of a forward at most: as many as torch was told to use."""
        return torch.get_num_threads()

    def with_same_backend(self, other: Llama) -> LanguageModel:
        """See :class:`hambench.engine.language_model.LanguageModel`."""
        return NativeLlama(other, self.library, instruction_set=self.instruction_set)

    def new_cache(self, capacity: int) -> KVCache:
        """See :class:`hambench.engine.language_model.LanguageModel`."""
        return self.reference.new_cache(capacity)

    @torch.inference_mode()
    def forward(
        self,
        inputs: torch.Tensor,
        cache: KVCache,
        *,
        positions: torch.Tensor | None = None,
        num_logits: int | None = 1,
        feature_layers: tuple[int, ...] = (),
    ) -> ForwardOutput:
        """See :meth:`hambench.engine.language_model.LanguageModel.forward`."""
        num_rows = inputs.shape[0]
        if num_rows == 0:
            return self.reference.forward(
                inputs, cache, positions=positions, num_logits=num_logits, feature_layers=feature_layers
            )
        if positions is not None and positions.shape != (num_rows,):
            raise ValueError(f"positions must be one per row, [{num_rows}], got {list(positions.shape)}")
        if num_logits is not None and num_logits < 0:
            raise ValueError(f"num_logits must be >= 0 or None for all, got {num_logits}")
        cache.require(num_rows)
        num_wanted = num_rows if num_logits is None else min(num_logits, num_rows)
        places = _following(cache, num_rows) if positions is None else positions.tolist()
        outs = [
            self.native.forward(
                inputs[rows.start : rows.stop],
                [_part_of(cache, rows)],
                positions=places[rows.start : rows.stop],
                head_rows=range(max(0, num_rows - num_wanted - rows.start), len(rows)),
                hidden=True,
                feature_layers=feature_layers,
                instruction_set=self.instruction_set,
                threads=self.threads,
            )
            for rows in self._calls(num_rows)
        ]
        cache.advance(num_rows)
        hidden = torch.cat([out.hidden for out in outs if out.hidden is not None]).to(self.dtype)
        logits = [out.logits for out in outs if out.logits is not None]
        features = [out.features for out in outs if out.features is not None]
        return ForwardOutput(
            logits=torch.cat(logits) if logits else torch.empty(0, self.shape.vocab_size),
            hidden=hidden,
            features=torch.cat(features, dim=1).to(self.dtype)
            if features
            else hidden.new_empty(0, *hidden.shape),
        )

    def greedy(self, tokens: Sequence[int], cache: KVCache, *, num_tokens: int = 1) -> list[int]:
        """See :class:`hambench.engine.language_model.LanguageModel`: no logits are written."""
        if not 1 <= num_tokens <= len(tokens):
            raise ValueError(
                f"num_tokens must be in 1..{len(tokens)} (the rows given), got {num_tokens}: ask for fewer tokens"
            )
        cache.require(len(tokens))
        chosen = self._greedy(tokens, cache, num_tokens=num_tokens, chain=0)
        cache.advance(len(tokens))
        return chosen

    def decode_greedily(
        self, tokens: Sequence[int], cache: KVCache, num_tokens: int, *, stop: ChainStop | None = None
    ) -> list[int]:
        """See :class:`hambench.engine.language_model.LanguageModel`: the whole chain is one call."""
        if num_tokens == 0:
            return []
        cache.require(len(tokens) + num_tokens - 1)
        chosen = self._greedy(tokens, cache, num_tokens=1, chain=num_tokens - 1, stop=stop)
        cache.advance(len(tokens) + len(chosen) - 1)
        return chosen

    @torch.inference_mode()
    def forward_together(
        self, sequences: Sequence[Rows], *, feature_layers: tuple[int, ...] = ()
    ) -> list[ForwardOutput]:
        """See :class:`hambench.engine.language_model.LanguageModel`: one native call per 64 rows."""
        outputs: list[ForwardOutput] = []
        for group in _groups(sequences, [len(rows.inputs) for rows in sequences], self.native.max_rows):
            if len(group) == 1:
                (rows,) = group
                outputs.append(
                    self.forward(
                        rows.inputs,
                        rows.cache,
                        positions=rows.positions,
                        num_logits=rows.num_logits,
                        feature_layers=feature_layers,
                    )
                )
            else:
                outputs += self._forward_group(group, feature_layers)
        return outputs

    def _forward_group(
        self, sequences: Sequence[Rows], feature_layers: tuple[int, ...]
    ) -> list[ForwardOutput]:
        lengths = [len(rows.inputs) for rows in sequences]
        places: list[int] = []
        head_rows: list[int] = []
        wanted: list[int] = []
        for rows, num_rows in zip(sequences, lengths, strict=True):
            rows.cache.require(num_rows)
            own = _following(rows.cache, num_rows) if rows.positions is None else rows.positions.tolist()
            places += own
            wanted.append(num_rows if rows.num_logits is None else min(rows.num_logits, num_rows))
            head_rows += range(len(places) - wanted[-1], len(places))
        inputs = [rows.inputs for rows in sequences]
        if len({each.ndim for each in inputs}) > 1:
            inputs = [self.embed(each) if each.ndim == 1 else each for each in inputs]
        out = self.native.forward(
            torch.cat(inputs),
            [_part_of(rows.cache, range(length)) for rows, length in zip(sequences, lengths, strict=True)],
            positions=places,
            head_rows=head_rows,
            hidden=True,
            feature_layers=feature_layers,
            instruction_set=self.instruction_set,
            threads=self.threads,
        )
        for rows, num_rows in zip(sequences, lengths, strict=True):
            rows.cache.advance(num_rows)
        assert out.hidden is not None
        hidden = out.hidden.to(self.dtype)
        logits = torch.empty(0, self.shape.vocab_size) if out.logits is None else out.logits
        features = hidden.new_empty(0, *hidden.shape) if out.features is None else out.features.to(self.dtype)
        return [
            ForwardOutput(logits=each, hidden=own, features=feature)
            for each, own, feature in zip(
                torch.split(logits, wanted),
                torch.split(hidden, lengths),
                torch.split(features, lengths, dim=1),
                strict=True,
            )
        ]

    def greedy_together(self, sequences: Sequence[Ids]) -> list[list[int] | NotFiniteError]:
        """See :class:`hambench.engine.language_model.LanguageModel`: one native call per 64 rows."""
        return self._together(sequences, [(ids.num_tokens, 0) for ids in sequences])

    def decode_greedily_together(self, sequences: Sequence[Ids]) -> list[list[int] | NotFiniteError]:
        """See :class:`hambench.engine.language_model.LanguageModel`: chains go side by side in one call."""
        chosen: list[list[int] | NotFiniteError] = [[] for _ in sequences]
        # a chain of no tokens runs nothing
        asking = [index for index, ids in enumerate(sequences) if ids.num_tokens]
        answers = self._together(
            [sequences[i] for i in asking], [(1, sequences[i].num_tokens - 1) for i in asking]
        )
        for index, answer in zip(asking, answers, strict=True):
            chosen[index] = answer
        return chosen

    def _together(
        self, sequences: Sequence[Ids], wanted: Sequence[tuple[int, int]]
    ) -> list[list[int] | NotFiniteError]:
        """Answers each with so many tokens after its rows and so many more of a chain."""
        answers: list[list[int] | NotFiniteError] = []
        asked = list(zip(sequences, wanted, strict=True))
        for group in _groups(asked, [len(ids.tokens) for ids in sequences], self.native.max_rows):
            if len(group[0][0].tokens) > self.native.max_rows:
                ((ids, (num_tokens, chain)),) = group
                try:
                    ids.cache.require(len(ids.tokens) + chain)
                    answers.append(
                        self._greedy(ids.tokens, ids.cache, num_tokens=num_tokens, chain=chain, stop=ids.stop)
                    )
                except NotFiniteError as error:
                    answers.append(error)
            else:
                rows = []
                for ids, (num_tokens, chain) in group:
                    num_rows = len(ids.tokens)
                    ids.cache.require(num_rows + chain)
                    part, places = _part_of(ids.cache, range(num_rows)), _following(ids.cache, num_rows)
                    rows.append(GreedyRows(ids.tokens, part, places, num_tokens, chain, ids.stop))
                given = self.native.greedy_together(
                    rows, instruction_set=self.instruction_set, threads=self.threads
                )
                answers += [NotFiniteError() if tokens is None else tokens for tokens in given]
            for (ids, (num_tokens, chain)), answer in zip(group, answers[-len(group) :], strict=True):
                grown = chain if isinstance(answer, NotFiniteError) else len(answer) - num_tokens
                ids.cache.advance(len(ids.tokens) + grown)
        return answers

    def prepare_greedy(self, cache: KVCache, *, rows: Sequence[int] = (), chain: int = 0) -> None:
        """See :class:`hambench.engine.language_model.LanguageModel`: there is nothing to prepare."""

    def prepare_forward(
        self,
        cache: KVCache,
        *,
        rows: Sequence[int],
        num_logits: int | None = None,
        embedded: bool = False,
        feature_layers: tuple[int, ...] = (),
    ) -> None:
        """See :class:`hambench.engine.language_model.LanguageModel`: there is nothing to prepare."""

    def _calls(self, num_rows: int) -> list[range]:
        """The rows of each native call, in order: more than a call takes are several, with the bits of one."""
        most = self.native.max_rows
        return [range(start, min(start + most, num_rows)) for start in range(0, num_rows, most)]

    def _greedy(
        self,
        tokens: Sequence[int],
        cache: KVCache,
        *,
        num_tokens: int,
        chain: int,
        stop: ChainStop | None = None,
    ) -> list[int]:
        chosen: list[int] = []
        num_rows = len(tokens)
        for rows in self._calls(num_rows):
            part, positions = _part_of(cache, rows), _following(cache, num_rows)[rows.start : rows.stop]
            ids = tokens[rows.start : rows.stop]
            num_wanted = min(len(rows), rows.stop - (num_rows - num_tokens))
            how: _How = {"instruction_set": self.instruction_set, "threads": self.threads}
            if num_wanted <= 0:
                self.native.forward(torch.tensor(ids), [part], positions=positions, **how)
                continue
            try:
                chosen += self.native.greedy(
                    ids,
                    part,
                    positions=positions,
                    num_tokens=num_wanted,
                    chain=chain if rows.stop == num_rows else 0,
                    stop=stop,
                    **how,
                )
            except NonFiniteLogitError as error:
                raise NotFiniteError from error
        return chosen


def _groups(items: Sequence[T], lengths: Sequence[int], most: int) -> Iterator[list[T]]:
    """Items in order, as many at a time as have ``most`` rows together; one that has more is alone."""
    group: list[T] = []
    num_rows = 0
    for item, length in zip(items, lengths, strict=True):
        if group and num_rows + length > most:
            yield group
            group, num_rows = [], 0
        group.append(item)
        num_rows += length
    if group:
        yield group


class _How(TypedDict):
    instruction_set: str
    threads: int


def _part_of(cache: KVCache, rows: range) -> CachePart:
    """Some of the rows that follow the slots in use."""
    return CachePart(cache.keys, cache.values, cache.slots + rows.start, len(rows))


def _following(cache: KVCache, num_rows: int) -> range:
    """Positions that continue from those in the cache."""
    return range(cache.next_position, cache.next_position + num_rows)
