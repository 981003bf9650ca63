"""What the Python side checks before a native call: the kernels trust lengths, types and offsets."""

import threading

import pytest
import torch

from hambench.kernels.cpu.model import CachePart, LayerWeights, NativeModel
from hambench.kernels.cpu.operands import LinearWeight
from hambench.kernels.cpu.shape import NativeShape, shape_obstacle

SHAPE = NativeShape(
    hidden_size=32,
    intermediate_size=48,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=50,
    rms_norm_eps=1e-5,
)
NUM_LAYERS = 2


def normal(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)) / size[-1] ** 0.5


def layer_weights(**changes):
    weights = {
        "qkv": LinearWeight(normal(64, 32)),
        "out": LinearWeight(normal(32, 32)),
        "gate_up": LinearWeight(normal(96, 32)),
        "down": LinearWeight(normal(32, 48)),
        "input_norm": torch.ones(32),
        "mlp_norm": torch.ones(32),
    }
    return LayerWeights(**{**weights, **changes})


def make(library, *, layers=None, shape=SHAPE, **changes):
    arguments = {
        "frequencies": torch.rand(4),
        "final_norm": torch.ones(32),
        "head": LinearWeight(normal(50, 32)),
        "embedding": normal(50, 32),
        "cache_type": torch.float32,
    }
    return NativeModel(library, shape, layers or [layer_weights()] * NUM_LAYERS, **{**arguments, **changes})


@pytest.fixture(scope="module")
def model(library):
    return make(library)


def part(past=0, num_rows=1, capacity=16, dtype=torch.float32, **sizes):
    size = {"layers": NUM_LAYERS, "heads": 2, "capacity": capacity, "head_dim": 8, **sizes}
    keys, values = (torch.zeros(list(size.values()), dtype=dtype) for _ in range(2))
    return CachePart(keys, values, past, num_rows)


def run(model, inputs=None, parts=None, **changes):
    inputs = torch.tensor([1, 2]) if inputs is None else inputs
    arguments = {
        "positions": range(inputs.numel() if inputs.ndim < 2 else len(inputs)),
        "instruction_set": "portable",
        "threads": 1,
    }
    return model.forward(inputs, [part(num_rows=2)] if parts is None else parts, **{**arguments, **changes})


def greedy(model, tokens=(1, 2), cache=None, **changes):
    arguments = {
        "positions": range(len(tokens)),
        "num_tokens": 1,
        "instruction_set": "portable",
        "threads": 1,
    }
    cache = part(num_rows=len(tokens)) if cache is None else cache
    return model.greedy(tokens, cache, **{**arguments, **changes})


