"""The greedy macro-step on the device, without passing its tokens, count or end through the host.

Letters in shapes: F feature vectors, S most tokens per macro-step, D hidden size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hambench.engine.cuda.early_exit import Chain, Loop, loop_maker
from hambench.engine.cuda.forwards import Trunk
from hambench.engine.cuda.fused_llama import FusedLlama
from hambench.engine.cuda.graphs import Run
from hambench.engine.cuda.staging import StagingBuffer
from hambench.engine.kvcache import KVCache
from hambench.errors import NotFiniteError
from hambench.kernels.merge_tokens import merge_tokens
from hambench.kernels.results import HeadOutput, MicroState
from hambench.kernels.stop_head import stop_head
from hambench.methods.hamburger.device.macro_step import ALWAYS, NEVER, Emitted, MacroStep
from hambench.methods.hamburger.device.micro_kernels import MicroSteps
from hambench.methods.hamburger.model import HamburgerModel


class DeviceStep(MacroStep):
    """Macro-steps over one cache of the base, each with one copy to the host.

    Slots, positions, the tokens to be merged and the flag that ends a macro-step are device scalars. A macro-step is a
    chain of parts. The first runs merged tokens, base and token 1; each further part is one micro-step, whose kernels
    return at once if the flag is set. ``loop`` is the launch mode of the chain.

    Args:
        model: A model whose base is a :class:`~hambench.engine.cuda.fused_llama.FusedLlama` and for which
            :func:`fused_step_obstacle` finds no obstacle.
        cache: The base's cache, empty; the macro-steps write to its storage.
        asks: Whether the stop head is asked; without it every macro-step is one token.
        loop: See :mod:`hambench.engine.cuda.early_exit`.
    """

    @torch.inference_mode()
    def __init__(self, model: HamburgerModel, cache: KVCache, *, asks: bool, loop: Loop) -> None:
        base, architecture = model.base, model.architecture
        assert isinstance(base, FusedLlama)
        super().__init__(
            most_tokens=architecture.max_micro_steps if asks else 1,
            micro_slot_bytes=MicroSteps.slot_bytes(model),
        )
        # the cache itself is its session's: kept here, its storage would never be lent again
        self._model, self._base = model, base
        self._weights = model.kernel_weights()
        device, num_slots = base.device, architecture.max_micro_steps
        self._state = StagingBuffer(
            {
                "num_tokens": (torch.int32, 1),
                "done": (torch.int32, 1),
                "tokens": (torch.int64, num_slots),
                "probs": (torch.float32, num_slots),
                # four apart to be aligned as kernels expect
                "logits": (torch.float32, 4 * num_slots),
            },
            device,
        )
        state = self._state
        self._micro_state = MicroState(state["tokens"], state["probs"], state["num_tokens"], state["done"])
        # what ends one macro-step begins the next: both counters lie at the buffer's start
        self._counters = state.buffer[: state["done"].data_ptr() - state.buffer.data_ptr() + 4]
        # preparing runs the parts, and tokens can only be merged if there is one
        state["num_tokens"].fill_(1)
        self._slots = torch.zeros(1, dtype=torch.int32, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        # a threshold for each token, four apart to be aligned as kernels expect
        self._thresholds = torch.zeros(num_slots, 4, dtype=torch.float32, device=device)
        ended = torch.arange(num_slots, device=device) >= torch.arange(num_slots, device=device)[:, None]
        self._forced = torch.where(ended, NEVER, ALWAYS)[..., None].expand(-1, -1, 4).contiguous()
        newest = torch.zeros(1, dtype=torch.int64, device=device)
        self._heads = [
            HeadOutput(newest, state["logits"][4 * number : 4 * number + 1], None)
            for number in range(num_slots)
        ]
        self._micro = MicroSteps(model, newest, state["done"])
        self._merged = torch.zeros(1, base.shape.hidden_size, dtype=base.dtype, device=device)
        maker = loop_maker(loop, base.launches, state)
        micro_parts = [functools.partial(self._micro_part, number) for number in range(1, self.most_tokens)]
        self._first = maker.chain([self._start, *micro_parts])
        self._chains: dict[int, Chain] = {}
        """By the base that a slot goes through: one, or another for slots of several tokens."""
        for count in (1, architecture.max_micro_steps):
            through = model.base_for(count)
            if id(through) not in self._chains:
                assert isinstance(through, FusedLlama)
                self._chains[id(through)] = maker.chain([self._base_part(through, cache), *micro_parts])

    @torch.inference_mode()
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
        self._micro.rows[:-1].copy_(features)
        self._heads[0].tokens.copy_(token)
        self._heads[0].logits.copy_(logit)
        self._slots.fill_(slots)
        self._position.fill_(position)
        self._thresholds.fill_(confidence)

    @torch.inference_mode()
    def _set_length(self, num_tokens: int) -> None:
        self._thresholds.copy_(self._forced[num_tokens - 1])

    @torch.inference_mode()
    def _set_last(self, tokens: Sequence[int]) -> None:
        self._state["tokens"][: len(tokens)].copy_(torch.tensor(list(tokens)))
        self._state["num_tokens"].fill_(len(tokens))

    def first(self) -> Emitted:
        """See :meth:`.macro_step.MacroStep.first`."""
        return self._emitted(self._first())

    def next(self) -> Emitted:
        """See :meth:`.macro_step.MacroStep.next`."""
        return self._emitted(self._chains[id(self._model.base_for(self._last_count))]())

    def _emitted(self, state: StagingBuffer) -> Emitted:
        self._last_count = count = int(state["num_tokens"])
        num_asked = min(count, self.most_tokens - 1)
        probs: list[float] = state["probs"][:num_asked].tolist()
        if not all(map(math.isfinite, (*probs, *state["logits"][: 4 * count : 4].tolist()))):
            raise NotFiniteError
        return Emitted(tuple(state["tokens"][:count].tolist()), tuple(probs))

    def _base_part(self, base: FusedLlama, cache: KVCache) -> Run:
        num_features = self._model.architecture.num_features
        features = self._micro.rows[:num_features]
        trunk = Trunk(
            base,
            cache,
            inputs=self._merged,
            positions=self._position,
            slots=self._slots,
            feature_layers=self._model.architecture.feature_layers,
            features=features[:, None],
        )
        weights, count = self._weights, self._state["num_tokens"]

        def run() -> None:
            merge_tokens(
                self._state["tokens"],
                count,
                self._base.embedding,
                weights.merge,
                num_heads=weights.merge_heads,
                residual=weights.merge_residual,
                out=self._merged,
                impl=base.impl,
            )
            self._position.add_(count)
            trunk.run()
            self._slots.add_(1)
            if self._model.first_from_base:
                base.greedy_head(trunk.stream, self._heads[0])
            else:
                self._base.greedy_head(features[-1:], self._heads[0], normed=True)
            self._start()

        return run

    def _start(self) -> None:
        """Emits token 1, which comes from the last feature."""
        self._counters.zero_()
        if self.most_tokens > 1:
            self._micro.embed_first()
        self._emit(0, self._micro.rows[-2:-1])

    def _micro_part(self, number: int) -> None:
        """Emits one more token unless the macro-step has ended."""
        self._micro.run(number)
        self._base.greedy_head(self._micro.hidden, self._heads[number], normed=True, done=self._state["done"])
        self._emit(number, self._micro.hidden)

    def _emit(self, index: int, hidden: Tensor) -> None:
        stop_head(
            hidden,
            self._heads[index].tokens,
            # after the last possible token nothing is asked
            self._weights.stop if index < self.most_tokens - 1 else None,
            self._micro_state,
            confidence=self._thresholds[index, :1],
            impl=self._base.impl,
        )


def fused_step_obstacle(model: HamburgerModel) -> str | None:
    """Returns why this model's macro-steps can't run on the device; ``None`` if they can."""
    for base in {id(b): b for b in (model.base_for(1), model.base_for(2))}.values():
        if not isinstance(base, FusedLlama):
            return "its base does not run on the fused kernels"
    return MicroSteps.obstacle(model)


def device_step(model: HamburgerModel, cache: KVCache, *, asks: bool, loop: Loop) -> DeviceStep:
    """Returns the macro-steps over a cache, stored with the cache's storage like graphs."""
    assert isinstance(model.base, FusedLlama)
    return model.base.cached_for(
        cache,
        ("macro-step", id(model), asks, loop),
        lambda: DeviceStep(model, cache, asks=asks, loop=loop),
    )
