"""Packs a model's weights for the native kernels, and runs forwards over KV caches in place.

Letters in shapes: T rows, D hidden size, KVH key/value heads, Dh head size, S slots reserved, V vocabulary, R rows that
go through the head.

This module checks every length, type, stride and offset before a call, because the kernels trust them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hambench.kernels.cpu.library import (
    NO_MEMORY,
    NOT_DECODED,
    NOT_FINITE,
    OK,
    Dense,
    Forward,
    Layer,
    Library,
    Part,
    Shape,
    free_with,
)
from hambench.kernels.cpu.operands import (
    FLOATS,
    TYPES,
    LinearWeight,
    check_tensor,
    dense_weight,
    vector_tensor,
)
from hambench.kernels.cpu.parts import (
    NO_MAXIMUM,
    SCALE_BYTES,
    GreedyRows,
    Output,
    check_layout,
    native_stops,
)
from hambench.kernels.cpu.parts import CachePart as CachePart
from hambench.kernels.cpu.parts import NonFiniteLogitError as NonFiniteLogitError
from hambench.kernels.cpu.shape import NativeShape, shape_obstacle


class LayerWeights(NamedTuple):
    """Weights of one decoder layer; norms are vectors."""

    qkv: LinearWeight
    """Queries above keys above values."""
    out: LinearWeight
    gate_up: LinearWeight
    """Gate above up."""
    down: LinearWeight
    input_norm: Tensor
    mlp_norm: Tensor
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


class NativeModel:
    """A model with packed weights, which runs forwards of up to :attr:`max_rows` rows.

    Args:
        library: The native library.
        shape: The model's sizes.
        layers: The decoder layers.
        frequencies: Radians per position of each pair of elements of a head, ``[Dh / 2]`` float32.
        final_norm: ``[D]``; ``None`` for a stack without one.
        head: LM head ``[V, D]``; ``None`` for a stack without one.
        embedding: ``[V, D]``, read in place and kept alive; ``None`` if all inputs are embeddings.
        cache_type: Element type of the KV caches.

    Raises:
        ValueError: If a weight's size, type or device does not fit.
        MemoryError: If there is not enough memory for the packed weights.
    """

    def __init__(
        self,
        library: Library,
        shape: NativeShape,
        layers: Sequence[LayerWeights],
        *,
        frequencies: Tensor,
        final_norm: Tensor | None,
        head: LinearWeight | None,
        embedding: Tensor | None,
        cache_type: torch.dtype,
    ) -> None:
        if not layers:
            raise ValueError("layers must hold at least one layer, got none")
        obstacle = shape_obstacle(shape, cache_type, torch.device("cpu"), library)
        if obstacle is not None:
            raise ValueError(f"the kernels can't run this model: {obstacle}")
        self.library, self.shape, self.cache_type = library, shape, cache_type
        self.num_layers, self.max_rows = len(layers), library.limits.rows
        self._embedding = embedding
        functions = library.functions
        hidden, head_dim = shape.hidden_size, shape.head_dim
        frequencies = frequencies.to(torch.float32).contiguous()
        check_tensor("frequencies", frequencies, (head_dim // 2,), (torch.float32,))
        if embedding is not None:
            check_tensor("embedding", embedding, (shape.vocab_size, hidden), FLOATS)
        native_shape = Shape(
            hidden, shape.intermediate_size, len(layers), shape.num_heads, shape.num_kv_heads, head_dim,
            shape.vocab_size, TYPES[cache_type], 0 if embedding is None else TYPES[embedding.dtype],
            shape.rms_norm_eps, frequencies.data_ptr(),
        )  # fmt: skip
        handle = functions.hb_model_new(native_shape)
        if not handle:
            raise MemoryError("there is not enough memory for the native engine's weights")
        self.handle = handle
        """Of the library."""
        free_with(self, functions.hb_model_free, handle)
        heads, kv_heads = shape.num_heads * head_dim, shape.num_kv_heads * head_dim
        for layer in layers:
            native_layer = Layer(
                dense_weight("qkv", layer.qkv, heads + 2 * kv_heads, hidden),
                dense_weight("out", layer.out, hidden, heads),
                dense_weight("gate_up", layer.gate_up, 2 * shape.intermediate_size, hidden),
                dense_weight("down", layer.down, hidden, shape.intermediate_size),
                vector_tensor("input_norm", layer.input_norm, hidden),
                vector_tensor("mlp_norm", layer.mlp_norm, hidden),
                vector_tensor("q_norm", layer.q_norm, head_dim),
                vector_tensor("k_norm", layer.k_norm, head_dim),
            )
            raise_for(functions.hb_model_layer(handle, native_layer))
        native_head = Dense() if head is None else dense_weight("head", head, shape.vocab_size, hidden)
        norm = vector_tensor("final_norm", final_norm, hidden)
        pointer = None if embedding is None else embedding.data_ptr()
        raise_for(functions.hb_model_head(handle, native_head, norm, pointer))
        self.has_embedding = embedding is not None
        """Whether ids go in."""
        self.has_head = head is not None and final_norm is not None
        """Whether logits and tokens come out."""

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weights."""
        size: int = self.library.functions.hb_model_bytes(self.handle)
        return size

    def forward(
        self,
        inputs: Tensor,
        parts: Sequence[CachePart],
        *,
        positions: Sequence[int],
        head_rows: Sequence[int] = (),
        hidden: bool = False,
        feature_layers: Sequence[int] = (),
        instruction_set: str,
        threads: int,
    ) -> Output:
        """Runs T rows through all layers and writes their keys and values to the caches.

        Args:
            inputs: Ids ``[T]`` (int64) or embeddings ``[T, D]`` in floating point.
            parts: The sequences that the rows belong to, in order.
            positions: Rotary position of each row.
            head_rows: Rows to return logits of.
            hidden: Whether to return all rows after the final norm.
            feature_layers: Layers (0-based) whose residual stream to return; the last one's after the final norm.
            instruction_set: An instruction set of the library.
            threads: Maximum number of threads.

        Raises:
            ValueError: If an argument does not fit the model or a cache.
        """
        if inputs.ndim not in (1, 2):
            raise ValueError(f"inputs must be ids [T] or embeddings [T, D], got {list(inputs.shape)}")
        num_rows, width = inputs.shape[0], self.shape.hidden_size
        call, keep = self._call(num_rows, parts, positions, threads)
        if inputs.is_floating_point() != (inputs.ndim == 2):
            raise ValueError(
                f"inputs must be whole numbers as ids [T] and floating point as embeddings [T, D], got "
                f"{list(inputs.shape)} in {inputs.dtype}"
            )
        if inputs.ndim == 1:
            if self._embedding is None:
                raise ValueError("inputs must be embeddings: the model was made without an embedding")
            ids = inputs.to(torch.int64).contiguous()
            check_tensor("inputs", ids, (num_rows,), (torch.int64,))
            self.check_ids(ids.tolist())
            call.ids = ids.data_ptr()
        else:
            ids = inputs.to(torch.float32).contiguous()
            check_tensor("inputs", ids, (num_rows, width), (torch.float32,))
            call.embeddings = ids.data_ptr()
        logits = self._wanted(call, keep, head_rows, num_rows)
        if logits is not None:
            call.logits = logits.data_ptr()
        normed = torch.empty(num_rows, width) if hidden else None
        if normed is not None:
            self._needs_norm("hidden")
            call.hidden = normed.data_ptr()
        features = self._features(call, keep, feature_layers, num_rows)
        self._run(call, instruction_set)
        return Output(logits, normed, features)

    def greedy(
        self,
        tokens: Sequence[int],
        part: CachePart,
        *,
        positions: Sequence[int],
        num_tokens: int,
        chain: int = 0,
        stop: tuple[float, bool] | None = None,
        instruction_set: str,
        threads: int,
    ) -> list[int]:
        """Runs ``tokens``; returns the greedy next token after each of the last ``num_tokens`` of them.

        Args:
            tokens: Ids of the T rows.
            part: The sequence's cache; ``part.num_rows`` is T.
            positions: Rotary position of each row.
            num_tokens: Number of tokens to return, 1 to T.
            chain: Number of further tokens, each from its own forward at the next slot and position.
            stop: See :class:`~hambench.kernels.cpu.parts.GreedyRows`.
            instruction_set: An instruction set of the library.
            threads: Maximum number of threads.

        Raises:
            ValueError: If an argument does not fit the model or the cache.
            NonFiniteLogitError: If a row's logits have no finite maximum.
        """
        rows = GreedyRows(tokens, part, positions, num_tokens, chain, stop)
        (chosen,) = self.greedy_together([rows], instruction_set=instruction_set, threads=threads)
        if chosen is None:
            raise NonFiniteLogitError(NO_MAXIMUM)
        return chosen

    def greedy_together(
        self, sequences: Sequence[GreedyRows], *, instruction_set: str, threads: int
    ) -> list[list[int] | None]:
        """Runs the rows of several sequences, their chains included, in one call.

        Args:
            sequences: At least one, of :attr:`max_rows` rows together.
            instruction_set: One of the library's.
            threads: At most as many.

        Returns:
            Tokens of each, those of its chain last, fewer where it was stopped; ``None`` where a row's logits have no
            finite maximum.

        Raises:
            ValueError: If an argument does not fit the model or a cache.
        """
        for sequence in sequences:
            sequence.check()
            self.check_ids(sequence.tokens)
        self._needs_norm("greedy tokens")
        tokens = [token for sequence in sequences for token in sequence.tokens]
        positions = [position for sequence in sequences for position in sequence.positions]
        if any(len(sequence.positions) != len(sequence.tokens) for sequence in sequences):
            raise ValueError(f"parts and positions must cover the {len(tokens)} rows")
        call, _keep = self._call(len(tokens), [sequence.part for sequence in sequences], positions, threads)
        wanted: list[int] = []
        end = 0
        for sequence in sequences:
            end += len(sequence.tokens)
            wanted += range(end - sequence.num_tokens, end)
        ids = (ctypes.c_int64 * len(tokens))(*tokens)
        rows = (ctypes.c_int32 * len(wanted))(*wanted)
        chains = (ctypes.c_int32 * len(sequences))(*[sequence.chain for sequence in sequences])
        chosen = (ctypes.c_int64 * (len(wanted) + sum(chains)))()
        call.ids, call.head_rows = ctypes.addressof(ids), ctypes.addressof(rows)
        call.tokens, call.num_head_rows = ctypes.addressof(chosen), len(wanted)
        call.chains = ctypes.addressof(chains) if any(chains) else None
        stops = native_stops(sequences) if any(chains) else None
        call.stops = None if stops is None else ctypes.addressof(stops)
        self._run(call, instruction_set)
        given: list[list[int] | None] = []
        first, linked = 0, len(wanted)
        for sequence in sequences:
            own = chosen[first : first + sequence.num_tokens]
            own += [token for token in chosen[linked : linked + sequence.chain] if token != NOT_DECODED]
            given.append(None if -1 in own else own)
            first, linked = first + sequence.num_tokens, linked + sequence.chain
        return given

    def _call(
        self, num_rows: int, parts: Sequence[CachePart], positions: Sequence[int], threads: int
    ) -> tuple[Forward, list[Any]]:
        """Returns the arguments that all calls share, and objects to keep alive during the call."""
        if not 1 <= num_rows <= self.max_rows:
            raise ValueError(f"a forward must have 1..{self.max_rows} rows, got {num_rows}")
        if sum(part.num_rows for part in parts) != num_rows or len(positions) != num_rows:
            raise ValueError(f"parts and positions must cover the {num_rows} rows")
        if threads < 1:
            raise ValueError(f"threads must be >= 1, got {threads}")
        if len(
            {address for part in parts for address in (part.keys.data_ptr(), part.values.data_ptr())}
        ) != 2 * len(parts):
            raise ValueError("parts must have keys and values of their own: two of them share memory")
        native_parts = (Part * len(parts))()
        first_row = 0
        for native_part, part in zip(native_parts, parts, strict=True):
            self.fill(native_part, part, first_row)
            first_row += part.num_rows
        places = (ctypes.c_int64 * num_rows)(*positions)
        if min(positions) < 0:
            raise ValueError(f"positions must be >= 0, got {min(positions)}")
        call = Forward(positions=ctypes.addressof(places), parts=ctypes.addressof(native_parts))
        call.num_rows, call.num_parts, call.threads = num_rows, len(parts), threads
        return call, [native_parts, places]

    def fill(self, native_part: Part, part: CachePart, first_row: int) -> None:
        """Converts a part to the library's structure.

        Raises:
            ValueError: If the cache does not belong to this model or has no room.
        """
        check_layout(part)
        keys, values, past, num_rows = part
        capacity = keys.shape[2]
        row, dtypes = self.shape.head_dim, (self.cache_type,)
        if keys.dtype == torch.uint8:
            row, dtypes = row + SCALE_BYTES, (torch.uint8,)
        size = (self.num_layers, self.shape.num_kv_heads, capacity, row)
        check_tensor("keys", keys, size, dtypes)
        check_tensor("values", values, size, dtypes)
        if past < 0 or num_rows < 1 or past + num_rows > capacity:
            raise ValueError(f"{num_rows} rows behind {past} slots don't fit a cache of {capacity} slots")
        native_part.keys, native_part.values = keys.data_ptr(), values.data_ptr()
        native_part.capacity, native_part.past = capacity, past
        native_part.first_row, native_part.num_rows = first_row, num_rows
        native_part.cache_type = TYPES[torch.int8 if keys.dtype == torch.uint8 else self.cache_type]

    def _wanted(
        self, call: Forward, keep: list[Any], head_rows: Sequence[int], num_rows: int
    ) -> Tensor | None:
        if not head_rows:
            return None
        self._needs_norm("logits")
        if min(head_rows) < 0 or max(head_rows) >= num_rows or len(head_rows) > self.max_rows:
            raise ValueError(
                f"head_rows must be in 0..{num_rows - 1}, {self.max_rows} at most, got {list(head_rows)}"
            )
        rows = (ctypes.c_int32 * len(head_rows))(*head_rows)
        keep.append(rows)
        call.head_rows, call.num_head_rows = ctypes.addressof(rows), len(head_rows)
        return torch.empty(len(head_rows), self.shape.vocab_size)

    def _features(
        self, call: Forward, keep: list[Any], layers: Sequence[int], num_rows: int
    ) -> Tensor | None:
        if not layers:
            return None
        if min(layers) < 0 or max(layers) >= self.num_layers:
            raise ValueError(f"feature_layers must be in 0..{self.num_layers - 1}, got {list(layers)}")
        native_layers = (ctypes.c_int32 * len(layers))(*layers)
        keep.append(native_layers)
        features = torch.empty(len(layers), num_rows, self.shape.hidden_size)
        call.feature_layers, call.num_features = ctypes.addressof(native_layers), len(layers)
        call.features = features.data_ptr()
        return features

    def check_ids(self, ids: Sequence[int]) -> None:
        """Checks that ids are within the vocabulary.

        Raises:
            ValueError: If they are not; the message names the smallest and the largest.
        """
        if min(ids) < 0 or max(ids) >= self.shape.vocab_size:
            raise ValueError(
                f"token ids must be in 0..{self.shape.vocab_size - 1}, got {min(ids)}..{max(ids)}"
            )

    def _needs_norm(self, what: str) -> None:
        if not self.has_head:
            raise ValueError(f"{what} need a final norm and a head, which the model was made without")

    def _run(self, call: Forward, instruction_set: str) -> None:
        """Runs a call; a row without a finite maximum is told by its token."""
        status = self.library.functions.hb_run(self.handle, instruction_set.encode(), call)
        if status != NOT_FINITE:
            raise_for(status)


def raise_for(status: int) -> None:
    """Raises the error of a call's status."""
    if status == NOT_FINITE:
        raise NonFiniteLogitError(NO_MAXIMUM)
    if status == NO_MEMORY:
        raise MemoryError("there is not enough memory for the native engine")
    if status != OK:
        raise ValueError(f"the native engine refused the call (status {status})")
