from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner

from hambench.bench.kernels import datasheet_bandwidth, markdown
from hambench.cli.bench.kernels import command
from hambench.kernels.tools import bench
from hambench.kernels.tools.bench import Ceiling, KernelReport, NumericsError, OpResult
from hambench.kernels.tools.bench_cases import CaseMaker
from hambench.kernels.tools.shapes import KernelShape

TINY = KernelShape(
    name="tiny",
    hidden=32,
    intermediate=48,
    heads=2,
    kv_heads=1,
    head_dim=16,
    vocabulary=33,
    num_layers=2,
    merge_heads=4,
    capacity=1100,
)


@pytest.fixture
def maker(device) -> CaseMaker:
    return CaseMaker(TINY, device, torch.float32, pass_bytes=1)


def test_fused_and_plain_torch_compute_the_same_in_every_case(maker, fresh_inputs):
    cases = [*maker.cases(1, torch.float32), *maker.cases(2, torch.float32)]
    assert {case.op.split(" ")[0] for case in cases} >= {
        "norm_gemv",
        "lm_head_argmax",
        "merge_tokens",
        "stop_head",
    }
    for case in cases:
        assert bench.check(case) <= case.tolerance
        if case.torch is None or case.op.startswith("decode_attention"):
            continue  # SDPA is timed on rows of its own: rotating and appending is not in it
        fused, plain = case.fused[0](), case.torch[0]()
        if case.op == "lm_head_argmax":
            continue  # one gives logits, the other ids
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)


def test_a_pass_reads_as_many_bytes_as_asked(device):
    many = CaseMaker(TINY, device, torch.float32, pass_bytes=100_000)
    case = next(many.cases(1, torch.float32))
    assert case.num_bytes >= TINY.qkv * TINY.hidden * 4
    assert len(case.fused) * TINY.qkv * TINY.hidden * 4 >= 100_000


def test_no_speed_is_given_for_a_kernel_that_disagrees(maker):
    case = next(maker.cases(1, torch.float32))
    for wrong in (case.tolerance * 2, float("nan")):
        with pytest.raises(NumericsError, match="norm_gemv with 1 rows of float32 weights is off by"):
            bench.check(dataclasses.replace(case, error=lambda wrong=wrong: wrong))


def report(*, fused_timed: bool) -> KernelReport:
    seconds = {"fused": [2e-6, 1e-6, 3e-6], "torch": [4e-6]} if fused_timed else {"torch": [4e-6]}
    result = OpResult("norm_gemv", 1, "bfloat16", 6_000_000, 1e-3 if fused_timed else None, 4e-3, seconds)
    return KernelReport(
        shape="tiny",
        device="NVIDIA H200" if fused_timed else "CPU",
        fused_timed=fused_timed,
        dtype="bfloat16",
        versions={"torch": "2.11"},
        ceiling=Ceiling(copy=4e12, read=4.2e12),
        tiles="default",
        results=[result],
    )


def test_the_table_gives_bandwidth_against_copy_and_sheet_and_ratios():
    page = markdown(report(fused_timed=True))
    row = next(line for line in page.splitlines() if line.startswith("| norm_gemv"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # 6 MB in a median of 2 us is 3 TB/s: 75 % of a 4 TB/s copy, 62 % of 4.8 TB/s
    assert cells[:8] == ["norm_gemv", "1", "bfloat16", "1.0e-03", "2.0", "3000", "75 %", "62 %"]
    assert cells[8:] == ["4.0", "2.00", "–", "–"]


def test_a_page_from_a_cpu_says_that_no_kernel_ran():
    page = markdown(report(fused_timed=False))
    assert "the fused kernels were not run" in page
    assert "fused µs" not in page


def test_data_sheets_are_found_by_the_name_a_gpu_gives_itself():
    assert datasheet_bandwidth("NVIDIA H200") == 4.8e12
    assert datasheet_bandwidth("NVIDIA GeForce RTX 4090") == 1.008e12
    assert datasheet_bandwidth("CPU") is None


def test_the_command_without_a_gpu_times_torch_only_and_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["--shape", "smollm2-135m", "--rows", "1", "--only", "output", "--json"]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert "no fused kernels" in done.stderr
    found = json.loads(done.stdout)
    assert found["fused_timed"] is False
    assert [set(result["seconds"]) for result in found["results"]] == [{"torch"}, {"torch"}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "llama-3.2-1"], "did you mean llama-3.2-1b"),
        (["--rows", "0"], "--rows must be comma-separated whole numbers from 1 to 8"),
        (["--device", "gpu"], "device must be cpu, cuda or cuda:N, got 'gpu'"),
        (["--device", "cuda"], "torch finds no CUDA device here"),
        (["--device", "cpu", "--tune", "x.json"], "--tune needs a CUDA device"),
    ],
)
def test_the_command_says_what_would_be_right(arguments, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(command, arguments)
    assert message in str(done.exception)
