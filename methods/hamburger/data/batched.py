"""Batched decoding that produces training data: many answers at once, each of which leaves its place when it ends.

Prompts of similar length begin together, as a *cohort* with a cache of its own. A step is one forward of the rows of
all cohorts: products over all rows, attention per cohort over the slots that it has. Whenever enough answers have
ended, the next cohort begins (continuous batching).

Letters in shapes: N rows, D hidden size, H query heads, KVH key/value heads, Dh head size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hambench.engine.linear import make_gated, make_linear
from hambench.engine.llama import rotate
from hambench.engine.norm import RMSNorm
from hambench.errors import NotFiniteError

ROWS = 256
"""Most answers at once. Weights are then read once for as many tokens, and products are tall enough for tile units."""
COHORT_ROWS = 32
"""Most prompts that begin together."""
CACHE_BYTES = 3 * 2**30
"""Bytes of all cohorts' caches up to which another one begins."""
_CHUNK = 128
"""Logits whose maximum is taken first: torch's argmax over a vocabulary costs a CPU twice the head's product."""


@torch.inference_mode()
def decode_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: frozenset[int],
    temperature: float = 0.0,
    rows: int = ROWS,
    cohort_rows: int = COHORT_ROWS,
    may_begin: Callable[[], bool] = lambda: True,
) -> Iterator[tuple[int, list[int]]]:
    """Yields ``(prompt index, response ids)`` as answers end: at an end-of-sequence id, which is included, or cut.

    Weights are re-ordered once for the device. transformers copies its cache and repeats its key heads at every step,
    and a CPU re-orders a dense bfloat16 weight at every call. Each of these costs more than the model.

    Args:
        model: A Llama whose weights are used as they are, without low-rank adapters.
        prompts: At least one token each. Neighbours begin together, so sort those that are close by their lengths.
        max_new_tokens: Most tokens per response.
        eos_ids: Ids that end a response.
        temperature: 0 is greedy.
        rows: Most answers at once.
        cohort_rows: Most prompts that begin together.
        may_begin: Asked before prompts begin, but for the first; once it returns False, only the answers that have
            begun are finished.

    Raises:
        NotFiniteError: If a row of logits has no finite maximum.
    """
    decoder = _Decoder(model, temperature)
    cohort_rows = min(cohort_rows, rows)
    cohorts: list[_Cohort] = []
    began = 0
    while True:
        fresh: list[_Cohort] = []
        while began < len(prompts):
            indices = range(began, min(began + cohort_rows, len(prompts)))
            chosen = [prompts[i] for i in indices]
            running = [*cohorts, *fresh]
            busy = sum(cohort.num_rows for cohort in running)
            slots = max(map(len, chosen)) + max_new_tokens
            needed = sum(cohort.nbytes for cohort in running) + decoder.cache_bytes(len(chosen), slots)
            if running and (busy + len(chosen) > rows or needed > CACHE_BYTES):
                break
            if began and not may_begin():
                began = len(prompts)
                break
            fresh.append(decoder.begin(chosen, indices, slots))
            began = indices.stop
        if cohorts:
            decoder.step(cohorts)
        cohorts += fresh
        if not cohorts:
            return
        for cohort in cohorts:
            yield from cohort.leave(eos_ids, max_new_tokens)
        cohorts = [cohort for cohort in cohorts if cohort.num_rows]


