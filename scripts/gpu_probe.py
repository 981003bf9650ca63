"""What `scripts/gpu_run.sh` asks of a machine before it measures, and the page it writes afterwards."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import inspect
import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Versions and the device, as far as the machine tells."""
    facts: dict[str, Any] = {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "commit": _output("git", "rev-parse", "HEAD"),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    for name in ("torch", "triton", "transformers", "numpy"):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = None
    if torch.cuda.is_available():
        facts["nvidia_smi"] = _output(
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,temperature.gpu,power.draw",
            "--format=csv,noheader",
        )
    return facts


def features() -> dict[str, bool]:
    """Which ways to keep the micro loop on the device this torch and Triton have."""
    found = {
        "torch conditional graph nodes": hasattr(torch.cuda.CUDAGraph, "begin_capture_to_if_node"),
        "torch raw_cuda_graph": hasattr(torch.cuda.CUDAGraph, "raw_cuda_graph"),
    }
    try:
        import triton.language as tl
        from triton.backends.nvidia.compiler import CUDAOptions

        found["triton launch_pdl"] = "launch_pdl" in inspect.signature(CUDAOptions).parameters
        found["triton atomic_poll"] = hasattr(tl, "atomic_poll")
    except ImportError:
        found["triton"] = False
    try:
        import cuda.core  # noqa: F401

        found["cuda.core"] = True
    except ImportError:
        found["cuda.core"] = False
    return found


def probes() -> dict[str, float]:
    """Costs that decide between the loops: a kernel's gap in a graph, a replay, a wait for one scalar; in seconds."""
    x = torch.zeros(1, device="cuda")
    graph = torch.cuda.CUDAGraph()
    x.add_(1)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(1000):
            x.add_(1)
    replays = []
    for _ in range(20):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        replays.append(time.perf_counter() - begin)
    waits = []
    for _ in range(200):
        begin = time.perf_counter()
        x.item()
        waits.append(time.perf_counter() - begin)
    return {
        "kernel_in_graph_s": statistics.median(replays) / 1000,
        "item_s": statistics.median(waits),
    }


def write_environment(out: Path, *, dry_run: bool) -> None:
    """Writes `environment.json`."""
    facts = {"dry_run": dry_run, "environment": environment(), "features": features()}
    if torch.cuda.is_available():
        facts["probes"] = probes()
    text = json.dumps(facts, indent=2)
    (out / "environment.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def write_summary(out: Path, *, seconds: int, dry_run: bool) -> None:
    """Writes `summary.md`: what ran, on what, and where its tables are."""
    path = out / "environment.json"
    facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    where = facts.get("environment", {})
    steps = [json.loads(line) for line in (out / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    versions = ", ".join(f"{name} {where.get(name)}" for name in ("torch", "triton", "transformers", "cuda"))
    lines = [f"# GPU run on {where.get('gpu') or 'a CPU'}", ""]
    if dry_run:
        lines += ["**Dry run on a CPU: the steps were walked, nothing here is a GPU measurement.**", ""]
    lines += [f"{where.get('when')}; {versions}; commit {where.get('commit')}; {seconds} s in all.", ""]
    for title, values in (("Features", facts.get("features")), ("Probes", facts.get("probes"))):
        if values:
            lines += [
                f"{title}: " + "; ".join(f"{name} {_value(value)}" for name, value in values.items()) + ".",
                "",
            ]
    lines += ["| step | fate | seconds |", "|---|---|--:|"]
    for step in steps:
        fate = {0: "ok", 124: "stopped at its limit", 137: "stopped at its limit"}.get(
            step["status"], "failed"
        )
        lines.append(f"| [{step['step']}]({step['step']}.log) | {fate} | {step['seconds']} |")
    tables = sorted(path.name for form in ("kernels-*.md", "regimes-*.md") for path in out.glob(form))
    lines += ["", "Tables: " + (", ".join(f"[{name}]({name})" for name in tables) or "none") + "."]
    (out / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "summary.json").write_text(
        json.dumps({**facts, "dry_run": dry_run, "steps": steps, "seconds": seconds}, indent=2) + "\n",
        encoding="utf-8",
    )


def _value(value: bool | float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value * 1e6:.2f} µs"


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write environment.json here")
    parser.add_argument("--summary", type=Path, help="write summary.md and summary.json here")
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if options.out is not None:
        write_environment(options.out, dry_run=options.dry_run)
    if options.summary is not None:
        write_summary(options.summary, seconds=options.seconds, dry_run=options.dry_run)


if __name__ == "__main__":
    main()
