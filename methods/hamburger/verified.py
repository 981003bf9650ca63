"""HAMburger as its own draft: the micro-step decoder proposes, the base verifies in one forward. Lossless.

Nothing is merged: the base reads every token in a slot of its own, so its features are those it has without HAMburger,
and the micro-step decoder drafts from them. How long a draft is, the stop head says; it is asked before a token is
drawn, so that it depends on the tokens before only, as exact sampling needs.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hambench.decoding import Asking, KVUsage, SamplingParams, Step, Target
from hambench.engine.greedy import most_probable
from hambench.engine.requests.forwards import Forward, Prefill
from hambench.errors import NotFiniteError
from hambench.methods.common.sampling import choose, draw, probabilities
from hambench.methods.common.sequence import TargetSequence, decode_a_little
from hambench.methods.common.verification_rules import EXACT
from hambench.methods.common.verify import accept_by, keep
from hambench.methods.hamburger.model import HamburgerModel, MicroStep

if TYPE_CHECKING:
    from hambench.engine.output import ForwardOutput
    from hambench.methods.hamburger.device.macro_step import Emitted
    from hambench.methods.hamburger.device.native_step import NativeStep


@dataclasses.dataclass(frozen=True)
class VerifiedHamburger:
    """A target that verifies what its HAMburger weights draft, at one confidence."""

    name: str
    target: Target
    model: HamburgerModel
    confidence: float
    extra_weight_bytes: int
    lossless: bool = True

    def warmup(self) -> None:
        """Decodes a few rounds, so that no timed answer pays for packing, page-in and allocation."""
        decode_a_little(self)

    def start(self, prompt_ids: Sequence[int], params: SamplingParams) -> VerifiedSession:
        """Opens a session; see :class:`hambench.decoding.DecodingMethod`."""
        return VerifiedSession(self.target, self.model, prompt_ids, params, confidence=self.confidence)


class VerifiedSession:
    """One sequence; a step drafts by micro-steps and verifies in one forward of the target.

    The verifier is the target as it was loaded, also where the checkpoint changes the base: only then are the tokens
    the target's.

    Args:
        target: The target.
        model: Base and grafts.
        prompt_ids: The prompt.
        params: Limit and sampling.
        confidence: Least P(continue) to draft another token.
    """

    def __init__(
        self,
        target: Target,
        model: HamburgerModel,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        confidence: float,
    ) -> None:
        self._sequence = TargetSequence(target, prompt_ids, params)
        self._model, self._confidence = model, confidence
        self._layers = model.architecture.feature_layers
        self._micro_cache = model.new_micro_cache()
        self._native = self._native_step() if params.greedy and confidence <= 1 else None
        most = min(model.architecture.max_micro_steps, params.max_new_tokens)
        self._sequence.model.prepare_forward(
            self._sequence.cache, rows=range(1, most + 1), feature_layers=self._layers
        )
        # [F, D] of the row that gave the pending token
        self._features: Tensor | None = None

    def prefill(self) -> Asking[Step]:
        """Processes the prompt and emits the first token."""
        sequence = self._sequence
        out: ForwardOutput = yield Prefill(
            sequence.model, sequence.ids(sequence.prompt_ids), sequence.cache, feature_layers=self._layers
        )
        self._features = out.features[:, -1]
        sequence.tokens.append(choose(out.logits[-1], sequence.params, sequence.generator))
        return Step(tokens=(sequence.pending,))

    def step(self) -> Asking[Step]:
        """Drafts, verifies, and emits the accepted tokens plus one of the target's own."""
        sequence = self._sequence
        began = time.perf_counter()
        drafted, draft_probs = yield from self._draft()
        draft_seconds = time.perf_counter() - began
        base = sequence.cache.slots
        tokens = [sequence.pending, *drafted]
        out: ForwardOutput = yield Forward(
            sequence.model,
            sequence.ids(tokens),
            sequence.cache,
            num_logits=None,
            feature_layers=self._layers,
        )
        accepted = accept_by(EXACT, sequence, out.logits, drafted, draft_probs)
        self._features = out.features[:, accepted.num_accepted]
        keep(sequence, base, drafted, accepted)
        return Step(
            tokens=tuple(sequence.tokens[-accepted.num_accepted - 1 :]),
            micro_forwards=len(drafted),
            drafted=len(drafted),
            accepted=accepted.num_accepted,
            draft_seconds=draft_seconds if drafted else None,
            peak_kv_bytes=sequence.most_slots * sequence.cache.bytes_per_slot
            + self._micro_bytes(len(drafted)),
        )

    @property
    def kv(self) -> KVUsage:
        """The target's cache; the micro-steps' lasts for one round only."""
        cache = self._sequence.cache
        return KVUsage(cache.slots, cache.bytes_used)

    def _draft(self) -> Asking[tuple[list[int], Tensor | None]]:
        model, sequence = self._model, self._sequence
        assert self._features is not None
        features, newest = self._features, sequence.pending
        hidden = features[-1:]
        drafted: list[int] = []
        rows: list[Tensor] = []
        # the last token that counts comes from the target itself: drafting it would be wasted work
        most = min(model.architecture.max_micro_steps, sequence.num_left) - 1
        if self._native is not None:
            return (yield from self._native_draft(self._native, most)), None
        self._micro_cache.truncate(0)
        while len(drafted) < most and self._goes_on(hidden):
            embedded = model.merge([newest])
            inputs = embedded if drafted else torch.cat([features, embedded])
            hidden, logits = yield MicroStep(model, inputs, self._micro_cache)
            if sequence.generator is None:
                newest = most_probable(logits)[0]
            else:
                rows.append(probabilities(logits, sequence.params))
                newest = draw(rows[-1][0], sequence.generator)
            drafted.append(newest)
        if sequence.generator is None:
            return drafted, None
        nothing = torch.empty(0, sequence.model.shape.vocab_size, device=sequence.device)
        return drafted, torch.cat(rows) if rows else nothing

    def _native_draft(self, native: NativeStep, most: int) -> Asking[list[int]]:
        if not most:
            return []
        assert self._features is not None
        emitted: Emitted = yield native.asks_draft(
            self._features, self._sequence.pending, most_tokens=most + 1, confidence=self._confidence
        )
        return list(emitted.tokens[1:])

    def _native_step(self) -> NativeStep | None:
        from hambench.methods.hamburger.device.native_step import NativeStep, native_step_obstacle

        if native_step_obstacle(self._model) is not None:
            return None
        return NativeStep(self._model, self._sequence.cache, asks=True)

    def _micro_bytes(self, num_drafted: int) -> int:
        if self._native is None:
            return self._micro_cache.bytes_used
        return self._model.architecture.micro_slots(num_drafted) * self._native.micro_slot_bytes

    def _goes_on(self, hidden: Tensor) -> bool:
        if self._confidence > 1:
            return False
        probability = self._model.continue_probability(hidden)
        if math.isnan(probability):
            raise NotFiniteError("the HAMburger stop head")
        return probability >= self._confidence
