"""The target's side of one sequence: tokens, cache and random generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hambench.decoding import DecodingMethod, MethodConfig, SamplingParams
from hambench.engine.kvcache import Int8KVCache
from hambench.engine.requests.forwards import Forward, Greedy, Prefill
from hambench.engine.warmup import made_up_steps
from hambench.errors import ContextOverflowError, HambenchError, ModelError
from hambench.methods.common.sampling import choose, generator_for

if TYPE_CHECKING:
    from hambench.decoding import Asking, Target
    from hambench.engine.kvcache import KVCache
    from hambench.engine.language_model import LanguageModel


class TargetSequence:
    """The tokens so far and the target's cache, which lags by one token, the *pending* one.

    Args:
        target: The loaded target model.
        prompt_ids: The prompt.
        params: Limit and sampling.
        spare_slots: Slots beyond prompt and limit that a method writes and rolls back.
        kv_dtype: One of :data:`~hambench.methods.common.facts.KV_DTYPES`.

    Raises:
        ContextOverflowError: If the prompt and ``max_new_tokens`` don't fit the context.
        HambenchError: If the prompt has an id that the model does not have.
    """

    def __init__(
        self,
        target: Target,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        spare_slots: int = 0,
        kv_dtype: str = "model",
    ) -> None:
        check_request(target, prompt_ids, params.max_new_tokens)
        self.model: LanguageModel = target.llama
        self.device = target.device
        self.params = params
        self.prompt_ids = list(prompt_ids)
        self.tokens = list(prompt_ids)
        self.capacity = len(prompt_ids) + params.max_new_tokens + spare_slots
        self.kv_dtype = kv_dtype
        self.cache = new_cache(self.model, self.capacity, kv_dtype)
        self.generator = generator_for(params, target.device)
        self.most_slots = 0
        """Slots of the cache in use during the last verification, rejected drafts included."""

    @property
    def pending(self) -> int:
        """The newest token, whose key and value are not in the cache yet."""
        return self.tokens[-1]

    @property
    def num_emitted(self) -> int:
        """Number of tokens after the prompt."""
        return len(self.tokens) - len(self.prompt_ids)

    @property
    def num_left(self) -> int:
        """Number of tokens left within the limit."""
        return self.params.max_new_tokens - self.num_emitted

    def ids(self, tokens: Sequence[int]) -> Tensor:
        """Returns token ids ``[T]`` on the model's device."""
        return torch.tensor(tokens, dtype=torch.int64, device=self.device)

    def prefill(self) -> Asking[int]:
        """Processes the prompt and appends the first token."""
        out = yield Prefill(self.model, self.ids(self.prompt_ids), self.cache)
        self.tokens.append(choose(out.logits[-1], self.params, self.generator))
        return self.pending

    def advance(self) -> Asking[int]:
        """Stores the pending token in a slot and appends the next token."""
        if self.generator is None:
            self.tokens += yield self.greedy([self.pending])
        else:
            out = yield self.forward([self.pending], num_logits=1)
            self.tokens.append(choose(out.logits[-1], self.params, self.generator))
        return self.pending

    def prepare(self, rows: Sequence[int], *, logits: bool = False) -> None:
        """Does the untimed preparations for forwards of these lengths, once.

        Args:
            rows: Numbers of rows.
            logits: Whether greedy verification reads logits too.
        """
        if self.generator is None and not logits:
            self.model.prepare_greedy(self.cache, rows=rows)
        else:
            self.model.prepare_forward(self.cache, rows=rows)

    def greedy(self, tokens: Sequence[int]) -> Greedy:
        """Returns the request for the greedy next token after each of ``tokens``, which get slots."""
        return Greedy(self.model, tokens, self.cache, num_tokens=len(tokens))

    def forward(self, tokens: Sequence[int], *, num_logits: int) -> Forward:
        """Returns the request for a forward over ``tokens``, which get slots; it gives logits ``[num_logits, V]``."""
        return Forward(self.model, self.ids(tokens), self.cache, num_logits=num_logits)


def new_cache(model: LanguageModel, capacity: int, kv_dtype: str) -> KVCache:
    """Returns an empty cache of ``capacity`` slots that stores keys and values as ``kv_dtype`` says.

    Raises:
        ModelError: If the model's engine has caches of its own type only.
    """
    if kv_dtype == "model":
        cache: KVCache = model.new_cache(capacity)
        return cache
    if model.reference is None:
        raise ModelError(
            f"kv_dtype={kv_dtype} needs the engine's own layers, which this model does not run on"
        )
    return model.reference.stack.new_cache(capacity, kind=Int8KVCache)


def kv_bytes_per_position(model: LanguageModel, kv_dtype: str) -> int:
    """Returns the bytes of one position in a cache of :func:`new_cache`."""
    return new_cache(model, 1, kv_dtype).bytes_per_slot


def decode_a_little(method: DecodingMethod, *, num_steps: int = 4) -> None:
    """Decodes a few tokens of a made-up prompt, for a method's ``warmup``."""
    with torch.inference_mode():
        params = SamplingParams(max_new_tokens=8 * num_steps)
        for _ in made_up_steps(method, [1] * 8, params, num_steps=num_steps):
            pass


def refuse(config: MethodConfig, params: SamplingParams) -> None:
    """Refuses a setting that can't decode this way.

    Raises:
        HambenchError: With the reason.
    """
    if reason := config.unavailable_when(params):
        raise HambenchError(reason)


def check_request(target: Target, prompt_ids: Sequence[int], max_new_tokens: int) -> None:
    """Checks that the model can answer a request.

    Raises:
        ContextOverflowError: If prompt and new tokens exceed the model's context.
        HambenchError: If the prompt has an id that the model does not have. On a GPU, reading it would crash the
            process or, worse, succeed.
    """
    num_prompt_tokens, num_ids = len(prompt_ids), target.llama.shape.vocab_size
    unknown = next((token for token in prompt_ids if not 0 <= token < num_ids), None)
    if unknown is not None:
        raise HambenchError(
            f"prompt ids must be in 0..{num_ids - 1} for {target.name}, got {unknown}: its tokenizer has "
            "tokens that its embedding lacks"
        )
    if num_prompt_tokens + max_new_tokens > target.context_length:
        raise ContextOverflowError(
            f"a prompt of {num_prompt_tokens} tokens and max_new_tokens = {max_new_tokens} exceed the context of "
            f"{target.name} ({target.context_length} tokens): shorten the prompt or lower max_new_tokens"
        )
