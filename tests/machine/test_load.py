from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hambench.machine import load
from hambench.machine.load import CpuLoadMeter, CpuTimes, load_between


def times(*, total: float, busy: float, own: float, stolen: float = 0.0) -> CpuTimes:
    return CpuTimes(total=total, busy=busy, stolen=stolen, own=own)


def test_other_load_is_what_is_busy_and_not_ours() -> None:
    shares = load_between(
        times(total=100, busy=50, own=10), times(total=120, busy=66, own=20, stolen=1), seconds=10
    )
    assert shares is not None
    assert shares.other == pytest.approx((16 - 10) / 20)
    assert shares.stolen == pytest.approx(1 / 20)


def test_tick_noise_never_makes_a_negative_load() -> None:
    shares = load_between(times(total=0, busy=0, own=0), times(total=10, busy=4.99, own=5.01), seconds=1)
    assert shares is not None
    assert shares.other == 0


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
    reading = meter.read()
    assert reading is not None
    assert reading.other == pytest.approx(0.5, abs=0.01)
    assert reading.stolen == pytest.approx(0.25, abs=0.01)


def test_a_window_too_short_stays_open_and_repeats_the_last_share(tmp_path: Path) -> None:
    stat = write_stat(tmp_path / "stat", user=100, idle=100)
    meter = CpuLoadMeter(min_window_s=60, stat=stat)
    write_stat(stat, user=9_000, idle=100)
    assert meter.read() is None


def test_a_server_that_works_for_us_is_not_others_load(tmp_path: Path, monkeypatch) -> None:
    taken = {7: 3.0}
    monkeypatch.setattr(load, "cpu_seconds_of", lambda pid: taken[pid])
    stat = write_stat(tmp_path / "stat", user=10_000, idle=10_000)
    meter = CpuLoadMeter(min_window_s=0, stat=stat)
    write_stat(stat, user=10_000, idle=20_000)
    meter.read([7])
    # of 100 s of CPU time the server took 40, strangers 10
    taken[7] += 40
    write_stat(stat, user=15_000, idle=25_000)
    reading = meter.read([7])
    assert reading is not None
    assert reading.other == pytest.approx(0.1, abs=0.01)
    write_stat(stat, user=20_000, idle=25_000)
    assert meter.read(None) is None
    write_stat(stat, user=20_000, idle=35_000)
    after = meter.read()
    assert after is not None
    assert after.other == pytest.approx(0.0, abs=0.01)


def test_a_listening_process_is_found_by_its_port() -> None:
    import os
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert load.listening_processes(server.getsockname()[1]) in ((os.getpid(),), None)


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
    reading = meter.read()
    if reading is None:
        pytest.skip("this machine's /proc/stat tells nothing")
    cpus = torch.get_num_threads() or 1
    assert own > 0
    assert 0 <= reading.other <= 1
    # whatever others do, our share and theirs fit into the machine
    import os

    assert reading.other + own / (reading.seconds * (os.cpu_count() or cpus)) <= 1.1


def test_peak_memory_grows_with_what_is_touched_and_counts_bytes() -> None:
    before = load.peak_memory_bytes()
    assert before is not None
    size = before + 50_000_000
    block = bytearray(size)
    block[::4096] = b"x" * len(block[::4096])
    after = load.peak_memory_bytes()
    assert after is not None
    assert after >= size
    assert after < 20 * size


def test_gpu_memory_is_none_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda: False))
    assert load.peak_memory_bytes("cuda") is None
