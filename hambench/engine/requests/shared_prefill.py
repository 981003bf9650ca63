"""Prompts that were read once for several sessions: whoever reads the same prompt with the same model gets a copy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hambench.engine.kvcache import KVCache
from hambench.engine.output import ForwardOutput
from hambench.engine.requests.forwards import Prefill

if TYPE_CHECKING:
    from hambench.decoding import Request
    from hambench.engine.language_model import LanguageModel

Reader = tuple[int, int]
"""A model's identity, and the threads that torch reads a prompt with: another number may give other bits."""


@dataclass(frozen=True, slots=True)
class _Read:
    model: LanguageModel
    """Kept alive: its identity is a key."""
    ids: list[int]
    layers: tuple[int, ...]
    out: ForwardOutput
    seconds: float
    """What reading took."""
    keys: torch.Tensor
    """``[layers, KVH, T, Dh]``."""
    values: torch.Tensor


class ReadPrompts:
    """Answers requests to read a prompt, from memory where the same model has just read the same prompt.

    It holds the newest prompt of each model. A copy has the bits of reading: the same keys, values, logits and
    features. Caches of other kinds than :class:`~hambench.engine.kvcache.KVCache` are read into, never copied.

    Args:
        clock: Returns seconds from any fixed point.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.num_read = 0
        """Prompts that a model has read."""
        self.num_copied = 0
        """Requests that were answered by a copy."""
        self.keeping_s = 0.0
        """Seconds that went into keeping what was read: no reader's own work."""
        self._clock = clock
        self._kept: dict[Reader, _Read] = {}
        # layers that any session has asked a model for: whoever reads the next prompt reads them for all
        self._layers: dict[Reader, frozenset[int]] = {}
        self._asked: dict[Reader, tuple[float, bool]] = {}

    def answer(self, request: Request) -> Any:
        """Answers a request; every other one than to read a prompt into an empty cache does its own work."""
        if not isinstance(request, Prefill) or type(request.cache) is not KVCache or request.cache.slots:
            return request.answer()
        key = (id(request.model), torch.get_num_threads())
        known = self._kept.get(key)
        if known is None or known.ids != request.ids.tolist():
            return self._read(key, request)
        if not set(request.feature_layers) <= set(known.layers):
            return self._read(key, request)
        self._asked[key] = (known.seconds, False)
        return self._copy(known, request)

    def take_asked(self) -> dict[Reader, tuple[float, bool]]:
        """Who was asked to read since the last call: what reading takes in seconds, and whether it was done then."""
        asked, self._asked = self._asked, {}
        return asked

    def forget(self) -> None:
        """Frees everything; the next reader of each prompt reads it itself."""
        self._kept.clear()

    def _read(self, key: Reader, request: Prefill) -> ForwardOutput:
        wanted = self._layers.get(key, frozenset()) | set(request.feature_layers)
        self._layers[key] = wanted
        layers = tuple(sorted(wanted))
        asked_at = self._clock()
        out = request.model.prefill(request.ids, request.cache, feature_layers=layers)
        self.num_read += 1
        began = self._clock()
        self._asked[key] = (began - asked_at, True)
        # at once: what the session does next may write to the slots
        num_slots, cache = request.ids.shape[0], request.cache
        keys, values = (tensor[:, :, :num_slots].clone() for tensor in (cache.keys, cache.values))
        self._kept[key] = _Read(
            request.model, request.ids.tolist(), layers, _own(out), began - asked_at, keys, values
        )
        self.keeping_s += self._clock() - began
        return _chosen(out, layers, request.feature_layers)

    def _copy(self, known: _Read, request: Prefill) -> ForwardOutput:
        num_slots = len(known.ids)
        request.cache.require(num_slots)
        request.cache.expect(num_slots)
        request.cache.keys[:, :, :num_slots].copy_(known.keys)
        request.cache.values[:, :, :num_slots].copy_(known.values)
        request.cache.advance(num_slots)
        self.num_copied += 1
        return _own(_chosen(known.out, known.layers, request.feature_layers))


def _own(out: ForwardOutput) -> ForwardOutput:
    """A copy that nobody else writes to; it has a row or a few."""
    return ForwardOutput(out.logits.clone(), out.hidden.clone(), out.features.clone())


def _chosen(out: ForwardOutput, layers: Sequence[int], wanted: Sequence[int]) -> ForwardOutput:
    """The output with the features of the wanted layers only."""
    if tuple(layers) == tuple(wanted):
        return out
    return ForwardOutput(out.logits, out.hidden, out.features[[layers.index(layer) for layer in wanted]])
