"""Memory bandwidth of named GPUs, for predictions about machines elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hambench.errors import HambenchError, UnknownNameError


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """Data-sheet values of a GPU; a measured bandwidth is 80 to 95 % of it."""

    title: str
    bandwidth: float
    """Data-sheet bandwidth in bytes per second."""


# "memory bandwidth" of NVIDIA's product data sheets (H200, H100, GH200, B200, A100, L4, L40S, A10, T4, V100)
# and of the GeForce RTX specification pages
GPUS: dict[str, GpuSpec] = {
    "b200": GpuSpec(title="B200", bandwidth=8.0e12),
    "gh200": GpuSpec(title="GH200 144 GB HBM3e", bandwidth=4.9e12),
    "h200": GpuSpec(title="H200 SXM", bandwidth=4.8e12),
    "h100": GpuSpec(title="H100 SXM", bandwidth=3.35e12),
    "h100-pcie": GpuSpec(title="H100 PCIe", bandwidth=2.0e12),
    "a100-80gb": GpuSpec(title="A100 80 GB SXM", bandwidth=2.039e12),
    "a100-40gb": GpuSpec(title="A100 40 GB", bandwidth=1.555e12),
    "v100": GpuSpec(title="V100 SXM2", bandwidth=0.9e12),
    "l40s": GpuSpec(title="L40S", bandwidth=0.864e12),
    "a10": GpuSpec(title="A10", bandwidth=0.6e12),
    "l4": GpuSpec(title="L4", bandwidth=0.3e12),
    "t4": GpuSpec(title="T4", bandwidth=0.32e12),
    "rtx5090": GpuSpec(title="GeForce RTX 5090", bandwidth=1.792e12),
    "rtx4090": GpuSpec(title="GeForce RTX 4090", bandwidth=1.008e12),
    "rtx3090": GpuSpec(title="GeForce RTX 3090", bandwidth=0.936e12),
}
"""GPUs by the name that ``--gpu`` takes."""

_UNITS = {"gb": 1e9, "tb": 1e12}


def find_gpu(name: str) -> GpuSpec:
    """Finds a GPU by name, ignoring spaces, dashes and case.

    Raises:
        UnknownNameError: If it is not in the list.
    """
    plain = {re.sub(r"[\s_-]", "", key): gpu for key, gpu in GPUS.items()}
    spec = plain.get(re.sub(r"[\s_-]", "", name.lower()))
    if spec is None:
        raise UnknownNameError("GPU", name, GPUS)
    return spec


def parse_bandwidth(text: str) -> float:
    """Parses ``4.3TB/s`` or ``46 GB/s`` to bytes per second.

    Raises:
        HambenchError: If the text has another form.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([GT]B)(?:/s)?\s*", text, flags=re.IGNORECASE)
    if match is None or not 0 < float(match[1]) < 1e9:
        raise HambenchError(f"a bandwidth must be a number with GB/s or TB/s, like 4.3TB/s, got {text!r}")
    return float(match[1]) * _UNITS[match[2].lower()]


def bandwidth_text(value: float) -> str:
    """Formats bytes per second for display: ``46.2 GB/s``, ``4.80 TB/s``, in decimal units."""
    return f"{value / 1e12:.2f} TB/s" if value >= 1e12 else f"{value / 1e9:.1f} GB/s"
