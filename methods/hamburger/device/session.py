"""Greedy decoding of one sequence by macro-steps that stay on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hambench.decoding import Asking, KVUsage, SamplingParams, Step
from hambench.engine.cuda.early_exit import Loop
from hambench.engine.requests.forwards import Prefill
from hambench.methods.hamburger.architecture import PositionConvention
from hambench.methods.hamburger.device.choice import leader_of
from hambench.methods.hamburger.device.macro_step import Emitted
from hambench.methods.hamburger.model import HamburgerModel


class DeviceSession:
    """One greedy sequence with the tokens and counts of :class:`~.session.HamburgerSession`, without waits.

    The constructor does untimed work, such as graph capture, before the prompt.

    Args:
        model: A model whose base is a :class:`~hambench.engine.cuda.fused_llama.FusedLlama` or a
            :class:`~hambench.engine.cpu.native_llama.NativeLlama`, without an obstacle by :func:`.choice.leader_of`.
        prompt_ids: The prompt; never merged.
        params: Limit; sampling must be greedy.
        confidence: Go on while P(continue) reaches this.
        position_convention: Position of a generated slot.
        loop: Launch mode of a GPU's macro-steps; see :mod:`hambench.engine.cuda.early_exit`.
    """

    def __init__(
        self,
        model: HamburgerModel,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        confidence: float,
        position_convention: PositionConvention,
        loop: Loop,
    ) -> None:
        if not params.greedy:
            raise ValueError(f"params must be greedy, got temperature {params.temperature}")
        leader = leader_of(model)
        if leader.make is None:
            raise ValueError(
                f"model must have macro-steps that its engine leads: {leader.obstacle or 'its base runs on torch'}"
            )
        self._model, self._prompt_ids, self._confidence = model, prompt_ids, confidence
        self._offset = 0 if position_convention == "hf" else -1
        self._cache = model.base.new_cache(len(prompt_ids) + params.max_new_tokens)
        self.macro_step = leader.make(self._cache, asks=confidence <= 1, loop=loop)

    def prefill(self) -> Asking[Step]:
        """Processes the prompt and emits the first macro-step."""
        model = self._model
        ids = torch.tensor(list(self._prompt_ids), device=model.base.device)
        out = yield Prefill(model.base, ids, self._cache, feature_layers=model.architecture.feature_layers)
        features = out.features[:, -1]
        logits = out.logits if model.first_from_base else model.base.lm_head(features[-1:])
        token = logits[-1:].argmax(dim=-1)
        self.macro_step.begin(
            features,
            token,
            logits[-1].gather(-1, token),
            slots=self._cache.slots,
            position=len(self._prompt_ids) + self._offset,
            confidence=self._confidence,
        )
        emitted = yield self.macro_step.asks_first()
        return self._step(emitted)

    def step(self) -> Asking[Step]:
        """Stores the last macro-step's tokens in one slot and emits the next macro-step."""
        self._cache.require(1)
        emitted = yield self.macro_step.asks_next()
        self._cache.advance(1)
        return self._step(emitted)

    def replace_last(self, tokens: Sequence[int]) -> None:
        """See :meth:`.macro_step.MacroStep.replace_last`."""
        self.macro_step.replace_last(tokens)

    @property
    def kv(self) -> KVUsage:
        """The base's cache."""
        return KVUsage(self._cache.slots, self._cache.bytes_used)

    def _step(self, emitted: Emitted) -> Step:
        num_micro = len(emitted.tokens) - 1
        micro_slots = self._model.architecture.micro_slots(num_micro)
        return Step(
            tokens=emitted.tokens,
            micro_forwards=num_micro,
            continue_probs=emitted.continue_probs,
            peak_kv_bytes=self._cache.bytes_used + micro_slots * self.macro_step.micro_slot_bytes,
        )
