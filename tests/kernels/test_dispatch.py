from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch

from hambench.kernels import _dispatch
from hambench.kernels.gemv_residual import gemv_residual

CPU = torch.device("cpu")


def test_auto_on_a_cpu_is_the_reference_even_under_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not _dispatch.use_fused("op", "auto", torch.zeros(1))
    assert _dispatch.use_fused("op", "fused", torch.zeros(1))
    assert not _dispatch.use_fused("op", "reference", torch.zeros(1))


def test_fused_on_a_cpu_without_the_interpreter_says_what_to_do(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        ValueError, match=r"impl must be 'auto' or 'reference' for this call of op.*TRITON_INTERPRET=1"
    ):
        _dispatch.use_fused("op", "fused", torch.zeros(1))


def test_an_unknown_impl_is_refused():
    with pytest.raises(ValueError, match="impl must be 'auto', 'reference' or 'fused', got 'fast'"):
        gemv_residual(torch.ones(1, 4), torch.ones(2, 4), torch.ones(1, 2), impl="fast")


class OldGpu:
    """A tensor on a GPU that the kernels were not compiled for."""

    device = torch.device("cuda:0")


def test_an_old_gpu_takes_the_reference_with_one_logged_line(monkeypatch, caplog):
    monkeypatch.setattr(_dispatch, "_capability", lambda index: (7, 5))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    _dispatch._log_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="hambench.kernels"):
        for _ in range(3):
            assert not _dispatch.use_fused("op", "auto", OldGpu())
    assert [record.getMessage() for record in caplog.records] == [
        "op: reference path, because compute capability must be >= 8.0, got 7.5"
    ]
    with pytest.raises(ValueError, match=r"compute capability must be >= 8\.0, got 7\.5"):
        _dispatch.use_fused("op", "fused", OldGpu())


def test_a_recent_gpu_takes_the_fused_kernel(monkeypatch):
    monkeypatch.setattr(_dispatch, "_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert _dispatch.use_fused("op", "auto", OldGpu())


def test_kernels_import_nothing_else_of_hambench():
    code = (
        "import sys, hambench.kernels.tools.shapes, hambench.kernels.tools.bench;"
        "own = ('hambench.kernels', 'hambench._version');"
        "print(*(m for m in sys.modules if m.startswith('hambench.') and not m.startswith(own)));"
        "print('triton' in sys.modules and 'hambench.kernels.fused' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"], "and fused kernels only when one is called"


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted only where there is no GPU")
def test_the_interpreter_is_set_up_even_after_triton_was_imported():
    code = """
import importlib.util, sys
import triton, triton.language
import torch
spec = importlib.util.spec_from_file_location("kernel_conftest", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
from hambench.kernels.gemv_residual import gemv_residual
x, w, r = torch.ones(1, 64), torch.ones(2, 64), torch.ones(1, 2)
print(gemv_residual(x, w, r, impl="fused").tolist())
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    conftest = str(__import__("pathlib").Path(__file__).with_name("conftest.py"))
    done = subprocess.run(
        [sys.executable, "-c", code, conftest], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[[65.0, 65.0]]", done.stderr
