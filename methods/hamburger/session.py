"""Decodes one sequence by macro-steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hambench.decoding import Asking, KVUsage, SamplingParams, Step
from hambench.engine.output import ForwardOutput
from hambench.engine.requests.forwards import Forward, Prefill
from hambench.errors import NotFiniteError
from hambench.methods.common.sampling import choose, generator_for
from hambench.methods.hamburger.architecture import PositionConvention
from hambench.methods.hamburger.model import HamburgerModel, MicroStep


class HamburgerSession:
    """One sequence; a step is a macro-step: one forward of the base, then micro-steps until the stop head ends it.

    ``continue_probs`` of a step holds P(continue) after each token for which the stop head ran. It does not run after
    the last possible token, nor in the one-token control.

    Args:
        model: Base and grafts.
        prompt_ids: The prompt; its tokens are never merged.
        params: Limit and sampling.
        confidence: Least P(continue) to continue a macro-step.
        position_convention: Position of a generated slot, see :class:`.architecture.Architecture`.
    """

    def __init__(
        self,
        model: HamburgerModel,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        confidence: float,
        position_convention: PositionConvention,
    ) -> None:
        self._model, self._params, self._confidence = model, params, confidence
        self._prompt_ids = prompt_ids
        self._offset = 0 if position_convention == "hf" else -1
        self._generator = generator_for(params, model.base.device)
        self._cache = model.base.new_cache(len(prompt_ids) + params.max_new_tokens)
        self._micro_cache = model.new_micro_cache()
        self._last: tuple[int, ...] = ()
        self._length = len(prompt_ids)
        for length in range(1, model.architecture.max_micro_steps + 1):
            model.base_for(length).prepare_forward(
                self._cache,
                rows=(1,),
                num_logits=1 if model.first_from_base else 0,
                embedded=True,
                feature_layers=model.architecture.feature_layers,
            )

    def prefill(self) -> Asking[Step]:
        """Processes the prompt and emits the first macro-step."""
        ids = torch.tensor(list(self._prompt_ids), device=self._model.base.device)
        layers = self._model.architecture.feature_layers
        out = yield Prefill(self._model.base, ids, self._cache, feature_layers=layers)
        return (yield from self._emit(out))

    def step(self) -> Asking[Step]:
        """Stores the last macro-step's tokens in one slot and emits the next macro-step."""
        position = torch.tensor([self._length + self._offset], device=self._model.base.device)
        out = yield Forward(
            self._model.base_for(len(self._last)),
            self._model.merge(self._last),
            self._cache,
            positions=position,
            num_logits=1 if self._model.first_from_base else 0,
            feature_layers=self._model.architecture.feature_layers,
        )
        return (yield from self._emit(out))

    def replace_last(self, tokens: Sequence[int]) -> None:
        """Replaces the last macro-step's tokens before they get their slot (teacher forcing).

        Args:
            tokens: As many as were emitted, or fewer, as if the stop head had ended the macro-step there.

        Raises:
            ValueError: If there are none of them, or more than were emitted.
        """
        if not 1 <= len(tokens) <= len(self._last):
            raise ValueError(
                f"tokens must be 1..{len(self._last)}, at most as many as were emitted, got {len(tokens)}"
            )
        self._length -= len(self._last) - len(tokens)
        self._last = tuple(tokens)

    @property
    def kv(self) -> KVUsage:
        """Usage of the base's cache; the micro-steps' cache lasts for one macro-step only."""
        return KVUsage(self._cache.slots, self._cache.bytes_used)

    def _emit(self, out: ForwardOutput) -> Asking[Step]:
        model = self._model
        features = out.features[:, -1]
        hidden = features[-1:]
        logits = out.logits if model.first_from_base else model.base.lm_head(hidden)
        tokens = [self._choose(logits)]
        continue_probs: list[float] = []
        self._micro_cache.truncate(0)
        while len(tokens) < model.architecture.max_micro_steps and self._goes_on(hidden, continue_probs):
            newest = model.merge(tokens[-1:])
            rows = torch.cat([features, newest]) if len(tokens) == 1 else newest
            hidden, logits = yield MicroStep(model, rows, self._micro_cache)
            tokens.append(self._choose(logits))
        self._last = tuple(tokens)
        self._length += len(tokens)
        return Step(
            tokens=self._last,
            micro_forwards=len(tokens) - 1,
            continue_probs=tuple(continue_probs),
            peak_kv_bytes=self._cache.bytes_used + self._micro_cache.bytes_used,
        )

    def _goes_on(self, hidden: Tensor, continue_probs: list[float]) -> bool:
        if self._confidence > 1:
            return False
        probability = self._model.continue_probability(hidden)
        if math.isnan(probability):
            raise NotFiniteError("the HAMburger stop head")
        continue_probs.append(probability)
        return continue_probs[-1] >= self._confidence

    def _choose(self, logits: Tensor) -> int:
        return choose(logits[-1], self._params, self._generator)