class _Cohort:
    """Answers that began together, with the keys and values of their left-padded prompts.

    Args:
        indices: Whose answers they are.
        keys: Room for the keys ``[layers, N, KVH, capacity, Dh]``.
        values: Room for the values.
        padding: Slots before each prompt.
        slots: Slots of the padded prompts.
    """

    def __init__(
        self, indices: Sequence[int], keys: Tensor, values: Tensor, padding: Sequence[int], slots: int
    ) -> None:
        self.indices, self.keys, self.values = list(indices), keys, values
        self.answers: list[list[int]] = [[] for _ in indices]
        self.padding, self.slots = torch.tensor(padding, device=keys.device), slots
        self.mask: Tensor | None = None
        if any(padding):
            is_hidden = torch.arange(keys.shape[3], device=keys.device) < self.padding[:, None]
            mask = torch.zeros(is_hidden.shape, dtype=keys.dtype, device=keys.device)
            self.mask = mask.masked_fill_(is_hidden, -math.inf)[:, None, None]

    @property
    def num_rows(self) -> int:
        """Answers that have not ended."""
        return len(self.indices)

    @property
    def nbytes(self) -> int:
        """Bytes of the cache."""
        return self.keys.nbytes + self.values.nbytes

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Stores a step's keys and values ``[N, KVH, Dh]``; returns what its queries ``[N, H, Dh]`` mix."""
        end, num_rows = self.slots + 1, self.num_rows
        keys, values = self.keys[layer, :num_rows, :, :end], self.values[layer, :num_rows, :, :end]
        keys[:, :, -1], values[:, :, -1] = k, v
        mask = None if self.mask is None else self.mask[:num_rows, ..., :end]
        is_grouped = q.shape[1] != k.shape[1]
        mixed = F.scaled_dot_product_attention(
            q[:, :, None], keys, values, attn_mask=mask, enable_gqa=is_grouped
        )
        return mixed[:, :, 0]

    def leave(self, eos_ids: frozenset[int], max_new_tokens: int) -> Iterator[tuple[int, list[int]]]:
        """Yields the answers that have ended; the last ones take their places."""
        for place in reversed(range(self.num_rows)):
            answer = self.answers[place]
            if answer[-1] not in eos_ids and len(answer) < max_new_tokens:
                continue
            yield self.indices[place], answer
            last = self.num_rows - 1
            self.indices[place], self.answers[place] = self.indices[last], self.answers[last]
            del self.indices[last], self.answers[last]
            if place < last:
                for cache in (self.keys, self.values):
                    cache[:, place, :, : self.slots] = cache[:, last, :, : self.slots]
                self.padding[place] = self.padding[last]
                if self.mask is not None:
                    self.mask[place] = self.mask[last]
        if 0 < self.num_rows <= self.keys.shape[1] // 2:
            # give back the room of those that have left
            self.keys, self.values = (cache[:, : self.num_rows].clone() for cache in (self.keys, self.values))
        self.padding = self.padding[: self.num_rows]


class _Layer:
    """One layer of a transformers Llama, with weights in the form that the device reads fastest."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        weight = torch.cat([linear.weight.detach() for linear in projections])
        is_biased = projections[0].bias is not None
        bias = torch.cat([linear.bias.detach() for linear in projections]) if is_biased else None
        self.qkv = make_linear(weight, bias)
        self.out, self.down = (
            make_linear(linear.weight.detach(), None if linear.bias is None else linear.bias.detach())
            for linear in (attention.o_proj, mlp.down_proj)
        )
        self.gate_up = make_gated(mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach())
        self.input_norm, self.mlp_norm = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        has_head_norms = hasattr(attention, "q_norm")
        self.head_norms = (_norm(attention.q_norm), _norm(attention.k_norm)) if has_head_norms else None


Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""``(layer, q [N, H, Dh], k [N, KVH, Dh], v)`` to the mixed values ``[N, H, Dh]``."""


