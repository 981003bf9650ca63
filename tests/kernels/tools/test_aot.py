"""The ahead-of-time gate, in a process of its own: this one interprets its kernels."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

SPILLING = """
import torch, triton, triton.language as tl
from hambench.kernels.tools import aot

@triton.jit
def greedy(p_x, p_y, N: tl.constexpr):
    o = tl.arange(0, N)
    b = tl.load(p_x + o)
    total = tl.zeros([N], tl.float32)
    for i in range(8):
        total += tl.sum(b * tl.load(p_x + o + i)) * b
    tl.store(p_y + o, total)

def launch(size):
    return aot.Launch(greedy, {"p_x": "*fp32", "p_y": "*fp32", "N": "constexpr"}, {"N": size}, {"num_warps": 1}, 1)

for compiled in aot.compile_launches([(f"{size} values", launch(size)) for size in (128, 8192, 256)], 90):
    print(compiled.call, *compiled.faults, sep="; ")
"""

MACRO_STEP = """
import json
import dataclasses
import sys

import torch

from hambench.bench.forced import (random_grafts)
from hambench.bench.regimes import random_llama
from hambench.engine.cuda.forwards import (Trunk)
from hambench.engine.cuda.fused_llama import (FusedLlama)
from hambench.kernels.tools import aot
from hambench.kernels.results import (HeadOutput)
from hambench.kernels.tools.shapes import SHAPES
from hambench.methods.hamburger.device.step import DeviceStep
from hambench.methods.hamburger.model import HamburgerModel
from hambench.engine.int8 import quantize_int8

sizes, meta = SHAPES[sys.argv[1]], torch.device("meta")


def new(size, dtype):
    return torch.empty(size, dtype=dtype, device=meta)


def greedy(model, rows):
    cache = model.new_cache(sizes.capacity)
    trunk = Trunk(
        model, cache, inputs=new(rows, torch.int64), positions=new(rows, torch.int64), slots=new(1, torch.int32)
    )
    trunk.run()
    model.greedy_head(trunk.stream, HeadOutput(new(rows, torch.int64), new(rows, torch.float32), None))


llama = FusedLlama(random_llama(sizes, meta, torch.bfloat16), impl="fused")
draft = quantize_int8(llama)
model = HamburgerModel(llama, random_grafts(llama, merge_heads=sizes.merge_heads))
step = DeviceStep(model, llama.new_cache(sizes.capacity), asks=True, loop="run-ahead")
calls = [("macro-step, base", step._base_part(llama, llama.new_cache(sizes.capacity)))]
calls += [(f"macro-step, micro-step {i}", lambda i=i: step._micro_part(i)) for i in (1, 2, 3)]
calls += [(f"greedy, {rows} rows", lambda rows=rows: greedy(llama, rows)) for rows in (1, 5)]
calls += [("draft, 1 row", lambda: greedy(draft, 1))]
with torch.inference_mode():
    compiled = aot.compile_calls(calls, (90,))
for one in compiled:
    print(json.dumps({**dataclasses.asdict(one), "faults": one.faults}))
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
# a shape for each architecture; without options the command compiles every shape for both, in minutes
@pytest.mark.parametrize(("arch", "shape"), [(80, "llama-3.2-1b"), (90, "smollm2-135m")])
def test_every_fused_kernel_compiles_without_spills_and_with_wide_loads(arch, shape):
    done = run("-m", "hambench.kernels.tools.aot", "--arch", str(arch), "--only", f"^{shape}:")
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
        "-m",
        "hambench.kernels.tools.aot",
        "--arch",
        "90",
        "--only",
        "smollm2-135m: .*, (1 rows, int8|4 drafted)",
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
    before, spilling, after = done.stdout.splitlines()
    assert "local-memory accesses" in spilling
    assert "a stack of" in spilling
    # the code of all three is read in one go: nothing of one may be told of another
    assert not re.search("local-memory|stack", before + after)


@pytest.mark.slow
def test_whole_macro_steps_and_greedy_forwards_compile_as_they_are_launched(tmp_path):
    script = tmp_path / "macro_step.py"
    script.write_text(MACRO_STEP, encoding="utf-8")
    done = run(str(script), "llama-3.2-1b")
    assert done.returncode == 0, done.stderr
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert not [one for one in compiled if one["faults"]]
    found = {}
    for one in compiled:
        found.setdefault(one["call"].split(",")[0], set()).add(one["kernel"].removesuffix("_kernel"))
    # launches are named by the first call that makes them
    assert {"query", "decode_attention", "lm_head_reduce", "decide", "gemv_residual"} <= found["macro-step"]
    assert {"micro_attention", "norm_gemv", "norm_gateup_silu", "lm_head_block"} <= found["macro-step"]
    assert {"decode_attention", "lm_head_block"} <= found["greedy"]
    assert {"norm_gemv", "lm_head_block"} <= found["draft"]
