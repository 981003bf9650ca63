"""The greedy macro-step on the native CPU engine, in one native call each."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from typing import Any, Self, TypedDict

import torch
from torch import Tensor

from hambench.decoding import Request
from hambench.engine.cpu.native_llama import NativeLlama
from hambench.engine.cpu.packing import native_shape, stack_layers
from hambench.engine.kvcache import KVCache
from hambench.engine.shape import rope_frequencies
from hambench.errors import NotFiniteError
from hambench.kernels.cpu.macro_step import (
    MAX_STEPS,
    FirstStep,
    MacroStepOutput,
    MergeWeights,
    NativeGrafts,
    NextStep,
    NonFiniteStopError,
)
from hambench.kernels.cpu.model import CachePart, NativeModel
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
        return _value(run_together([self], through=None)[0])

    def next(self) -> Emitted:
        """See :meth:`.macro_step.MacroStep.next`."""
        return _value(run_together([self], through=self._through)[0])

    def asks_first(self) -> Request:
        """See :meth:`.macro_step.MacroStep.asks_first`."""
        return _MacroStepRequest(self, None)

    def asks_next(self) -> Request:
        """See :meth:`.macro_step.MacroStep.asks_next`."""
        return _MacroStepRequest(self, self._through)

    def asks_draft(
        self, features: Tensor, token: int, *, most_tokens: int, confidence: float
    ) -> _MacroStepRequest:
        """The request for micro-steps from a row of the base, which nothing is stored of.

        It is answered by the token itself and what the micro-steps put behind it, ``most_tokens`` in all at most.

        Args:
            features: Features of the row ``[F, D]``.
            token: The token that the base chose there.
            most_tokens: 1 to S.
            confidence: Least P(continue) to continue.
        """
        self._features, self._token = features.to(torch.float32).contiguous(), token
        going = most_tokens - 1
        self._thresholds = [confidence] * going + [NEVER] * (self._grafts.max_steps - going)
        return _MacroStepRequest(self, None)

    @property
    def grafts(self) -> NativeGrafts:
        """The packed grafts, shared by all steps of one model."""
        return self._grafts

    @property
    def _through(self) -> NativeLlama:
        """The base that the last macro-step's slot goes through."""
        base = self._model.base_for(len(self._last))
        assert isinstance(base, NativeLlama)
        return base

    def first_used(self, through: NativeLlama | None) -> frozenset[Hashable]:
        """What a macro-step through this base first uses: without the stop head, nothing of the grafts."""
        grafts = {id(self._grafts)} if self._asks else set()
        bases = set() if through is None else {(id(through), type(self._cache))}
        return frozenset[Hashable](grafts | bases)

    def first_step(self) -> FirstStep:
        """What this sequence brings to the macro-step behind its prompt."""
        return FirstStep(self._features, self._token, self._thresholds if self._asks else None)

    def next_step(self) -> NextStep:
        """What this sequence brings to its next macro-step."""
        cache = self._cache
        part = CachePart(cache.keys, cache.values, self._slots, 1)
        position = self._position + len(self._last)
        return NextStep(self._last, part, position, self._thresholds if self._asks else None)

    def take(self, output: MacroStepOutput, *, has_slot: bool) -> Emitted:
        """Notes what came of the macro-step."""
        if has_slot:
            self._position += len(self._last)
            self._slots += 1
        self._last, self._last_count = output.tokens, len(output.tokens)
        return Emitted(output.tokens, output.continue_probs)

    @property
    def how(self) -> _How:
        """How the kernels run here."""
        return {"instruction_set": self._base.instruction_set, "threads": self._base.threads}


class _How(TypedDict):
    instruction_set: str
    threads: int


class _MacroStepRequest(Request):
    """A macro-step of one sequence; answered by its :class:`~.macro_step.Emitted`.

    Sequences whose slots go through the same base share one call: one forward of the base, then the micro-steps of
    those that go on.
    """

    __slots__ = ("step", "through")

    def __init__(self, step: NativeStep, through: NativeLlama | None) -> None:
        self.step, self.through = step, through

    @property
    def together(self) -> Hashable | None:
        return id(self.step.grafts), None if self.through is None else id(self.through)

    @property
    def cost(self) -> int:
        return 0 if self.through is None else self.through.weight_bytes

    @property
    def first_used(self) -> frozenset[Hashable]:
        return self.step.first_used(self.through)

    def answer(self) -> Emitted:
        return self.step.first() if self.through is None else self.step.next()

    @classmethod
    def answer_together(cls, requests: Sequence[Self]) -> list[Any]:
        most = requests[0].step.grafts.most_together
        steps = [request.step for request in requests]
        return [
            answer
            for start in range(0, len(steps), most)
            for answer in run_together(steps[start : start + most], through=requests[0].through)
        ]


def run_together(
    steps: Sequence[NativeStep], *, through: NativeLlama | None
) -> list[Emitted | NotFiniteError]:
    """Runs a macro-step of each sequence in one native call.

    Args:
        steps: At most ``most_together`` of the grafts.
        through: The base that the slots go through; ``None`` for macro-steps behind a prompt.
    """
    grafts, how = steps[0].grafts, steps[0].how
    if through is None:
        outputs = grafts.first_together([step.first_step() for step in steps], **how)
    else:
        outputs = grafts.next_together([step.next_step() for step in steps], through.native, **how)
    emitted: list[Emitted | NotFiniteError] = []
    for step, output in zip(steps, outputs, strict=True):
        if isinstance(output, MacroStepOutput):
            emitted.append(step.take(output, has_slot=through is not None))
            continue
        error = NotFiniteError(
            *(("the HAMburger stop head",) if isinstance(output, NonFiniteStopError) else ())
        )
        error.__cause__ = output
        emitted.append(error)
    return emitted


def _value(emitted: Emitted | NotFiniteError) -> Emitted:
    if isinstance(emitted, NotFiniteError):
        raise emitted
    return emitted


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