SHARED = part(num_rows=1)
FLAT = CachePart(torch.zeros(16, 8), torch.zeros(16, 8), 0, 2)
TRANSPOSED = CachePart(*(torch.zeros(NUM_LAYERS, 16, 2, 8).transpose(1, 2) for _ in range(2)), 0, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": torch.tensor([1, 50])}, r"token ids must be in 0\.\.49"),
        ({"inputs": torch.tensor([-1, 2])}, r"token ids must be in 0\.\.49"),
        ({"inputs": torch.zeros(2, 31)}, r"inputs must be contiguous \[2, 32\]"),
        ({"inputs": torch.zeros(0, dtype=torch.int64), "parts": []}, "must have 1..64 rows, got 0"),
        ({"inputs": torch.zeros(65, dtype=torch.int64)}, "must have 1..64 rows, got 65"),
        ({"positions": [0]}, "must cover the 2 rows"),
        ({"positions": [0, -1]}, "positions must be >= 0, got -1"),
        ({"parts": [part(num_rows=1)]}, "must cover the 2 rows"),
        ({"parts": [part(num_rows=2), part(num_rows=0)]}, "don't fit a cache"),
        ({"parts": [part(past=15, num_rows=2)]}, "2 rows behind 15 slots don't fit a cache of 16"),
        ({"parts": [part(past=-1, num_rows=2)]}, "don't fit a cache"),
        ({"parts": [part(num_rows=2, dtype=torch.bfloat16)]}, "keys must be contiguous .*float32"),
        ({"parts": [part(num_rows=2, layers=1)]}, r"keys must be contiguous \[2, 2, 16, 8\]"),
        ({"parts": [part(num_rows=2, heads=4)]}, "keys must be contiguous"),
        ({"parts": [part(num_rows=2, head_dim=16)]}, "keys must be contiguous"),
        ({"parts": [TRANSPOSED]}, "keys must be contiguous"),
        ({"parts": [FLAT]}, r"keys must be \[layers, KVH, S, Dh\], got \[16, 8\]"),
        ({"parts": [SHARED, SHARED]}, "two of them share memory"),
        ({"parts": [SHARED._replace(values=SHARED.keys, num_rows=2)]}, "two of them share memory"),
        ({"inputs": torch.tensor([1.0, 2.0])}, r"whole numbers as ids .*got \[2\] in torch.float32"),
        ({"inputs": torch.ones(2, 32, dtype=torch.int64)}, r"floating point as embeddings .*torch.int64"),
        ({"inputs": torch.tensor(1)}, r"inputs must be ids \[T\] or embeddings \[T, D\], got \[\]"),
        ({"inputs": torch.zeros(2, 32, 1)}, "inputs must be ids"),
        ({"head_rows": [0, 1] * 33}, r"head_rows must be in 0\.\.1, 64 at most"),
        ({"head_rows": [2]}, r"head_rows must be in 0\.\.1, 64 at most, got \[2\]"),
        ({"head_rows": [-1]}, "head_rows must be in"),
        ({"feature_layers": [2]}, r"feature_layers must be in 0\.\.1, got \[2\]"),
        ({"threads": 0}, "threads must be >= 1, got 0"),
        ({"instruction_set": "mmx"}, "refused the call"),
    ],
)
def test_a_forward_with_wrong_arguments_is_refused(model, changes, message):
    with pytest.raises(ValueError, match=message):
        run(model, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": (1, 50)}, r"token ids must be in 0\.\.49"),
        ({"num_tokens": 0}, r"num_tokens must be in 1\.\.2 .*got 0"),
        ({"num_tokens": 3}, r"num_tokens must be in 1\.\.2 .*got 3"),
        ({"chain": -1}, "chain must be >= 0"),
        ({"cache": FLAT}, r"keys must be \[layers, KVH, S, Dh\]"),
        ({"chain": 15}, "fit the cache of 16 slots behind 2, got 15"),
    ],
)
def test_a_greedy_call_with_wrong_arguments_is_refused(model, changes, message):
    with pytest.raises(ValueError, match=message):
        greedy(model, **changes)
    assert len(greedy(model, chain=14)) == 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layers": [layer_weights(qkv=LinearWeight(normal(63, 32)))]},
            r"qkv.values must be contiguous \[64, 32\]",
        ),
        ({"layers": [layer_weights(down=LinearWeight(normal(48, 32).T))]}, "down.values must be contiguous"),
        ({"layers": [layer_weights(out=LinearWeight(normal(32, 32).half()))]}, "out.values must be"),
        (
            {"layers": [layer_weights(out=LinearWeight(torch.ones(32, 32, dtype=torch.int8)))]},
            "scales must be given",
        ),
        ({"layers": [layer_weights(out=LinearWeight(normal(32, 32), torch.ones(32)))]}, "only with them"),
        ({"layers": [layer_weights(input_norm=torch.ones(31))]}, r"input_norm must be contiguous \[32\]"),
        ({"layers": [layer_weights(q_norm=torch.ones(32))]}, r"q_norm must be contiguous \[8\]"),
        ({"head": LinearWeight(normal(49, 32))}, r"head.values must be contiguous \[50, 32\]"),
        ({"embedding": normal(50, 31)}, "embedding must be"),
        ({"frequencies": torch.rand(8)}, "frequencies must be"),
        ({"cache_type": torch.float16}, "float16, the kernels take"),
        ({"shape": SHAPE._replace(head_dim=7)}, "head size is 7"),
        ({"shape": SHAPE._replace(num_kv_heads=3)}, "4 query heads over 3"),
        ({"shape": SHAPE._replace(num_kv_heads=0)}, "is not positive"),
        ({"shape": SHAPE._replace(vocab_size=-1)}, "is not positive"),
    ],
)
def test_weights_that_do_not_fit_are_refused(library, changes, message):
    with pytest.raises(ValueError, match=message):
        make(library, **changes)


def test_no_layers_are_refused(library):
    with pytest.raises(ValueError, match="at least one layer"):
        NativeModel(
            library, SHAPE, [], frequencies=torch.rand(4), final_norm=None, head=None, embedding=None,
            cache_type=torch.float32,
        )  # fmt: skip


def test_a_stack_without_embedding_and_head_says_so(library):
    stack = make(library, final_norm=None, head=None, embedding=None)
    rows = normal(2, 32)
    assert run(stack, rows, feature_layers=[1]).features.shape == (1, 2, 32)
    with pytest.raises(ValueError, match="made without an embedding"):
        run(stack)
    with pytest.raises(ValueError, match="final norm and a head"):
        run(stack, rows, head_rows=[0])
    with pytest.raises(ValueError, match="final norm and a head"):
        run(stack, rows, hidden=True)
    with pytest.raises(ValueError, match="final norm and a head"):
        greedy(stack)


@pytest.mark.parametrize(
    ("changes", "dtype", "reason"),
    [
        ({}, torch.float16, "float16"),
        ({"head_dim": 7}, torch.float32, "head size is 7"),
        ({"head_dim": 1024}, torch.float32, "head size is 1024"),
        ({"num_heads": 5}, torch.float32, "5 query heads over 2"),
        ({}, torch.float32, None),
    ],
)
def test_what_the_kernels_cannot_run_has_a_reason(library, changes, dtype, reason):
    found = shape_obstacle(SHAPE._replace(**changes), dtype, torch.device("cpu"), library)
    assert found is None if reason is None else reason in found
    assert "cuda" in shape_obstacle(SHAPE, dtype, torch.device("cuda"), library)


def test_calls_from_several_threads_of_python_do_not_mix(model):
    expected = [greedy(model, (start,), part(capacity=64), num_tokens=1, chain=40) for start in range(4)]
    wrong = []

    def work(start):
        for _ in range(10):
            cache = part(capacity=64)
            if greedy(model, (start,), cache, num_tokens=1, chain=40, threads=2) != expected[start]:
                wrong.append(start)

    workers = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_calls_are_counted(model, library):
    before = library.pool_counts()
    greedy(model, threads=1)
    assert library.pool_counts() == (before.calls + 1, before.alone, before.together, 1)


def test_calls_on_several_threads_are_counted(model, several_threads):
    before = several_threads.pool_counts()
    greedy(model, threads=3)
    assert several_threads.pool_counts() == (before.calls + 1, before.alone, before.together + 1, 3)
