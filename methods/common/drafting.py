"""Drafters of speculative decoding, with a cache of their own or the target's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from hambench.engine.requests.forwards import Forward, GreedyChain, Prefill
from hambench.errors import ModelError
from hambench.methods.common.draft_length import DraftLength
from hambench.methods.common.sampling import draw, probabilities
from hambench.methods.common.sequence import TargetSequence, new_cache
from hambench.methods.common.vocabulary import check_tokens, with_rows

if TYPE_CHECKING:
    from hambench.decoding import Asking, Target
    from hambench.engine.kvcache import KVCache
    from hambench.engine.language_model import LanguageModel


class Drafter(Protocol):
    """The draft model's side of one sequence."""

    def prepare(self, num_tokens: int, *, asks: bool) -> None:
        """Does the untimed preparations for proposals, once.

        Args:
            num_tokens: Most tokens proposed at once.
            asks: Whether the draft's probabilities are asked for too.
        """

    def prefill(self) -> Asking[int]:
        """Does the work before the first token; returns the number of draft forwards."""

    def propose(self, num_tokens: int, length: DraftLength) -> Asking[tuple[list[int], Tensor | None]]:
        """Returns up to ``num_tokens`` proposals, one draft forward each, and their distributions ``[k, V]``.

        The distributions are ``None`` when greedy. ``length`` may end the draft earlier.
        """

    def settle(self) -> None:
        """Drops the tokens that the verification rejected."""

    @property
    def kv_bytes(self) -> int:
        """Bytes in use in the draft's own caches."""


def load_draft(name: str, target: Target) -> LanguageModel:
    """Loads the draft model once per target: an INT8 copy of the target, or another model by name.

    It reads prompts in the target's pieces.

    Raises:
        ModelError: If another model's tokens differ from the target's.
    """
    draft = _loaded_draft(name, target)
    draft.prefill_chunk = target.llama.prefill_chunk
    return draft


def _loaded_draft(name: str, target: Target) -> LanguageModel:
    from hambench.engine.int8 import quantize_int8
    from hambench.models.target import load

    model: LanguageModel = target.llama
    if name == "int8":
        return target.shared("draft/int8", lambda: quantize_int8(model))
    draft = target.shared(
        f"draft/{name}",
        lambda: load(name, dtype=str(target.dtype).removeprefix("torch."), device=str(target.device)),
    )
    num_rows = model.shape.vocab_size
    check_tokens(name, draft.tokenizer, draft.llama.shape.vocab_size, target)
    target.companions[f"draft {name}"] = draft.identity.sha256
    reference = draft.llama.reference
    if reference is None:
        if draft.llama.shape.vocab_size != num_rows:
            raise ModelError(
                f"draft {name} has {draft.llama.shape.vocab_size} rows, {target.name} has {num_rows}, and a draft that "
                "runs through the transformers adapter must have as many"
            )
        return draft.llama
    return target.shared(
        f"draft/{name}/as the target",
        lambda: model.with_same_backend(with_rows(reference, num_rows)),
    )


def _draft(
    model: LanguageModel,
    cache: KVCache,
    sequence: TargetSequence,
    first_input: list[int],
    num_tokens: int,
    length: DraftLength,
) -> Asking[tuple[list[int], Tensor | None]]:
    """Proposes autoregressively; the first forward may take two tokens that the draft has not seen yet."""
    if sequence.generator is None:
        chain = yield GreedyChain(model, first_input, cache, num_tokens, stop=length.stop)
        return chain, None
    drafted: list[int] = []
    rows: list[Tensor] = []
    inputs = first_input
    for _ in range(num_tokens):
        out = yield Forward(model, sequence.ids(inputs), cache, num_logits=1)
        rows.append(probabilities(out.logits, sequence.params))
        drafted.append(draw(rows[-1][0], sequence.generator))
        # the token stays, whatever was drawn: only how sure the draft was of it ends the draft
        if length.asks and not length.goes_on(float(rows[-1].max())):
            break
        inputs = drafted[-1:]
    nothing = torch.empty(0, model.shape.vocab_size, device=sequence.device)
    return drafted, torch.cat(rows) if rows else nothing


def _prepare(
    model: LanguageModel, cache: KVCache, sequence: TargetSequence, num_tokens: int, *, asks: bool
) -> None:
    """Does the untimed preparations of :func:`_draft`, once."""
    # an engine that can't end a chain on the device runs its forwards one by one
    if sequence.generator is None and not asks:
        model.prepare_greedy(cache, chain=num_tokens)
    elif num_tokens:
        model.prepare_forward(cache, rows=(1, 2), num_logits=1)


class SeparateDrafter:
    """A draft with its own cache and prefill.

    After full acceptance it lags by two tokens and takes both in its next forward. That has the weight traffic of one
    token, while a separate forward would cost as much as drafting another token.
    """

    def __init__(self, model: LanguageModel, sequence: TargetSequence) -> None:
        self._model = model
        self._sequence = sequence
        self._cache = new_cache(model, sequence.capacity, sequence.kv_dtype)

    def prepare(self, num_tokens: int, *, asks: bool) -> None:
        """See :class:`Drafter`."""
        _prepare(self._model, self._cache, self._sequence, num_tokens, asks=asks)

    def prefill(self) -> Asking[int]:
        """Processes the prompt."""
        yield Prefill(self._model, self._sequence.ids(self._sequence.prompt_ids), self._cache)
        return 1

    def propose(self, num_tokens: int, length: DraftLength) -> Asking[tuple[list[int], Tensor | None]]:
        """See :class:`Drafter`."""
        unseen = self._sequence.tokens[self._cache.slots :]
        return (yield from _draft(self._model, self._cache, self._sequence, unseen, num_tokens, length))

    def settle(self) -> None:
        """Keeps the slots of all accepted tokens but the newest, which no forward has taken yet."""
        self._cache.truncate(min(self._cache.slots, len(self._sequence.tokens) - 1))

    @property
    def kv_bytes(self) -> int:
        """Bytes in use in the draft's cache."""
        num_bytes: int = self._cache.bytes_used
        return num_bytes


class SharedDrafter:
    """A draft of the same model in the target's cache, with no prefill, no extra memory and an exact history."""

    def __init__(self, model: LanguageModel, sequence: TargetSequence) -> None:
        self._model = model
        self._sequence = sequence

    def prepare(self, num_tokens: int, *, asks: bool) -> None:
        """See :class:`Drafter`."""
        _prepare(self._model, self._sequence.cache, self._sequence, num_tokens, asks=asks)

    def prefill(self) -> Asking[int]:
        """Does nothing, because the target's prefill serves both."""
        yield from ()
        return 0

    def propose(self, num_tokens: int, length: DraftLength) -> Asking[tuple[list[int], Tensor | None]]:
        """See :class:`Drafter`; releases the slots it writes, which the verify pass overwrites."""
        cache = self._sequence.cache
        base = cache.slots
        pending = [self._sequence.pending]
        drafted, probs = yield from _draft(self._model, cache, self._sequence, pending, num_tokens, length)
        cache.truncate(base)
        return drafted, probs

    def settle(self) -> None:
        """Does nothing, because the draft keeps no state."""

    @property
    def kv_bytes(self) -> int:
        """Zero, because the draft has no cache of its own."""
        return 0
