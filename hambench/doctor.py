"""Checks of this machine, which never fail themselves and say how to fix problems."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hambench.records import BUSY_LOAD

State = Literal["ok", "absent", "bad"]

_GB = 1e9
_MIN_FREE_BYTES = 2e9
_HUB_TIMEOUT_S = 3.0
_LOAD_WINDOW_S = 1.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    state: State
    """``absent``: something optional is missing; ``bad``: something spoils results or will fail."""
    detail: str
    mend: str = ""
    """The fix; empty if none is needed."""


@dataclass(frozen=True, slots=True)
class Check:
    """A named check of the machine."""

    name: str
    ask: Callable[[], Finding]

    def run(self) -> Finding:
        """Runs the check; a failing check becomes a finding too."""
        try:
            return self.ask()
        except Exception as error:
            # doctor must not fail on the problem that it examines, so any exception is the finding
            return Finding("bad", f"the check failed: {type(error).__name__}: {error}")


def check_python() -> Finding:
    """The interpreter."""
    return Finding("ok", platform.python_version())


def check_cpu() -> Finding:
    """Checks the CPU's name and its relevant instruction sets."""
    from hambench.machine.fingerprint import cpu_flags, cpu_model

    flags = cpu_flags()
    known = ", ".join(flags) or "no vector extensions known"
    what = f"{cpu_model() or 'unknown'}, {os.cpu_count()} logical cores, {known}"
    if platform.machine() in ("x86_64", "AMD64") and "avx2" not in flags:
        return Finding("bad", what, "expect very slow decoding: this CPU has no AVX2")
    if platform.machine() in ("x86_64", "AMD64") and not {"avx512_bf16", "amx_bf16"} & set(flags):
        return Finding(
            "absent",
            f"{what}; no native bfloat16",
            "in bfloat16 a verify pass of a few rows is slow here; compare with --dtype float32",
        )
    return Finding("ok", what)


def check_torch() -> Finding:
    """Checks torch and its number of threads."""
    import torch

    threads = torch.get_num_threads()
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    what = f"{torch.__version__}, {threads} threads on {allowed} usable cores"
    if threads > allowed:
        return Finding("bad", what, f"set OMP_NUM_THREADS={allowed}: threads that wait for each other spin")
    one_dnn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not one_dnn and platform.machine() in ("x86_64", "AMD64"):
        return Finding("bad", f"{what}, without oneDNN", "install a build of torch with oneDNN (mkldnn)")
    return Finding("ok", what)


def check_gpu() -> Finding:
    """Checks for an NVIDIA GPU, its driver, and a torch that can use it."""
    import torch

    from hambench.machine.nvml import Gpu

    gpu = Gpu.open()
    if gpu is None:
        return Finding("absent", "no NVIDIA driver; everything runs on the CPU")
    what = f"{gpu.name}, driver {gpu.driver}, {(gpu.memory_bytes or 0) / _GB:.0f} GB"
    if not torch.cuda.is_available():
        return Finding("bad", f"{what}, but torch can't use it", "install a CUDA build of torch")
    reading = gpu.read()
    if reading.throttles:
        return Finding(
            "bad", f"{what}, clocks throttled: {', '.join(reading.throttles)}", "fix cooling or power first"
        )
    energy = "energy counter" if reading.energy_j is not None else "no energy counter"
    return Finding("ok", f"{what}, {energy}")


def check_triton() -> Finding:
    """Checks for Triton, which the fused kernels need."""
    from hambench.machine.fingerprint import package_version

    version = package_version("triton")
    if version is None:
        return Finding("absent", "not installed; plain torch is used", "pip install triton (Linux, x86-64)")
    return Finding("ok", f"{version}; without a GPU its kernels run in the interpreter, for tests only")


def check_compiler() -> Finding:
    """Checks for a C compiler, which Triton and torch.compile call."""
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if found is None:
        return Finding("absent", "no C compiler: Triton and torch.compile can't run", "install gcc or clang")
    return Finding("ok", Path(found).name)


def check_native() -> Finding:
    """Checks the native CPU engine, its instruction set and compiler; compiles it if that was not done yet."""
    from hambench.engine.cpu.native_library import NativeUnavailableError, native_library

    slower = "on a CPU torch's own operations decode instead, about 2.5 times as slowly"
    try:
        library = native_library(retry=True)
        chosen = library.instruction_set()
    except NativeUnavailableError as error:
        reason, _, fix = str(error).partition(": ")
        return Finding("absent", f"{reason}; {slower}", fix)
    best = library.instruction_sets()[0]
    what = f"{chosen}, {library.compiler}"
    if chosen != best:
        return Finding("absent", f"{what}, though this machine runs {best}", "unset HAMBENCH_CPU_ISA")
    if chosen == "portable":
        return Finding(
            "absent", f"{what}: no instruction set with kernels of its own", "expect slower decoding"
        )
    return Finding("ok", what)


