"""Tables of `hambench bench kernels`: bandwidth of each kernel next to the memory's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hambench.errors import UnknownNameError
from hambench.roofline.gpu_specs import find_gpu

if TYPE_CHECKING:
    from hambench.kernels.tools.bench import KernelReport, OpResult


def datasheet_bandwidth(device_name: str) -> float | None:
    """Returns the data sheet's bytes per second for a GPU that reports the name `device_name`; `None` if unknown."""
    plain = device_name.removeprefix("NVIDIA ").removeprefix("GeForce ")
    for name in (plain, plain.split(" ")[0]):
        try:
            return find_gpu(name).bandwidth
        except UnknownNameError:
            continue
    return None


def markdown(report: KernelReport) -> str:
    """Formats the report as a Markdown page."""
    peak = datasheet_bandwidth(report.device)
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    lines = [
        f"# Kernels at the shape of {report.shape}, on {report.device}",
        "",
        f"{versions}; {report.dtype} activations; {report.tiles} tiles; random weights. Memory in this process: copy "
        f"{_gigabytes(report.ceiling.copy)} GB/s, read {_gigabytes(report.ceiling.read)} GB/s"
        + (f"; data sheet {_gigabytes(peak)} GB/s." if peak else "."),
        "",
    ]
    if report.fused_timed:
        lines += [
            "Every fused kernel agreed with its float32 reference in this process before it was timed (`error`, "
            "relative). `MBU`: bytes the call must move over its median time, as a share of the measured copy and of "
            "the data sheet; more than 100 % means that a cache helped.",
            "",
            "| op | rows | weights | error | fused µs | GB/s | MBU copy | MBU sheet | torch µs | × torch | compiled µs "
            "| × compiled |",
            "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        lines += [_gpu_row(result, report, peak) for result in report.results]
    else:
        lines += [
            "**No CUDA device: the fused kernels were not run, and nothing here says how fast they are.** Plain torch "
            "on this CPU, for orientation:",
            "",
            "| op | rows | weights | torch µs | GB/s | of copy |",
            "|---|--:|---|--:|--:|--:|",
        ]
        lines += [_cpu_row(result, report) for result in report.results if result.seconds]
    return "\n".join(lines) + "\n"


def _gpu_row(result: OpResult, report: KernelReport, peak: float | None) -> str:
    fused = result.median_s("fused")
    rate = result.bytes_per_second("fused")
    cells = [result.op, str(result.rows), result.weights, _number(result.error, "{:.1e}")]
    cells += [_microseconds(fused), _gigabytes(rate), _share(rate, report.ceiling.copy), _share(rate, peak)]
    for name in ("torch", "compiled"):
        other = result.median_s(name)
        cells.append(_microseconds(other))
        cells.append(_number(None if other is None or fused is None else other / fused, "{:.2f}"))
    return f"| {' | '.join(cells)} |"


def _cpu_row(result: OpResult, report: KernelReport) -> str:
    rate = result.bytes_per_second("torch")
    cells = [result.op, str(result.rows), result.weights, _microseconds(result.median_s("torch"))]
    cells += [_gigabytes(rate), _share(rate, report.ceiling.copy)]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _microseconds(seconds: float | None) -> str:
    return _number(None if seconds is None else seconds * 1e6, "{:.1f}")


def _gigabytes(rate: float | None) -> str:
    return _number(None if rate is None else rate / 1e9, "{:.0f}")


def _share(rate: float | None, of: float | None) -> str:
    return _number(None if rate is None or of is None else 100 * rate / of, "{:.0f} %")
