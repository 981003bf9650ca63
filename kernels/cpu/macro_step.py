"""HAMburger's macro-step as one native call: merged tokens, the base, then micro-steps until the stop head stops.

Letters in shapes: S most tokens per macro-step, F feature vectors, D hidden size, W width of the stop head.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hambench.kernels.cpu.library import NOT_FINITE, STOP_NOT_FINITE, Grafts, Macro, Part, free_with
from hambench.kernels.cpu.model import NativeModel, raise_for
from hambench.kernels.cpu.operands import LinearWeight, check_tensor, dense_weight
from hambench.kernels.cpu.parts import NO_MAXIMUM, CachePart, NonFiniteLogitError

MAX_STEPS = 16
"""Tokens of one macro-step."""


class NonFiniteStopError(ArithmeticError):
    """Raised if the stop head's logit is NaN."""


class MergeWeights(NamedTuple):
    """Weights of the compositional embedder, whose one query is the tokens' mean over their keys and values."""

    query: LinearWeight
    """``[D, D]``."""
    keyed: LinearWeight
    """``[2 D, D]``: keys above values, of the embeddings alone and without bias."""
    out: LinearWeight
    """``[D, D]``."""
    position_share: Tensor
    """``[S, 2 D]`` float32: what a token's place (and the bias) adds to its key and value."""
    heads: int
    residual_is_last: bool
    """Whether the last token's embedding is added instead of the mean."""


class MacroStepOutput(NamedTuple):
    """Tokens of a macro-step, and P(continue) after each token for which the stop head ran."""

    tokens: tuple[int, ...]
    continue_probs: tuple[float, ...]


class FirstStep(NamedTuple):
    """What one sequence brings to the macro-step that follows its prompt; see :meth:`NativeGrafts.first`."""

    features: Tensor
    token: int
    thresholds: Sequence[float] | None


class NextStep(NamedTuple):
    """What one sequence brings to its next macro-step; see :meth:`NativeGrafts.next`."""

    merged: Sequence[int]
    part: CachePart
    position: int
    thresholds: Sequence[float] | None