def check_memory() -> Finding:
    """Checks free memory."""
    import psutil

    memory = psutil.virtual_memory()
    what = f"{memory.available / _GB:.1f} of {memory.total / _GB:.1f} GB free"
    if memory.available < _MIN_FREE_BYTES:
        return Finding("bad", what, "free some memory: swapping spoils every timing")
    return Finding("ok", what)


def check_disk() -> Finding:
    """Checks disk space for models and runs."""
    from hambench.paths import cache_dir, runs_root

    rooms = {name: _free_bytes(folder) for name, folder in (("models", cache_dir()), ("runs", runs_root()))}
    what = ", ".join(f"{room / _GB:.1f} GB free for {name}" for name, room in rooms.items())
    if min(rooms.values()) < _MIN_FREE_BYTES:
        return Finding(
            "bad", what, "free some disk space, or set HAMBENCH_CACHE and HAMBENCH_RUNS to other disks"
        )
    return Finding("ok", what)


def check_load() -> Finding:
    """Checks the current load by other processes."""
    import time

    from hambench.machine.load import CpuLoadMeter

    meter = CpuLoadMeter()
    time.sleep(_LOAD_WINDOW_S)
    load = meter.read()
    if load is None:
        return Finding("absent", "this machine does not report its load")
    what = (
        f"other processes take {load.other:.0%} of the machine ({load.stolen:.0%} stolen by the hypervisor)"
    )
    if load.other > BUSY_LOAD:
        return Finding(
            "bad", what, "measure when the machine is quiet: threads that share a core wait for each other"
        )
    return Finding("ok", what)


def check_bandwidth() -> Finding:
    """Measures the current memory bandwidth."""
    from hambench.machine.bandwidth import measure_bandwidth

    measured = measure_bandwidth(seconds=0.15)
    return Finding("ok", f"{measured.read / _GB:.1f} GB/s reading, {measured.copy / _GB:.1f} GB/s copying")


def check_default_model() -> Finding:
    """Checks the embedded default model."""
    from hambench.models.embedded import SMOLLM2_135M, find_damage, folder_of

    folder = folder_of(SMOLLM2_135M)
    damage = find_damage(folder)
    if damage is None:
        return Finding("ok", f"{SMOLLM2_135M.name} is ready")
    once = "it is made on first use, from the package index (about 100 MB, once)"
    return Finding("bad" if folder.exists() else "absent", f"{SMOLLM2_135M.name}: {damage}", once)


def check_hub() -> Finding:
    """Checks whether the Hugging Face hub answers."""
    import urllib.error
    import urllib.request

    offline = "suites fall back to their offline editions; --data FOLDER and local models work"
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        return Finding("absent", "switched off by HF_HUB_OFFLINE", offline)
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_HUB_TIMEOUT_S):
            return Finding("ok", "reachable")
    except urllib.error.HTTPError:
        return Finding("ok", "reachable")  # an answer is an answer
    except (OSError, ValueError):
        return Finding("absent", "not reachable", offline)


def check_scorers() -> Finding:
    """Checks for lm-eval, whose scorers compute all accuracies."""
    from hambench.machine.fingerprint import package_version

    version = package_version("lm_eval")
    if version is None:
        return Finding(
            "bad",
            "lm-eval is missing, so answers can't be scored",
            'pip install "lm-eval[longbench,ifeval]"',
        )
    return Finding("ok", f"lm-eval {version}")


def check_isolation() -> Finding:
    """Checks the isolation of programs that a model wrote."""
    from hambench.suites.sandbox.supervisor import default_sandbox

    level = default_sandbox().level
    if level == "limits":
        return Finding(
            "absent",
            "generated code would run with resource limits only",
            "install bubblewrap, or use a container, before --allow-code-execution",
        )
    return Finding("ok", f"generated code, if allowed, runs without network and without your files ({level})")


CHECKS = (
    Check("python", check_python),
    Check("cpu", check_cpu),
    Check("torch", check_torch),
    Check("gpu", check_gpu),
    Check("triton", check_triton),
    Check("compiler", check_compiler),
    Check("native engine", check_native),
    Check("memory", check_memory),
    Check("disk", check_disk),
    Check("other load", check_load),
    Check("bandwidth", check_bandwidth),
    Check("default model", check_default_model),
    Check("hub", check_hub),
    Check("scorers", check_scorers),
    Check("isolation", check_isolation),
)
"""Checks in display order."""


def _free_bytes(folder: Path) -> int:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free
