"""Batched decoding that produces training data: many answers at once over one static cache.

Letters in shapes: B sequences, T slots so far, D hidden size, KVH key/value heads, Dh head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hambench.engine.linear import make_gated, make_linear
from hambench.engine.llama import rotate
from hambench.errors import NotFiniteError


@torch.inference_mode()
def decode_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: frozenset[int],
    temperature: float = 0.0,
    stop_when_finished: float = 0.95,
) -> list[list[int]]:
    """Decodes responses to B prompts, each cut after its first end-of-sequence id.

    It allocates the cache once, lets attention read it in place, and re-orders linear weights once. transformers copies
    its cache and repeats its key heads at every step, and a CPU re-orders a dense bfloat16 weight at every call. Each
    of these costs more than the model.

    Raises:
        NotFiniteError: If a row has no finite maximum.

    Args:
        model: A Llama whose weights are used as they are, without low-rank adapters.
        prompts: Left-padded to one width.
        max_new_tokens: Most tokens per response.
        eos_ids: Ids that end a response.
        temperature: 0 is greedy.
        stop_when_finished: Share of finished responses at which the batch ends; the others are cut there.
    """
    device, width = model.device, max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    padding = torch.tensor([width - len(p) for p in prompts], device=device)
    state = _State(model, len(prompts), width + max_new_tokens, padding)
    hidden = state.forward(ids)
    ends = torch.tensor(sorted(eos_ids), device=device)
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    columns = []
    for number in range(max_new_tokens):
        logits = state.head(hidden)
        if not bool(logits.amax(dim=-1).isfinite().all()):
            raise NotFiniteError
        if temperature:
            tokens = torch.multinomial(torch.softmax(logits.float() / temperature, -1), 1)[:, 0]
        else:
            tokens = logits.argmax(-1)
        columns.append(tokens)
        finished |= torch.isin(tokens, ends)
        if finished.float().mean() >= stop_when_finished or number == max_new_tokens - 1:
            break
        hidden = state.forward(tokens[:, None])
    return [_through_eos(row, eos_ids) for row in torch.stack(columns, 1).tolist()]


class _Layer:
    """One layer of a transformers Llama, with weights in the form that the device reads fastest."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.q, self.k, self.v, self.out, self.down = (
            make_linear(linear.weight.detach(), linear.bias)
            for linear in (
                attention.q_proj,
                attention.k_proj,
                attention.v_proj,
                attention.o_proj,
                mlp.down_proj,
            )
        )
        self.gate_up = make_gated(mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach())
        self.input_norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm


class _State:
    """The cache of a batch and the forward pass over it."""

    def __init__(self, model: Any, num: int, capacity: int, padding: Tensor) -> None:
        config = model.config
        self.decoder, self.padding, self.slots = model.model, padding, 0
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        size = (config.num_hidden_layers, num, config.num_key_value_heads, capacity, self.head_dim)
        self.keys = torch.zeros(size, dtype=model.dtype, device=model.device)
        self.values = torch.zeros_like(self.keys)
        self.layers = [_Layer(layer) for layer in self.decoder.layers]
        self.head = make_linear(model.get_output_embeddings().weight.detach())

    def forward(self, ids: Tensor) -> Tensor:
        """Runs ``[B, T]`` new ids; returns the last row's normed hidden state ``[B, D]``."""
        stream = self.decoder.embed_tokens(ids)
        num_rows, past = ids.shape[1], self.slots
        slots = torch.arange(past, past + num_rows, device=ids.device)
        positions = (slots[None] - self.padding[:, None]).clamp(min=0)
        cos, sin = self.decoder.rotary_emb(stream, positions)
        every = torch.arange(past + num_rows, device=ids.device)
        seen = (every[None, None] <= slots[None, :, None]) & (
            every[None, None] >= self.padding[:, None, None]
        )
        # let a padding row see itself, else its softmax would have no entries
        seen |= every[None, None] == slots[None, :, None]
        mask = torch.zeros(seen.shape, dtype=stream.dtype, device=ids.device).masked_fill_(
            ~seen, float("-inf")
        )
        for index, layer in enumerate(self.layers):
            stream = stream + self._attend(index, layer, stream, cos[:, None], sin[:, None], mask[:, None])
            stream = stream + layer.down(layer.gate_up(layer.mlp_norm(stream)))
        self.slots += num_rows
        hidden: Tensor = self.decoder.norm(stream[:, -1])
        return hidden

    def _attend(
        self, index: int, layer: _Layer, stream: Tensor, cos: Tensor, sin: Tensor, mask: Tensor
    ) -> Tensor:
        rows = layer.input_norm(stream)
        split = (*rows.shape[:2], -1, self.head_dim)
        q, k, v = (p(rows).view(split).transpose(1, 2) for p in (layer.q, layer.k, layer.v))
        end = self.slots + rows.shape[1]
        self.keys[index, :, :, self.slots : end] = rotate(k, cos, sin)
        self.values[index, :, :, self.slots : end] = v
        mixed = F.scaled_dot_product_attention(
            rotate(q, cos, sin),
            self.keys[index, :, :, :end],
            self.values[index, :, :, :end],
            attn_mask=mask,
            enable_gqa=True,
        )
        return layer.out(mixed.transpose(1, 2).flatten(-2))


def _through_eos(ids: list[int], eos_ids: frozenset[int]) -> list[int]:
    for end, token in enumerate(ids):
        if token in eos_ids:
            return ids[: end + 1]
    return ids
