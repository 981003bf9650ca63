"""HAMburger's stop head and the bookkeeping of a micro-step, all on the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from hambench.kernels._args import FLOATS, check_tensor
from hambench.kernels._dispatch import Impl, use_fused
from hambench.kernels.results import MicroState, StopWeights


def stop_head(
    hidden: Tensor,
    token: Tensor,
    weights: StopWeights | None,
    state: MicroState,
    *,
    confidence: Tensor,
    impl: Impl = "auto",
) -> None:
    """Emits `token` and decides whether the macro-step continues; writes both into `state`.

    Does nothing if `state.done` is set. Otherwise, with n for `state.num_tokens`: `tokens[n] = token`,
    `continue_probs[n] = 1 - sigmoid(mlp(hidden))`, and n grows by one. It sets `done = 1` if that probability is below
    `confidence` or `tokens` is full. The token that triggers the stop is emitted too.

    Args:
        hidden: [1, D], the state that the LM head read.
        token: Id to emit [1], int64.
        weights: Weights in the dtype of `hidden`, or `None` for the macro-step's last token. Then there is nothing to
            decide: the op emits the token and sets `done`, but reads no weight and writes no probability.
        state: The state to update in place.
        confidence: Least P(continue) to continue [1], float32, on the device so that a captured graph serves any value.
        impl: See :mod:`hambench.kernels`.

    Raises:
        ValueError: If a shape, dtype, device or stride does not fit, or `impl="fused"` can't run here.
    """
    check_tensor("hidden", hidden, [1, None], dtypes=FLOATS)
    device = hidden.device
    if weights is not None:
        _check_weights(weights, hidden)
    check_tensor("token", token, [1], dtypes=(torch.int64,), device=device)
    check_tensor("confidence", confidence, [1], dtypes=(torch.float32,), device=device)
    check_tensor("state.tokens", state.tokens, [None], dtypes=(torch.int64,), device=device)
    limit = state.tokens.shape[0]
    check_tensor(
        "state.continue_probs", state.continue_probs, [limit], dtypes=(torch.float32,), device=device
    )
    check_tensor("state.num_tokens", state.num_tokens, [1], dtypes=(torch.int32,), device=device)
    check_tensor("state.done", state.done, [1], dtypes=(torch.int32,), device=device)
    if use_fused("stop_head", impl, hidden):
        from hambench.kernels.fused.stop_head import launch

        launch(hidden, token, weights, state, confidence)
    elif not state.done.item():
        index = int(state.num_tokens.item())
        state.tokens[index] = token[0]
        stop = index + 1 == limit
        if weights is None:
            stop = True
        else:
            probability = 1 - torch.sigmoid(reference(hidden, weights))
            state.continue_probs[index] = probability
            stop = stop or bool(probability < confidence)
        state.num_tokens.add_(1)
        state.done.fill_(int(stop))


def reference(hidden: Tensor, weights: StopWeights) -> Tensor:
    """Computes the stop logit, a float32 scalar tensor."""
    w1, b1, w2, b2, w3, b3 = (weight.float() for weight in weights)
    inner = silu(hidden.float() @ w1.T + b1)
    return (silu(inner @ w2.T + b2) @ w3.T + b3).reshape(())


def _check_weights(weights: StopWeights, hidden: Tensor) -> None:
    width = weights.w1.shape[0]
    shapes: dict[str, list[int | None]] = {
        "w1": [None, hidden.shape[1]],
        "b1": [width],
        "w2": [width, width],
        "b2": [width],
        "w3": [1, width],
        "b3": [1],
    }
    for name, shape in shapes.items():
        weight = getattr(weights, name)
        check_tensor(f"weights.{name}", weight, shape, dtypes=(hidden.dtype,), device=hidden.device)
