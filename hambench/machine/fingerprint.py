"""A fingerprint of machine and software: JSON-able scalars, without names of users, hosts or folders."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from hambench._version import __version__
from hambench.decoding import KnobValue

Fingerprint = dict[str, KnobValue]

SCORER_PACKAGES = ("rouge", "jieba", "nltk", "langdetect")
"""Packages of lm-eval's scorers whose version can change a score."""

PACKAGES = ("torch", "triton", "transformers", "lm_eval", "numpy", "scipy", *SCORER_PACKAGES)

SPEED_KEYS = (
    "cpu",
    "cpu_cores",
    "cpu_affinity",
    "gpu",
    "gpu_driver",
    "torch",
    "triton",
    "transformers",
    "torch_threads",
    "native_instruction_set",
    "native_compiler",
)
"""Keys that must agree before two runs' absolute speeds may be compared."""

ACCURACY_KEYS = ("lm_eval", "transformers", *SCORER_PACKAGES)
"""Keys that must agree before two runs' accuracies may be compared."""

_CPU_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def fingerprint() -> Fingerprint:
    """Returns the facts needed to judge or repeat a measurement; ``None`` for each that is not available."""
    return {
        "platform": sys.platform,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cpu_cores": os.cpu_count(),
        "cpu_affinity": _affinity(),
        "cpu_flags": " ".join(cpu_flags()) or None,
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        **{name: package_version(name) for name in PACKAGES},
        "hambench": __version__,
        **_commit(),
        **_threads(),
        **_gpu(),
    }


def differences(
    a: Mapping[str, KnobValue], b: Mapping[str, KnobValue], keys: tuple[str, ...]
) -> dict[str, str]:
    """Returns the keys whose values differ between two fingerprints, each with ``"left → right"``.

    A key that one of them lacks does not count as a difference, because its hambench did not record that key yet.
    """
    return {key: f"{a[key]} → {b[key]}" for key in keys if key in a and key in b and a[key] != b[key]}


def package_version(name: str) -> str | None:
    """Returns the installed version of a distribution, without importing it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str | None:
    """Returns the marketing name of the CPU."""
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or None


def cpu_flags() -> tuple[str, ...]:
    """Returns the instruction sets of this CPU, among those that decide the speed of a matrix product."""
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            present = set(value.split())
            return tuple(flag for flag in _CPU_FLAGS if flag in present)
    return ()


def commit_of(folder: Path) -> tuple[str | None, bool | None]:
    """Returns commit and dirty flag of a git checkout, or ``None`` twice if ``folder`` is not the top of one."""
    # an installed copy inside somebody's repository must not report that repository's commit
    if not (folder / ".git").exists():
        return None, None
    commit = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit, None if status is None else bool(status)


def _commit() -> Fingerprint:
    commit, dirty = commit_of(Path(__file__).resolve().parents[2])
    return {"commit": commit, "commit_dirty": dirty}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _threads() -> Fingerprint:
    torch = sys.modules.get("torch")  # the relevant number is that of the running process
    return {
        "torch_threads": torch.get_num_threads() if torch is not None else None,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "gomp_spincount": os.environ.get("GOMP_SPINCOUNT"),
    }


def _gpu() -> Fingerprint:
    from hambench.machine.nvml import Gpu

    gpu = Gpu.open()
    if gpu is None:
        return {"gpu": None, "gpu_driver": None, "gpu_memory_bytes": None}
    return {"gpu": gpu.name, "gpu_driver": gpu.driver, "gpu_memory_bytes": gpu.memory_bytes}


def _affinity() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
