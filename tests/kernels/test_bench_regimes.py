from __future__ import annotations

import pytest
import torch

from hambench.bench import regimes
from hambench.bench.regimes import Pace, RegimeReport, markdown, random_llama
from hambench.engine.cuda import fused_llama as fused
from hambench.errors import HambenchError, UnknownNameError
from hambench.kernels.tools.shapes import SHAPES, KernelShape

TINY = KernelShape(
    name="tiny",
    hidden=16,
    intermediate=24,
    heads=2,
    kv_heads=1,
    head_dim=8,
    vocabulary=41,
    num_layers=2,
    capacity=512,
)


def say_nothing(text: str) -> None:
    pass


def report(step_ms: float, micro_ms: float) -> RegimeReport:
    paces = (
        Pace("step", "graph", "fused", 1, 3_000_000_000, (step_ms / 1e3,) * 3),
        Pace("micro", "graph", "fused", 1, 1_000_000_000, (micro_ms / 1e3,) * 3),
    )
    return RegimeReport("llama-3.2-1b", "NVIDIA H200", 1000, 4e12, 0.01, paces)


def test_the_table_composes_a_macro_step_of_forced_length():
    lines = markdown(report(step_ms=1.0, micro_ms=0.4)).splitlines()
    assert "| step | graph | fused | 1 | 1.000 | 1000 | 75 % | 1.00 |" in lines
    assert "| micro | graph | fused | 1 | 0.400 | 2500 | 62 % | 0.40 |" in lines
    # 2 / 1.4, 3 / 1.8, 4 / 2.2
    assert "| graph | fused | 1.43× | 1.67× | 1.82× |" in lines


def test_without_a_gpu_it_says_why_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(HambenchError, match="needs a CUDA device"):
        regimes.run("llama-3.2-1b", "cuda", context=10, progress=say_nothing)
    with pytest.raises(UnknownNameError, match="unknown shape 'llama'"):
        regimes.run("llama", "cuda", context=10, progress=say_nothing)


def test_a_random_model_of_a_shape_has_its_weight_bytes():
    model = random_llama(TINY, torch.device("cpu"), torch.float32)
    layer = TINY.qkv * 16 + 16 * 16 + 3 * 24 * 16 + 2 * 16
    assert model.weight_bytes == 4 * (2 * layer + 16 + 41 * 16)
    assert SHAPES["llama-3.2-1b"].num_layers == 16


def test_disagreeing_logits_stop_the_benchmark(monkeypatch, device):
    model = random_llama(TINY, device, torch.float32)
    other = random_llama(TINY, device, torch.float32)
    monkeypatch.setattr(
        fused, "accelerate", lambda plain, **kwargs: fused.FusedLlama(plain, impl="reference")
    )
    assert regimes._check(model, device, "step") < 1e-4
    monkeypatch.setattr(fused, "accelerate", lambda plain, **kwargs: other)
    with pytest.raises(HambenchError, match="the kernels' step logits are off by"):
        regimes._check(model, device, "step")
