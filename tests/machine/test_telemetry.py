from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hambench.machine import telemetry
from hambench.machine.telemetry import CpuLoadMeter, CpuTimes, load_between


def times(*, total: float, busy: float, own: float, stolen: float = 0.0) -> CpuTimes:
    return CpuTimes(total=total, busy=busy, stolen=stolen, own=own)


def test_other_load_is_what_is_busy_and_not_ours() -> None:
    load = load_between(
        times(total=100, busy=50, own=10), times(total=120, busy=66, own=20, stolen=1), seconds=10
    )
    assert load is not None
    assert load.other == pytest.approx((16 - 10) / 20)
    assert load.stolen == pytest.approx(1 / 20)


def test_tick_noise_never_makes_a_negative_load() -> None:
    load = load_between(times(total=0, busy=0, own=0), times(total=10, busy=4.99, own=5.01), seconds=1)
    assert load is not None
    assert load.other == 0


def test_no_cpu_time_passed_is_no_load() -> None:
    same = times(total=5, busy=3, own=1)
    assert load_between(same, same, seconds=0) is None


def write_stat(path: Path, *, user: int, idle: int, steal: int = 0) -> Path:
    path.write_text(f"cpu  {user} 0 0 {idle} 0 0 0 {steal} 0 0\ncpu0 1 2 3\n")
    return path


def test_the_meter_reads_the_kernels_counters_and_counts_stolen_time_as_others(tmp_path: Path) -> None:
    stat = write_stat(tmp_path / "stat", user=10_000, idle=10_000)
    meter = CpuLoadMeter(min_window_s=0, stat=stat)
    write_stat(stat, user=15_000, idle=20_000, steal=5_000)
    load = meter.read()
    assert load is not None
    assert load.other == pytest.approx(0.5, abs=0.01)
    assert load.stolen == pytest.approx(0.25, abs=0.01)


def test_a_window_too_short_stays_open_and_repeats_the_last_share(tmp_path: Path) -> None:
    stat = write_stat(tmp_path / "stat", user=100, idle=100)
    meter = CpuLoadMeter(min_window_s=60, stat=stat)
    write_stat(stat, user=9_000, idle=100)
    assert meter.read() is None


@pytest.mark.parametrize("content", [None, "", "cpu 0 0 0 0 0 0 0 0 0 0\n", "intr 1 2\n", "cpu x y\n"])
def test_a_machine_that_does_not_tell_gives_none(tmp_path: Path, content: str | None) -> None:
    stat = tmp_path / "stat"
    if content is not None:
        stat.write_text(content)
    assert CpuLoadMeter(min_window_s=0, stat=stat).read() is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs /proc/stat")
def test_our_own_work_is_not_others_load() -> None:
    meter = CpuLoadMeter(min_window_s=0)
    own_before = time.process_time()
    end = time.monotonic() + 0.6
    while time.monotonic() < end:
        pass
    own = time.process_time() - own_before
    load = meter.read()
    if load is None:
        pytest.skip("this machine's /proc/stat tells nothing")
    cpus = torch.get_num_threads() or 1
    assert own > 0
    assert 0 <= load.other <= 1
    # whatever others do, our share and theirs fit into the machine
    import os

    assert load.other + own / (load.seconds * (os.cpu_count() or cpus)) <= 1.1


def test_peak_memory_grows_with_what_is_touched_and_counts_bytes() -> None:
    before = telemetry.peak_memory_bytes()
    assert before is not None
    size = before + 50_000_000
    block = bytearray(size)
    block[::4096] = b"x" * len(block[::4096])
    after = telemetry.peak_memory_bytes()
    assert after is not None
    assert after >= size
    assert after < 20 * size


def test_bandwidth_is_positive_and_says_what_it_measured() -> None:
    bandwidth = telemetry.measure_bandwidth(buffer_bytes=1 << 22, seconds=0.01)
    assert bandwidth.buffer_bytes == 1 << 22
    assert bandwidth.threads == torch.get_num_threads()
    # between a modem and ten times the fastest memory made
    assert 1e7 < bandwidth.read < 1e14
    assert 1e7 < bandwidth.copy < 1e14


def test_kv_formula_equals_the_bytes_of_real_tensors() -> None:
    caches = [torch.zeros(2, 7, 3, 16, dtype=torch.bfloat16) for _ in range(5)]
    formula = telemetry.kv_formula_bytes(num_layers=5, num_kv_heads=3, head_dim=16, dtype_bytes=2, slots=7)
    assert formula == telemetry.storage_bytes(caches) == sum(c.numel() * 2 for c in caches)


def test_the_three_numbers_of_a_cache_agree_when_it_is_full_and_differ_when_it_is_not(target: Any) -> None:
    full = telemetry.measure_kv_memory(target.llama, capacity=32, slots=32)
    half = telemetry.measure_kv_memory(target.llama, capacity=32, slots=16)
    assert full.formula_bytes == full.storage_bytes == half.storage_bytes == 2 * half.formula_bytes
    assert full.formula_bytes == 32 * target.llama.new_cache(1).bytes_per_slot
    assert full.allocator_bytes is None


def test_views_of_one_storage_are_counted_once_and_in_full() -> None:
    whole = torch.zeros(1000)
    assert telemetry.storage_bytes([whole[:10], whole[500:], whole.view(10, 100)]) == 4000


def test_gpu_memory_is_none_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda: False))
    assert telemetry.peak_memory_bytes("cuda") is None