class NativeGrafts:
    """HAMburger's grafts on a base, packed.

    Args:
        base: The base, which embeds tokens and has the micro-steps' head.
        micro: The micro-step decoder, a stack with the base's sizes, whose final norm, if any, precedes the head.
        merge: The compositional embedder.
        stop: The stop head's three layers, ``[W, D]``, ``[W, W]`` and ``[1, W]``, each with a bias.
        feature_layers: Layers of the base (0-based) that the micro-steps read, ascending.

    Raises:
        ValueError: If a weight does not fit.
    """

    def __init__(
        self,
        base: NativeModel,
        micro: NativeModel,
        merge: MergeWeights,
        stop: Sequence[LinearWeight],
        *,
        feature_layers: Sequence[int],
    ) -> None:
        hidden, self.max_steps = base.shape.hidden_size, merge.position_share.shape[0]
        self.num_features, self._base, self._micro = len(feature_layers), base, micro
        if not 1 <= self.max_steps <= MAX_STEPS:
            raise ValueError(f"a macro-step must have 1..{MAX_STEPS} tokens, got {self.max_steps}")
        if not 1 <= self.num_features < base.max_rows:
            raise ValueError(
                f"feature_layers must name 1..{base.max_rows - 1} layers, got {list(feature_layers)}"
            )
        if min(feature_layers) < 0 or max(feature_layers) >= base.num_layers:
            raise ValueError(
                f"feature_layers must be in 0..{base.num_layers - 1}, got {list(feature_layers)}"
            )
        if any(later <= earlier for earlier, later in itertools.pairwise(feature_layers)):
            raise ValueError(f"feature_layers must ascend, got {list(feature_layers)}")
        if merge.heads < 1 or hidden % merge.heads:
            raise ValueError(f"merge.heads must divide the hidden size {hidden}, got {merge.heads}")
        if not base.has_embedding or not base.has_head:
            raise ValueError("base must have an embedding, a final norm and a head")
        if len(stop) != 3:
            raise ValueError(f"stop must be three layers, got {len(stop)}")
        if micro.shape != base.shape:
            raise ValueError(f"micro must have the base's sizes {base.shape}, got {micro.shape}")
        width = stop[0].values.shape[0]
        check_tensor("position_share", merge.position_share, (self.max_steps, 2 * hidden), (torch.float32,))
        layers = (ctypes.c_int32 * self.num_features)(*feature_layers)
        description = Grafts(
            micro=micro.handle,
            query=dense_weight("query", merge.query, hidden, hidden),
            keyed=dense_weight("keyed", merge.keyed, 2 * hidden, hidden),
            out=dense_weight("out", merge.out, hidden, hidden),
            position_share=merge.position_share.data_ptr(),
            feature_layers=ctypes.addressof(layers),
            num_features=self.num_features,
            max_steps=self.max_steps,
            merge_heads=merge.heads,
            residual_is_last=merge.residual_is_last,
        )
        for place, (outputs, inputs) in enumerate(((width, hidden), (width, width), (1, width))):
            description.stop[place] = dense_weight(f"stop[{place}]", stop[place], outputs, inputs)
        functions = base.library.functions
        handle = functions.hb_grafts_new(description)
        if not handle:
            raise MemoryError("there is not enough memory for the native engine's weights")
        self._handle = handle
        free_with(self, functions.hb_grafts_free, handle)

    @property
    def micro_slot_bytes(self) -> int:
        """Bytes that the micro-steps store per row: float32 keys and values of every micro layer."""
        shape = self._micro.shape
        return 2 * self._micro.num_layers * shape.num_kv_heads * shape.head_dim * torch.float32.itemsize

    @property
    def most_together(self) -> int:
        """Sequences of one call: the first micro-step of each takes its features and a token."""
        return self._base.max_rows // (self.num_features + 1)

    def first(
        self,
        features: Tensor,
        token: int,
        *,
        thresholds: Sequence[float] | None,
        instruction_set: str,
        threads: int,
    ) -> MacroStepOutput:
        """Runs the macro-step after a prompt.

        Args:
            features: Features of the prompt's last row, ``[F, D]`` float32.
            token: Token 1.
            thresholds: Least P(continue) to continue after each of S tokens; ``None`` emits one token without the stop
                head.
            instruction_set: An instruction set of the library.
            threads: Maximum number of threads.

        Raises:
            ValueError: If an argument does not fit.
            NonFiniteLogitError: If a row's logits have no finite maximum.
            NonFiniteStopError: If the stop head's logit is NaN.
        """
        sequence = FirstStep(features, token, thresholds)
        return _only(self.first_together([sequence], instruction_set=instruction_set, threads=threads))

    def next(
        self,
        merged: Sequence[int],
        slot_base: NativeModel,
        part: CachePart,
        position: int,
        *,
        thresholds: Sequence[float] | None,
        instruction_set: str,
        threads: int,
    ) -> MacroStepOutput:
        """Stores ``merged`` tokens in one slot of the cache and emits the next macro-step.

        Args:
            merged: 1 to S ids.
            slot_base: The base that processes the slot.
            part: The base's cache, with one row.
            position: Rotary position of the slot.
            thresholds: See :meth:`first`.
            instruction_set: An instruction set of the library.
            threads: Maximum number of threads.

        Raises:
            ValueError: If an argument does not fit.
            NonFiniteLogitError: If a row's logits have no finite maximum.
            NonFiniteStopError: If the stop head's logit is NaN.
        """
        sequence = NextStep(merged, part, position, thresholds)
        return _only(
            self.next_together([sequence], slot_base, instruction_set=instruction_set, threads=threads)
        )

    def first_together(
        self, sequences: Sequence[FirstStep], *, instruction_set: str, threads: int
    ) -> list[MacroStepOutput | ArithmeticError]:
        """:meth:`first` of up to :attr:`most_together` sequences in one call; an error is what it would raise."""
        calls = []
        for sequence in sequences:
            self._base.check_ids((sequence.token,))
            check_tensor(
                "features",
                sequence.features,
                (self.num_features, self._base.shape.hidden_size),
                (torch.float32,),
            )
            calls.append(Macro(first_token=sequence.token, features=sequence.features.data_ptr()))
        thresholds = [sequence.thresholds for sequence in sequences]
        return self._run(calls, None, thresholds, instruction_set, threads)

    def next_together(
        self,
        sequences: Sequence[NextStep],
        slot_base: NativeModel,
        *,
        instruction_set: str,
        threads: int,
    ) -> list[MacroStepOutput | ArithmeticError]:
        """:meth:`next` of up to :attr:`most_together` sequences in one call; an error stands for what it would raise.

        They share one forward of the base, then the micro-steps of those that go on: a sequence that ends drops out.
        """
        if slot_base.shape != self._base.shape or slot_base.num_layers != self._base.num_layers:
            raise ValueError("slot_base must have the base's sizes")
        if not slot_base.has_head:
            raise ValueError("slot_base must have a final norm and a head")
        addresses = {
            address
            for each in sequences
            for address in (each.part.keys.data_ptr(), each.part.values.data_ptr())
        }
        if len(addresses) != 2 * len(sequences):
            raise ValueError("sequences must have keys and values of their own: two of them share memory")
        calls, keep = [], []
        for sequence in sequences:
            merged, part, position, _ = sequence
            if not 1 <= len(merged) <= self.max_steps or part.num_rows != 1 or position < 0:
                raise ValueError(
                    f"merged must be 1..{self.max_steps} tokens for one row at a position >= 0, got {len(merged)} for "
                    f"{part.num_rows} at {position}"
                )
            self._base.check_ids(merged)
            native_part = Part()
            slot_base.fill(native_part, part, first_row=0)
            ids = (ctypes.c_int64 * len(merged))(*merged)
            keep.append((native_part, ids))
            calls.append(
                Macro(
                    part=ctypes.addressof(native_part),
                    merged=ctypes.addressof(ids),
                    num_merged=len(merged),
                    position=position,
                )
            )
        thresholds = [sequence.thresholds for sequence in sequences]
        return self._run(calls, slot_base, thresholds, instruction_set, threads)

    def _run(
        self,
        calls: Sequence[Macro],
        slot_base: NativeModel | None,
        thresholds: Sequence[Sequence[float] | None],
        instruction_set: str,
        threads: int,
    ) -> list[MacroStepOutput | ArithmeticError]:
        if threads < 1:
            raise ValueError(f"threads must be >= 1, got {threads}")
        if not 1 <= len(calls) <= self.most_together:
            raise ValueError(f"sequences must be 1..{self.most_together}, got {len(calls)}")
        num, most = len(calls), self.max_steps
        tokens, probs = (ctypes.c_int64 * (num * most))(), (ctypes.c_double * (num * most))()
        limits = (ctypes.c_double * (num * most))()
        natives = (Macro * num)(*calls)
        for index, (native, limit) in enumerate(zip(natives, thresholds, strict=True)):
            native.tokens = ctypes.addressof(tokens) + index * most * ctypes.sizeof(ctypes.c_int64)
            native.probabilities = ctypes.addressof(probs) + index * most * ctypes.sizeof(ctypes.c_double)
            if limit is None:
                continue
            if len(limit) != most:
                raise ValueError(f"thresholds must be {most}, one per token, got {len(limit)}")
            limits[index * most : (index + 1) * most] = list(limit)
            native.thresholds = ctypes.addressof(limits) + index * most * ctypes.sizeof(ctypes.c_double)
        raise_for(
            self._base.library.functions.hb_macro_steps(
                self._handle,
                instruction_set.encode(),
                self._base.handle,
                None if slot_base is None else slot_base.handle,
                natives,
                num,
                threads,
            )
        )
        return [
            _outcome(
                native,
                tokens[index * most : index * most + native.num_tokens],
                probs[index * most : index * most + native.num_asked],
            )
            for index, native in enumerate(natives)
        ]


def _outcome(
    native: Macro, tokens: Sequence[int], probs: Sequence[float]
) -> MacroStepOutput | ArithmeticError:
    if native.status == STOP_NOT_FINITE:
        return NonFiniteStopError("the stop head's logit is NaN")
    if native.status == NOT_FINITE:
        return NonFiniteLogitError(NO_MAXIMUM)
    return MacroStepOutput(tuple(tokens), tuple(probs))


def _only(outcomes: Sequence[MacroStepOutput | ArithmeticError]) -> MacroStepOutput:
    (outcome,) = outcomes
    if isinstance(outcome, ArithmeticError):
        raise outcome
    return outcome
