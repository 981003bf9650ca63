"""Tiles of the GEMV kernels: a safe default, and measured winners per (device, Triton version) kept as JSON.

Nothing is searched during a call, let alone inside a graph capture: a table is measured by `hambench bench kernels
--tune` and read here. The block of K is no knob: 32 lanes of 16 bytes put one output row's whole reduction into one
warp, in an order that depends neither on the number of rows M nor on the tile, and M-invariance rests on that.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
from pathlib import Path

import torch

TABLE_PATH = Path(__file__).with_name("tuned.json")


@dataclasses.dataclass(frozen=True, slots=True)
class Tile:
    """How a GEMV is cut up."""

    block_n: int = 8
    """Output rows of one program, a power of two and at least `num_warps`."""
    num_warps: int = 4
    unroll: int = 2
    """K blocks whose loads are issued together."""

    def __post_init__(self) -> None:
        for name in ("block_n", "num_warps", "unroll"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two, got {value}")
        if self.block_n < self.num_warps:
            # with fewer rows than warps a row's reduction would cross warps, in another order
            raise ValueError(f"block_n must be >= num_warps ({self.num_warps}), got {self.block_n}")


DEFAULT = Tile()
SAFE = {"norm_gateup_silu": Tile(block_n=4, num_warps=4, unroll=2)}
"""Where the default would need too many registers at 8 rows: two weight tiles are live at once."""

SPACE = tuple(
    Tile(block_n=block_n, num_warps=num_warps, unroll=unroll)
    for block_n in (4, 8, 16)
    for num_warps in (2, 4, 8)
    for unroll in (1, 2, 4)
    if block_n >= num_warps
)
"""What `--tune` tries."""


def block_k(weight_dtype: torch.dtype) -> int:
    """Columns one warp reads with one 16-byte load per lane."""
    return 32 * 16 // weight_dtype.itemsize


def key(op: str, num_outputs: int, num_inputs: int, weight_dtype: torch.dtype) -> str:
    """Name of a table entry. M is absent on purpose: all row counts must share one tile."""
    return f"{op}/{num_outputs}x{num_inputs}/{str(weight_dtype).removeprefix('torch.')}"


def tile_for(
    op: str, num_outputs: int, num_inputs: int, weight_dtype: torch.dtype, device: torch.device
) -> Tile:
    """The measured tile for this device and Triton version, else the safe default."""
    default = SAFE.get(op, DEFAULT)
    if device.type != "cuda":
        return default
    return _table(_device_name(device.index or 0)).get(
        key(op, num_outputs, num_inputs, weight_dtype), default
    )


def read(path: Path) -> dict[str, dict[str, dict[str, Tile]]]:
    """Reads a table: device name → Triton version → entry → tile.

    Raises:
        ValueError: If the file is no such table; the message names the file.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return {
            device: {
                version: {entry: Tile(**tile) for entry, tile in tiles.items()}
                for version, tiles in versions.items()
            }
            for device, versions in raw.items()
        }
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} must map device, Triton version and entry to a tile: {error}") from error


def write(path: Path, device: str, version: str, tiles: dict[str, Tile]) -> None:
    """Puts one device's and version's tiles into the table at `path`, keeping the others."""
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    entries = {entry: dataclasses.asdict(tile) for entry, tile in sorted(tiles.items())}
    table.setdefault(device, {})[version] = entries
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def use_table(path: Path) -> None:
    """Reads tiles from `path` from now on, instead of the table shipped with the package."""
    global TABLE_PATH
    TABLE_PATH = path
    _table.cache_clear()


@functools.cache
def _table(device_name: str) -> dict[str, Tile]:
    if not TABLE_PATH.exists():
        return {}
    return read(TABLE_PATH).get(device_name, {}).get(importlib.metadata.version("triton"), {})


@functools.cache
def _device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)
