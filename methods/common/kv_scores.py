"""Scores of cached slots for eviction: the higher, the more worth keeping. One function per published rule.

Letters in shapes: L layers, KVH key/value heads, H query heads, S slots in use, Dh head size, W window. Every function
returns ``[L, KVH, S]`` in float32. The rules are those of kvpress, under the same names.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hambench.errors import HambenchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hambench.engine.kvcache import KVCache
    from hambench.engine.language_model import LanguageModel

NUM_SINKS = 4
"""First slots that ``streaming`` always keeps."""
WINDOW = 64
"""Newest rows whose attention ``snapkv`` reads; their own slots stay."""
POOL = 5
"""Width of ``snapkv``'s average over neighbouring slots."""
RANDOM_SEED = 0


def num_kept(num_slots: int, ratio: float) -> int:
    """Number of slots that stay of ``num_slots`` when the share ``ratio`` is evicted: rounded down, at least one.

    The tolerance keeps 15 of 150 at a ratio of 0.9, where floating point has 14.999….
    """
    return max(1, math.floor(num_slots * (1 - ratio) + 1e-6))


def top_slots(scores: Tensor, num_slots: int) -> Tensor:
    """Slots with the ``num_slots`` highest scores of each head, increasing; of equal ones the newest.

    Args:
        scores: ``[L, KVH, S]``.
        num_slots: Slots to keep.
    """
    # a stable sort keeps the order of equals, so the newest come first once the slots are reversed
    order = scores.flip(-1).sort(dim=-1, descending=True, stable=True).indices[..., :num_slots]
    return (scores.shape[-1] - 1 - order).sort(dim=-1).values


def streaming(cache: KVCache) -> Tensor:
    """The first :data:`NUM_SINKS` slots and the newest ones (StreamingLLM, arXiv 2309.17453)."""
    keys, _ = cache.in_use
    num_slots = keys.shape[2]
    age_rank = torch.arange(num_slots, dtype=torch.float32, device=keys.device)
    age_rank[:NUM_SINKS] = num_slots
    return age_rank.expand(*keys.shape[:2], num_slots)


def random(cache: KVCache) -> Tensor:
    """Uniform noise with a fixed seed: the control for every rule that claims to know better."""
    keys, _ = cache.in_use
    generator = torch.Generator().manual_seed(RANDOM_SEED + cache.next_position)
    return torch.rand(keys.shape[:3], generator=generator).to(keys.device)


def knorm(cache: KVCache) -> Tensor:
    """Negative L2 norm of the key: keys with small norms attract attention (arXiv 2406.11430)."""
    keys, _ = cache.in_use
    norms: Tensor = keys.float().norm(dim=-1)
    return -norms


def keydiff(cache: KVCache) -> Tensor:
    """Negative cosine similarity of the key to the mean direction of all keys (KeyDiff, arXiv 2504.15364)."""
    keys, _ = cache.in_use
    keys = keys.float()
    anchor = F.normalize(keys, dim=-1).mean(dim=2, keepdim=True)
    return -F.cosine_similarity(keys, anchor, dim=-1)


def snapkv(cache: KVCache, queries: Tensor) -> Tensor:
    """Attention of the newest rows to each slot, averaged over rows, neighbours and heads (SnapKV, arXiv 2404.14469).

    Args:
        cache: Keys, those of the newest W rows included.
        queries: Rotated queries ``[L, H, W, Dh]`` of the newest W < S rows, from :func:`newest_queries`.
    """
    keys, _ = cache.in_use
    num_layers, num_kv_heads, num_slots, head_dim = keys.shape
    window = queries.shape[2]
    shared = queries.shape[1] // num_kv_heads
    scores = torch.empty(num_layers, num_kv_heads, num_slots, device=keys.device)
    hidden = torch.full((window, window), -math.inf, device=keys.device).triu_(1)
    for layer in range(num_layers):  # one layer at a time bounds the memory of the attention weights
        rows = queries[layer].float().view(num_kv_heads, shared * window, head_dim)
        logits = (rows @ keys[layer].float().transpose(1, 2)) * head_dim**-0.5
        logits = logits.view(num_kv_heads, shared, window, num_slots)
        logits[..., -window:] += hidden
        weights = logits.softmax(-1)[..., :-window].mean(dim=2)
        pooled = F.avg_pool1d(weights, POOL, stride=1, padding=POOL // 2).mean(dim=1)
        scores[layer, :, :-window] = pooled
    scores[..., -window:] = scores[..., :-window].max() + 1
    return scores


def newest_queries(model: LanguageModel, cache: KVCache, tokens: Sequence[int]) -> Tensor:
    """Rotated queries ``[L, H, W, Dh]`` of the newest W tokens, whose slots the cache ends with and keeps unchanged.

    The rows run through the layers once more, because a prefill does not return the inputs of its layers.

    Args:
        model: A model on the engine's own layers.
        cache: Slots of the sequence; its newest W are those of ``tokens``.
        tokens: The newest W tokens.

    Raises:
        HambenchError: If the model runs on an engine that does not show its layers.
    """
    llama = model.reference
    if llama is None:
        raise HambenchError(
            "press=snapkv reads queries of the engine's own layers, which this model does not have"
        )
    window, num_layers = len(tokens), model.shape.num_layers
    rows = cache.rows_in_use
    newest = [part[:, :, -window:].clone() for part in rows]
    ids = torch.tensor(tokens, dtype=torch.int64, device=model.device)
    first = cache.next_position - window
    cache.truncate(cache.slots - window)
    out = model.forward(ids, cache, num_logits=0, feature_layers=tuple(range(num_layers - 1)))
    for part, saved in zip(rows, newest, strict=True):
        part[:, :, -window:] = saved  # another number of rows may round otherwise
    inputs = [model.embed(ids), *out.features]
    positions = torch.arange(first, first + window, device=model.device)
    return torch.stack([llama.stack.queries(layer, inputs[layer], positions) for layer in range(num_layers)])
