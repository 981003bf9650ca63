"""The ahead-of-time gate, in a process of its own: this one interprets its kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SPILLING = """
import torch, triton, triton.language as tl
from hambench.kernels import aot

@triton.jit
def greedy(p_x, p_y, N: tl.constexpr):
    o = tl.arange(0, N)
    b = tl.load(p_x + o)
    total = tl.zeros([N], tl.float32)
    for i in range(64):
        total += tl.sum(b * tl.load(p_x + o + i)) * b
    tl.store(p_y + o, total)

launch = aot.Launch(greedy, {"p_x": "*fp32", "p_y": "*fp32", "N": "constexpr"}, {"N": 32768}, {"num_warps": 1}, 1)
print(*aot.compile_launch("planted", launch, 90).faults, sep="; ")
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
def test_every_fused_kernel_compiles_without_spills_and_with_wide_loads(arch):
    done = run("-m", "hambench.kernels.aot", "--arch", str(arch))
    assert done.returncode == 0, done.stderr
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert not any(one["faults"] for one in compiled)
    ops = {one["kernel"].removesuffix("_kernel") for one in compiled}
    assert {"norm_gemv", "norm_gateup_silu", "gemv_residual", "lm_head_block", "micro_attention"} <= ops
    assert {"decode_attention", "decide", "key_value", "verify_accept"} <= ops
    gemvs = [one for one in compiled if one["weight_loads"]]
    assert len(gemvs) > 20
    assert all(one["wide_loads"] >= one["weight_loads"] for one in gemvs)


def test_one_kernel_of_each_kind_compiles_for_a_gpu_that_is_not_there():
    done = run(
        "-m", "hambench.kernels.aot", "--arch", "90", "--only", "smollm2-135m: .*, (1 rows, int8|4 drafted)"
    )
    assert done.returncode == 0, done.stderr
    kernels = {json.loads(line)["kernel"] for line in done.stdout.splitlines()}
    assert {"norm_gemv_kernel", "lm_head_block_kernel", "verify_accept_kernel"} <= kernels


def test_the_gate_refuses_a_kernel_that_spills(tmp_path):
    # triton reads a kernel from its file
    planted = tmp_path / "planted.py"
    planted.write_text(SPILLING, encoding="utf-8")
    done = run(str(planted))
    assert done.returncode == 0, done.stderr
    assert "local-memory accesses" in done.stdout
    assert "a stack of" in done.stdout
