"""`scripts/gpu_run.sh` walks its steps on a CPU and says that it measured nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_run.sh"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
            "TRITON_INTERPRET": "1",
        },
    )


@pytest.mark.slow
def test_the_dry_run_walks_every_step_and_says_what_it_is(tmp_path):
    done = run("--dry-run", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert [step["step"] for step in summary["steps"]] == [
        "environment",
        "kernels",
        "correctness",
        "regimes",
        "efficiency",
    ]
    assert all(step["status"] == 0 for step in summary["steps"])
    assert summary["dry_run"] is True
    page = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "nothing here is a GPU measurement" in page
    walked = json.loads((tmp_path / "regimes-toy.json").read_text(encoding="utf-8"))
    assert walked["dry_run"] is True
    assert {pace["method"] for pace in walked["forced"]} == {"vanilla", "hamburger", "speculative"}
    assert not any(pace["seconds"] for pace in walked["forced"])
    report = json.loads((tmp_path / "kernels-smollm2-135m.json").read_text(encoding="utf-8"))
    if not torch.cuda.is_available():
        assert report["fused_timed"] is False
        assert not any("fused" in result["seconds"] for result in report["results"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU, where the run would start")
def test_without_a_gpu_it_refuses_in_one_line(tmp_path):
    done = run("--out", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "gpu_run.sh: torch finds no CUDA device here; --dry-run walks the steps on a CPU"
    )
    assert not list(tmp_path.iterdir())


def test_the_dry_run_plans_the_very_words_that_the_real_one_runs():
    text = SCRIPT.read_text(encoding="utf-8")
    assert '"hambench plan $efficiency --device cpu"' in text
    # a folder per run: a run is never written over
    assert '"hambench run $efficiency --device cuda --out $quoted/efficiency-$started"' in text


def test_the_steps_fit_into_nine_minutes():
    real = SCRIPT.read_text(encoding="utf-8").split("\nelse\n", 1)[1]
    limits = [int(line.split()[2]) for line in real.splitlines() if line.strip().startswith("step ")]
    assert len(limits) == 7
    assert sum(limits) < 9 * 60
