"""HAMburger's macro-step as one native call: merged tokens, the base, then micro-steps until the stop head stops.

Letters in shapes: S most tokens per macro-step, F feature vectors, D hidden size, W width of the stop head.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hambench.kernels.cpu.library import STOP_NOT_FINITE, Grafts, Macro, Part
from hambench.kernels.cpu.model import CachePart, NativeModel, raise_for
from hambench.kernels.cpu.operands import LinearWeight, check_tensor, dense_weight

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
        weakref.finalize(self, functions.hb_grafts_free, handle)

    @property
    def micro_slot_bytes(self) -> int:
        """Bytes that the micro-steps store per row: float32 keys and values of every micro layer."""
        shape = self._micro.shape
        return 2 * self._micro.num_layers * shape.num_kv_heads * shape.head_dim * torch.float32.itemsize

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
        self._base.check_ids((token,))
        check_tensor(
            "features", features, (self.num_features, self._base.shape.hidden_size), (torch.float32,)
        )
        return self._run(Macro(first_token=token), features, thresholds, instruction_set, threads)

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
        if not 1 <= len(merged) <= self.max_steps or part.num_rows != 1 or position < 0:
            raise ValueError(
                f"merged must be 1..{self.max_steps} tokens for one row at a position >= 0, got {len(merged)} for "
                f"{part.num_rows} at {position}"
            )
        if slot_base.shape != self._base.shape or slot_base.num_layers != self._base.num_layers:
            raise ValueError("slot_base must have the base's sizes")
        if not slot_base.has_head:
            raise ValueError("slot_base must have a final norm and a head")
        self._base.check_ids(merged)
        native_part = Part()
        slot_base.fill(native_part, part, first_row=0)
        ids = (ctypes.c_int64 * len(merged))(*merged)
        call = Macro(
            slot_base=slot_base.handle,
            part=ctypes.addressof(native_part),
            merged=ctypes.addressof(ids),
            num_merged=len(merged),
            position=position,
        )
        features = torch.empty(self.num_features, self._base.shape.hidden_size)
        return self._run(call, features, thresholds, instruction_set, threads)

    def _run(
        self,
        call: Macro,
        features: Tensor,
        thresholds: Sequence[float] | None,
        instruction_set: str,
        threads: int,
    ) -> MacroStepOutput:
        if threads < 1:
            raise ValueError(f"threads must be >= 1, got {threads}")
        if thresholds is not None and len(thresholds) != self.max_steps:
            raise ValueError(f"thresholds must be {self.max_steps}, one per token, got {len(thresholds)}")
        tokens = (ctypes.c_int64 * self.max_steps)()
        probs = (ctypes.c_double * self.max_steps)()
        limits = None if thresholds is None else (ctypes.c_double * self.max_steps)(*thresholds)
        call.base, call.features, call.threads = self._base.handle, features.data_ptr(), threads
        call.thresholds = None if limits is None else ctypes.addressof(limits)
        call.tokens, call.probabilities = ctypes.addressof(tokens), ctypes.addressof(probs)
        status = self._base.library.functions.hb_macro_step(self._handle, instruction_set.encode(), call)
        if status == STOP_NOT_FINITE:
            raise NonFiniteStopError("the stop head's logit is NaN")
        raise_for(status)
        return MacroStepOutput(tuple(tokens[: call.num_tokens]), tuple(probs[: call.num_asked]))
