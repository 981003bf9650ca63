"""The greedy macro-step on the native CPU engine, in one native call each."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hambench.engine.cpu.native_llama import NativeLlama
from hambench.engine.cpu.packing import native_shape, stack_layers
from hambench.engine.kvcache import KVCache
from hambench.engine.shape import rope_frequencies
from hambench.errors import NotFiniteError
from hambench.kernels.cpu.macro_step import (
    MAX_STEPS,
    MacroStepOutput,
    MergeWeights,
    NativeGrafts,
    NonFiniteStopError,
)
from hambench.kernels.cpu.model import CachePart, NativeModel, NonFiniteLogitError
from hambench.kernels.cpu.operands import LinearWeight
from hambench.methods.hamburger.device.macro_step import ALWAYS, NEVER, Emitted, MacroStep
from hambench.methods.hamburger.model import HamburgerModel


class NativeStep(MacroStep):
    """Macro-steps over one cache of the base, one native call each.

    Args:
        model: A model whose bases are :class:`~hambench.engine.cpu.native_llama.NativeLlama`; see
            :func:`native_step_obstacle`.
        cache: The base's cache.
        asks: Whether to run the stop head; without it every macro-step has one token.
    """

    def __init__(self, model: HamburgerModel, cache: KVCache, *, asks: bool) -> None:
        base = model.base
        assert isinstance(base, NativeLlama)
        self._model, self._base, self._cache, self._asks = model, base, cache, asks
        self._grafts = native_grafts(model)
        super().__init__(
            most_tokens=self._grafts.max_steps if asks else 1,
            micro_slot_bytes=self._grafts.micro_slot_bytes,
        )
        self._slots = self._position = 0
        self._thresholds = [0.0] * self._grafts.max_steps
        self._last: tuple[int, ...] = ()

    def begin(
        self,
        features: Tensor,
        token: Tensor,
        logit: Tensor,
        *,
        slots: int,
        position: int,
        confidence: float,
    ) -> None:
        """See :meth:`.macro_step.MacroStep.begin`."""
        if not bool(torch.isfinite(logit).all()):
            raise NotFiniteError
        self._features, self._token = features.to(torch.float32).contiguous(), int(token)
        self._slots, self._position = slots, position
        self._thresholds = [confidence] * self._grafts.max_steps

    def _set_length(self, num_tokens: int) -> None:
        self._thresholds = [
            ALWAYS if place < num_tokens - 1 else NEVER for place in range(len(self._thresholds))
        ]

    def _set_last(self, tokens: Sequence[int]) -> None:
        self._last = tuple(tokens)

    def first(self) -> Emitted:
        """See :meth:`.macro_step.MacroStep.first`."""
        return self._run(
            lambda grafts: grafts.first(
                self._features,
                self._token,
                thresholds=self._thresholds if self._asks else None,
                instruction_set=self._base.instruction_set,
                threads=self._base.threads,
            )
        )

    def next(self) -> Emitted:
        """See :meth:`.macro_step.MacroStep.next`."""
        through = self._model.base_for(len(self._last))
        assert isinstance(through, NativeLlama)
        self._position += len(self._last)
        cache = self._cache
        emitted = self._run(
            lambda grafts: grafts.next(
                self._last,
                through.native,
                CachePart(cache.keys, cache.values, self._slots, 1),
                self._position,
                thresholds=self._thresholds if self._asks else None,
                instruction_set=self._base.instruction_set,
                threads=self._base.threads,
            )
        )
        self._slots += 1
        return emitted

    def _run(self, call: Callable[[NativeGrafts], MacroStepOutput]) -> Emitted:
        try:
            output = call(self._grafts)
        except NonFiniteLogitError as error:
            raise NotFiniteError from error
        except NonFiniteStopError as error:
            raise NotFiniteError("the HAMburger stop head") from error
        self._last, self._last_count = output.tokens, len(output.tokens)
        return Emitted(output.tokens, output.continue_probs)


def native_step_obstacle(model: HamburgerModel) -> str | None:
    """Returns why this model's macro-steps can't run in native calls; ``None`` if they can."""
    architecture = model.architecture
    if not all(isinstance(model.base_for(count), NativeLlama) for count in (1, 2)):
        return "its base does not run on the native kernels"
    if architecture.max_micro_steps > MAX_STEPS:
        return f"{architecture.max_micro_steps} tokens of a macro-step, the kernels take up to {MAX_STEPS}"
    return None


_packed: weakref.WeakKeyDictionary[HamburgerModel, NativeGrafts] = weakref.WeakKeyDictionary()


def native_grafts(model: HamburgerModel) -> NativeGrafts:
    """Returns the model's grafts, packed once."""
    if model not in _packed:
        _packed[model] = _pack(model)
    return _packed[model]


def _pack(model: HamburgerModel) -> NativeGrafts:
    base, weights = model.base, model.kernel_weights()
    assert isinstance(base, NativeLlama)
    merge, stop, hidden = weights.merge, weights.stop, base.shape.hidden_size
    # what places and biases add is the same for every token: worked out once, in float32
    share = torch.nn.functional.linear(
        merge.positions.float(), merge.wkv[:, hidden:].float(), merge.bkv.float()
    )
    micro = NativeModel(
        base.library,
        native_shape(base.shape),
        stack_layers(model.micro),
        frequencies=rope_frequencies(base.shape),
        final_norm=model.micro_norm,
        head=None,
        embedding=None,
        cache_type=torch.float32,
    )
    return NativeGrafts(
        base.native,
        micro,
        MergeWeights(
            query=LinearWeight(merge.wq.contiguous(), None, merge.bq),
            keyed=LinearWeight(merge.wkv[:, :hidden].contiguous()),
            out=LinearWeight(merge.wo.contiguous(), None, merge.bo),
            position_share=share.contiguous(),
            heads=weights.merge_heads,
            residual_is_last=weights.merge_residual == "last",
        ),
        [
            LinearWeight(weight.contiguous(), None, bias)
            for weight, bias in ((stop.w1, stop.b1), (stop.w2, stop.b2), (stop.w3, stop.b3))
        ],
        feature_layers=model.architecture.feature_layers,
    )