class _Decoder:
    """The forward pass over the rows of several cohorts, and the choice of tokens."""

    def __init__(self, model: Any, temperature: float) -> None:
        config = model.config
        self.model, self.temperature, self.dtype = model.model, temperature, model.dtype
        self.device = model.device
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.layers = [_Layer(layer) for layer in self.model.layers]
        self.norm = _norm(self.model.norm)
        self.head = make_linear(model.get_output_embeddings().weight.detach())

    def cache_bytes(self, num_rows: int, slots: int) -> int:
        """Returns the bytes of a cohort's cache."""
        per_slot: int = 2 * len(self.layers) * self.num_kv_heads * self.head_dim * self.dtype.itemsize
        return num_rows * slots * per_slot

    def begin(self, prompts: Sequence[Sequence[int]], indices: Sequence[int], capacity: int) -> _Cohort:
        """Reads prompts end to end, and chooses the first token of each answer."""
        lengths = [len(prompt) for prompt in prompts]
        width = max(lengths)
        size = (len(self.layers), len(prompts), self.num_kv_heads, capacity, self.head_dim)
        keys, values = (torch.empty(size, dtype=self.dtype, device=self.device) for _ in range(2))
        padding = [width - length for length in lengths]
        for place, unused in enumerate(padding):
            # nobody sees the slots before a prompt, but what is not a number would go through a weight of zero
            keys[:, place, :, :unused] = values[:, place, :, :unused] = 0
        cohort = _Cohort(indices, keys, values, padding, width)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            mixed = []
            parts = zip(*(torch.split(each, lengths) for each in (q, k, v)), strict=True)
            for place, part in enumerate(parts):
                own_q, own_k, own_v = (each.transpose(0, 1)[None] for each in part)
                keys[layer, place, :, padding[place] : width] = own_k[0]
                values[layer, place, :, padding[place] : width] = own_v[0]
                heads = F.scaled_dot_product_attention(
                    own_q, own_k, own_v, is_causal=True, enable_gqa=self.num_heads != self.num_kv_heads
                )
                mixed.append(heads[0].transpose(0, 1))
            return torch.cat(mixed)

        ids = torch.tensor([token for prompt in prompts for token in prompt], device=self.device)
        positions = torch.cat([torch.arange(length, device=self.device) for length in lengths])
        hidden = self._forward(ids, positions, attend)
        self._choose(hidden[torch.tensor(lengths, device=self.device).cumsum(0) - 1], [cohort])
        return cohort

    def step(self, cohorts: Sequence[_Cohort]) -> None:
        """Reads the last token of each answer, and chooses the next one."""
        counts = [cohort.num_rows for cohort in cohorts]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            parts = zip(cohorts, *(torch.split(each, counts) for each in (q, k, v)), strict=True)
            mixed = [cohort.attend(layer, *part) for cohort, *part in parts]
            return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

        tokens = [answer[-1] for cohort in cohorts for answer in cohort.answers]
        positions = torch.cat([cohort.slots - cohort.padding for cohort in cohorts])
        hidden = self._forward(torch.tensor(tokens, device=self.device), positions, attend)
        for cohort in cohorts:
            cohort.slots += 1
        self._choose(hidden, cohorts)

    def _forward(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Runs rows ``[N]``; returns their hidden states ``[N, D]`` before the final norm."""
        stream: Tensor = self.model.embed_tokens(ids)
        cos, sin = (angles[0, :, None] for angles in self.model.rotary_emb(stream[None], positions[None]))
        sizes = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        for index, layer in enumerate(self.layers):
            heads = layer.qkv(layer.input_norm(stream)).view(len(ids), -1, self.head_dim)
            q, k, v = torch.split(heads, sizes, dim=1)
            if layer.head_norms is None:
                q, k = torch.split(rotate(heads[:, : -self.num_kv_heads], cos, sin), sizes[:2], dim=1)
            else:
                q, k = (rotate(n(part), cos, sin) for n, part in zip(layer.head_norms, (q, k), strict=True))
            stream = layer.out.add_to(stream, attend(index, q, k, v).flatten(1))
            stream = layer.down.add_to(stream, layer.gate_up(layer.mlp_norm(stream)))
        return stream

    def _choose(self, hidden: Tensor, cohorts: Sequence[_Cohort]) -> None:
        """Appends to each answer the token that follows its hidden state ``[N, D]``."""
        logits = self.head(self.norm(hidden))
        chosen = iter(_choices(logits, self.temperature).tolist())
        for cohort in cohorts:
            for answer in cohort.answers:
                answer.append(next(chosen))


def _choices(logits: Tensor, temperature: float) -> Tensor:
    """Returns the most probable of each row ``[N, V]``, the first of equals; or a sample, at a temperature.

    Raises:
        NotFiniteError: If a row has no finite maximum.
    """
    size = logits.shape[1]
    if size % _CHUNK:
        logits = F.pad(logits, (0, -size % _CHUNK), value=-math.inf)
    chunks = logits.view(len(logits), -1, _CHUNK)
    largest = chunks.amax(-1)
    maxima = largest.amax(-1)
    if not bool(maxima.isfinite().all()):
        raise NotFiniteError
    every = torch.arange(len(logits), device=logits.device)
    if not temperature:
        chunk = largest.argmax(-1)
        return chunk * _CHUNK + chunks[every, chunk].argmax(-1)
    # a sample: of chunks first, then within the chunk. Sums are float64, so that rounding moves no boundary
    weights = ((chunks.float() - maxima[:, None, None].float()) / temperature).exp_()
    ends = weights.sum(-1).double().cumsum(-1)
    at = torch.rand(len(logits), 1, dtype=torch.float64, device=logits.device) * ends[:, -1:]
    chunk = torch.searchsorted(ends, at, right=True).clamp_(max=ends.shape[1] - 1)
    own = weights[every, chunk[:, 0]].double()
    before = torch.where(chunk > 0, ends.gather(1, (chunk - 1).clamp_(min=0)), 0.0)
    within = torch.searchsorted(own.cumsum(-1), at - before, right=True)
    # behind the last possible one by rounding alone
    possible = _CHUNK - 1 - (own > 0).flip(-1).to(torch.uint8).argmax(-1, keepdim=True)
    return (chunk * _CHUNK + torch.minimum(within, possible))[:, 0]


def _norm(norm: Any) -> RMSNorm:
    return RMSNorm(norm.weight.detach(), norm.variance_epsilon)
