from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from hambench import doctor
from hambench.cli.doctor import command
from hambench.doctor import Check, Finding


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def test_every_check_answers_and_what_is_not_well_has_a_detail() -> None:
    result = CliRunner().invoke(command, ["--json"])
    assert result.exit_code == 0
    findings = {item["check"]: item for item in map(json.loads, result.output.splitlines())}
    assert list(findings) == [check.name for check in doctor.CHECKS]
    for finding in findings.values():
        assert finding["state"] in ("ok", "absent", "bad")
        assert finding["detail"]
        assert "check failed" not in finding["detail"]


def test_a_check_that_breaks_is_a_finding_and_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Finding:
        raise OSError("no such sensor")

    monkeypatch.setattr(doctor, "CHECKS", (Check("sensor", broken), Check("python", doctor.check_python)))
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 0
    assert "!  sensor" in result.output
    assert "no such sensor" in result.output
    assert "OK python" in result.output


def test_a_hub_that_is_switched_off_or_out_of_reach_is_absent_and_names_the_offline_editions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert doctor.check_hub().state == "absent"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    finding = doctor.check_hub()
    assert "HF_HUB_OFFLINE" in finding.detail
    assert "offline editions" in finding.mend


def test_a_busy_machine_is_bad_and_a_silent_one_is_not_called_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    def meter(load: Any) -> Any:
        return lambda: SimpleNamespace(read=lambda: load)

    monkeypatch.setattr(doctor, "_LOAD_WINDOW_S", 0)
    monkeypatch.setattr("hambench.machine.load.CpuLoadMeter", meter(SimpleNamespace(other=0.4, stolen=0.0)))
    assert doctor.check_load().state == "bad"
    monkeypatch.setattr("hambench.machine.load.CpuLoadMeter", meter(SimpleNamespace(other=0.02, stolen=0.0)))
    assert doctor.check_load().state == "ok"
    monkeypatch.setattr("hambench.machine.load.CpuLoadMeter", meter(None))
    assert doctor.check_load().state == "absent"


@pytest.mark.parametrize(
    ("flags", "state"),
    [((), "bad"), (("avx2",), "absent"), (("avx2", "avx512_bf16"), "ok"), (("avx2", "amx_bf16"), "ok")],
)
def test_a_cpu_is_judged_by_its_instruction_sets(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], state: str
) -> None:
    monkeypatch.setattr("hambench.machine.fingerprint.cpu_flags", lambda: flags)
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    assert doctor.check_cpu().state == state


def test_more_threads_than_cores_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 512)
    finding = doctor.check_torch()
    assert finding.state == "bad"
    assert "OMP_NUM_THREADS" in finding.mend


def test_a_driver_without_a_torch_that_uses_it_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="Fake", driver="1", memory_bytes=80e9)
    monkeypatch.setattr("hambench.machine.nvml.Gpu.open", lambda: gpu)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert doctor.check_gpu().state == "bad"
    monkeypatch.setattr("hambench.machine.nvml.Gpu.open", lambda: None)
    assert doctor.check_gpu().state == "absent"


def test_an_empty_cache_is_absent_and_a_damaged_one_is_bad(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HAMBENCH_CACHE", str(tmp_path))
    assert doctor.check_default_model().state == "absent"
    from hambench.models.embedded import SMOLLM2_135M, folder_of

    folder_of(SMOLLM2_135M).mkdir(parents=True)
    assert doctor.check_default_model().state == "bad"


@pytest.mark.parametrize(("level", "state"), [("namespaces", "ok"), ("bwrap", "ok"), ("limits", "absent")])
def test_isolation_is_well_only_if_it_is_more_than_limits(
    monkeypatch: pytest.MonkeyPatch, level: str, state: str
) -> None:
    monkeypatch.setattr(
        "hambench.suites.sandbox.supervisor.default_sandbox", lambda: SimpleNamespace(level=level)
    )
    assert doctor.check_isolation().state == state


def test_little_room_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9))
    assert doctor.check_disk().state == "bad"


def test_the_room_for_a_folder_that_is_not_there_yet_is_its_parents(tmp_path: Path) -> None:
    assert doctor._free_bytes(tmp_path / "a" / "b") == pytest.approx(doctor._free_bytes(tmp_path), rel=0.01)
