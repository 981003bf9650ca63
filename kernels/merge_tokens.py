"""HAMburger's compositional embedder: merges the tokens of a macro-step into one input vector."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from hambench.kernels import MAX_ROWS
from hambench.kernels._args import FLOATS, check_flag, check_tensor, is_done, output
from hambench.kernels._dispatch import Impl, use_fused
from hambench.kernels.results import MergeWeights, Residual


def merge_tokens(
    ids: Tensor,
    count: Tensor,
    embedding: Tensor,
    weights: MergeWeights,
    *,
    num_heads: int,
    residual: Residual = "mean",
    out: Tensor | None = None,
    done: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Merges the first `count` tokens of `ids` into one vector [1, D].

    The mean embedding is the query of a cross-attention over the embeddings with their positions; the projected
    result is added to the residual. One token passes through unchanged.

    Args:
        ids: Token ids [S], int64. Ids past `count` must be valid too: they are read, then masked.
        count: Number of tokens to merge [1], int32, 1 to S, on the device.
        embedding: Table [V, D].
        weights: Weights in the dtype of `embedding`.
        num_heads: Attention heads; must divide D.
        residual: What to add the result to: the tokens' mean embedding, or the last token's.
        out: Where to write, [1, D].
        done: Device flag; when set, nothing is written. Needs `out`.
        impl: See :mod:`hambench.kernels`.

    Raises:
        ValueError: If a shape, dtype, device or stride does not fit, or `impl="fused"` can't run here.
    """
    check_tensor("embedding", embedding, [None, None], dtypes=FLOATS)
    hidden, device, dtypes = embedding.shape[1], embedding.device, (embedding.dtype,)
    check_tensor("ids", ids, [None], dtypes=(torch.int64,), device=device)
    steps = ids.shape[0]
    check_flag("count", count, device)
    check_tensor("weights.positions", weights.positions, [steps, None], dtypes=dtypes, device=device)
    width = weights.positions.shape[1]
    check_tensor("weights.wq", weights.wq, [hidden, hidden], dtypes=dtypes, device=device)
    check_tensor("weights.bq", weights.bq, [hidden], dtypes=dtypes, device=device)
    check_tensor("weights.wkv", weights.wkv, [2 * hidden, hidden + width], dtypes=dtypes, device=device)
    check_tensor("weights.bkv", weights.bkv, [2 * hidden], dtypes=dtypes, device=device)
    check_tensor("weights.wo", weights.wo, [hidden, hidden], dtypes=dtypes, device=device)
    check_tensor("weights.bo", weights.bo, [hidden], dtypes=dtypes, device=device)
    if num_heads < 1 or hidden % num_heads:
        raise ValueError(f"num_heads must divide the hidden size {hidden}, got {num_heads}")
    if residual not in get_args(Residual):
        raise ValueError(f"residual must be 'mean' or 'last', got {residual!r}")
    check_flag("done", done, device)
    out = output(out, [1, hidden], like=embedding, done=done)
    too_many = f"at most {MAX_ROWS} ids, got {steps}" if steps > MAX_ROWS else None
    if use_fused("merge_tokens", impl, embedding, unsupported=too_many):
        from hambench.kernels.fused.merge_tokens import launch

        launch(ids, count, embedding, weights, num_heads, residual, out, done)
    elif not is_done(done):
        out.copy_(reference(embedding[ids[: int(count.item())]], weights, num_heads, residual))
    return out


def reference(embeddings: Tensor, weights: MergeWeights, num_heads: int, residual: Residual) -> Tensor:
    """Computes the definition in float32 for n embeddings [n, D]; returns [1, D]."""
    embeddings = embeddings.float()
    num_tokens, hidden = embeddings.shape
    if num_tokens == 1:
        return embeddings
    positions, wq, bq, wkv, bkv, wo, bo = (weight.float() for weight in weights)
    mean = embeddings.mean(dim=0, keepdim=True)
    query = (mean @ wq.T + bq).view(num_heads, 1, -1)
    keyed = torch.cat([embeddings, positions[:num_tokens]], dim=1)
    keys, values = (keyed @ wkv.T + bkv).view(num_tokens, 2, num_heads, -1).permute(1, 2, 0, 3)
    scores = (query * keys).sum(-1) * query.shape[-1] ** -0.5
    attended = (scores.softmax(-1)[..., None] * values).sum(1).reshape(1, hidden)
    start = mean if residual == "mean" else embeddings[-1:]
    merged: Tensor = start + attended @ wo.T + bo
    return merged
