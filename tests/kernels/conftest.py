"""Kernel tests run on the GPU where there is one, else under Triton's interpreter.

Triton reads TRITON_INTERPRET when it is imported (its own library is made of kernels) and when a kernel is decorated.
Whoever imported Triton earlier in this process did it without, so its Python modules are dropped and imported again;
the compiled part stays, because it can't be loaded twice.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch

ON_GPU = torch.cuda.is_available()


def interpret_triton() -> None:
    """Makes kernels imported from now on run under the interpreter."""
    os.environ["TRITON_INTERPRET"] = "1"
    for name in list(sys.modules):
        stale_triton = name.split(".")[0] == "triton" and not name.startswith("triton._C")
        if stale_triton or name.startswith("hambench.kernels.fused"):
            del sys.modules[name]


if not ON_GPU:
    interpret_triton()


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tensors hold NaN (integers: a large negative number), so that what a kernel leaves unwritten is seen."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else -(2**30))

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(autouse=True)
def fresh_inputs(request: pytest.FixtureRequest) -> int:
    """Every run draws other inputs; a failure prints the seed that repeats it."""
    seed = int(os.environ.get("HAMBENCH_KERNEL_SEED", int.from_bytes(os.urandom(4))))
    torch.manual_seed(seed)
    request.node.add_report_section("setup", "seed", f"HAMBENCH_KERNEL_SEED={seed} repeats these inputs")
    return seed
