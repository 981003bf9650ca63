from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, draw

from hambench.kernels.results import MicroState, StopWeights
from hambench.kernels.stop_head import reference, stop_head


def draw_weights(hidden: int, width: int, dtype: torch.dtype, device: torch.device) -> StopWeights:
    shapes = ((width, hidden), (width,), (width, width), (width,), (1, width), (1,))
    return StopWeights(*(draw(*s, dtype=dtype, device=device, spread=s[-1] ** -0.5) for s in shapes))


def tensor(value: float | int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor([value], dtype=dtype, device=device)


@pytest.mark.parametrize(("hidden_size", "width"), [(576, 36), (64, 40)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_stop_head_gives_the_probability_of_going_on(hidden_size, width, dtype, device):
    hidden = draw(1, hidden_size, dtype=dtype, device=device)
    weights = draw_weights(hidden_size, width, dtype, device)
    state = MicroState.empty(4, device)
    token = tensor(42, torch.int64, device)
    stop_head(hidden, token, weights, state, confidence=tensor(0, torch.float32, device), impl="fused")
    want = 1 - torch.sigmoid(reference(hidden, weights))
    # everything after the loads is float32, whatever the weights are
    assert (state.continue_probs[0] - want).abs() <= 2e-6
    assert state.tokens[0] == 42
    assert state.num_tokens.item() == 1


@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize(
    ("logit", "confidence", "done"),
    [(-3.0, 0.5, 0), (3.0, 0.5, 1), (0.0, 0.5, 0), (-3.0, 0.99, 1), (-3.0, 1.5, 1)],
    ids=["goes-on", "stops", "exactly-enough", "not-sure-enough", "one-token-always"],
)
def test_stop_head_stops_where_going_on_is_less_likely_than_asked(impl, logit, confidence, done, device):
    weights = StopWeights(*(torch.zeros(s, device=device) for s in ((8, 64), 8, (8, 8), 8, (1, 8), 1)))
    weights.b3.fill_(logit)
    state = MicroState.empty(4, device)
    args = (torch.zeros(1, 64, device=device), tensor(5, torch.int64, device), weights, state)
    stop_head(*args, confidence=tensor(confidence, torch.float32, device), impl=impl)
    assert state.done.item() == done
    assert state.num_tokens.item() == 1, "the token that trips the stop is emitted"
    stop_head(*args, confidence=tensor(confidence, torch.float32, device), impl=impl)
    assert state.num_tokens.item() == 2 - done, "nothing is emitted once done"


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_stop_head_stops_when_the_macro_step_is_full(impl, device):
    weights = StopWeights(*(torch.zeros(s, device=device) for s in ((8, 64), 8, (8, 8), 8, (1, 8), 1)))
    state, hidden = MicroState.empty(3, device), torch.zeros(1, 64, device=device)
    for token in (11, 12, 13, 14):
        never = tensor(0.0, torch.float32, device)
        stop_head(hidden, tensor(token, torch.int64, device), weights, state, confidence=never, impl=impl)
    assert state.tokens.tolist() == [11, 12, 13]
    assert (state.num_tokens.item(), state.done.item()) == (3, 1)


def test_stop_head_refuses_a_confidence_on_the_host(device):
    weights = StopWeights(*(torch.zeros(s, device=device) for s in ((8, 64), 8, (8, 8), 8, (1, 8), 1)))
    with pytest.raises(ValueError, match="confidence must be float32, got float64"):
        stop_head(
            torch.zeros(1, 64, device=device),
            tensor(0, torch.int64, device),
            weights,
            MicroState.empty(4, device),
            confidence=tensor(0.5, torch.float64, device),
        )


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_a_last_token_is_emitted_without_asking(impl, device):
    state = MicroState.empty(4, device)
    state.tokens[0], state.continue_probs[0] = 3, 0.75
    state.num_tokens.fill_(1)
    hidden, token = torch.zeros(1, 64, device=device), tensor(9, torch.int64, device)
    for _ in range(2):
        stop_head(hidden, token, None, state, confidence=tensor(0, torch.float32, device), impl=impl)
    assert state.tokens.tolist()[:2] == [3, 9]
    assert (state.num_tokens.item(), state.done.item()) == (2, 1), "the second call is skipped"
    assert state.continue_probs.tolist() == [0.75, 0, 0, 0]
