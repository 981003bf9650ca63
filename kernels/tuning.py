"""Tiles of the GEMV kernels: safe defaults, and measured winners per (device, Triton version) stored as JSON.

No call searches for a tile, let alone a graph capture: `hambench bench kernels --tune` measures a table, and this
module reads it. One program is one warp, whose 32 lanes each read 16 bytes of one weight row at a time. So x is already
in the lanes that need it (no shared memory, no barrier), and a row's reduction has one order for every tile and number
of rows. M-invariance depends on that order, so neither the number of warps nor the block of K is tunable.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

TABLE_PATH = Path(__file__).with_name("tuned.json")

NUM_WARPS = 1
ACCUMULATORS = 128
"""Most float32 accumulators per thread: half its registers."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tile:
    """Shape of the weight block that one program of a single-row GEMV reads."""

    block_n: int
    """Weight rows per program, a power of two."""
    unroll: int
    """Blocks of K whose loads are issued together; each lane has `block_n * unroll` loads of 16 bytes in flight."""

    def __post_init__(self) -> None:
        for name in ("block_n", "unroll"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two, got {value}")

    def for_rows(self, rows: int, num_inputs: int, *, itemsize: int, weights: int = 1) -> Tile:
        """Returns the tile for a call of several rows: fewer weight rows, so that the accumulators stay in registers.

        Args:
            rows: Rows of the call.
            num_inputs: Length of a row.
            itemsize: Bytes per weight element.
            weights: Number of weight matrices read together.
        """
        lane_accumulators = rows * weights * 16 // itemsize
        # int8 weights and 16-bit rows arrive in different lanes, and moving the rows takes registers too
        most = ACCUMULATORS if itemsize > 1 else ACCUMULATORS * 3 // 4
        block_n = min(self.block_n, _power_of_two(most // lane_accumulators))
        unroll = self.unroll * (self.block_n // block_n)
        if block_n * lane_accumulators > ACCUMULATORS // 4:
            unroll = unroll // 2
        if block_n * lane_accumulators > ACCUMULATORS * 5 // 8:
            unroll = 1
        num_blocks = -(-num_inputs * itemsize // (32 * 16))
        return Tile(block_n, min(max(1, unroll), _power_of_two(num_blocks)))


def _power_of_two(most: int) -> int:
    """Returns the largest power of two up to `most`, and at least 1."""
    return 1 << (max(1, most).bit_length() - 1)


DEFAULTS = {
    # enough programs for every multiprocessor even at 2048 outputs
    "norm_gemv": Tile(2, 4),
    "gemv_residual": Tile(2, 4),
    "norm_gateup_silu": Tile(2, 2),
    # many rows, and each block leaves a key to reduce
    "lm_head_argmax": Tile(4, 1),
    "stop_head": Tile(2, 4),
    "merge_tokens": Tile(2, 4),
}

SPACE = tuple(
    Tile(block_n, unroll) for block_n in (1, 2, 4, 8) for unroll in (1, 2, 4, 8) if block_n * unroll <= 16
)
"""Tiles that `--tune` tries."""


def row_groups(rows: int, weight_dtype: torch.dtype, *, weights: int = 1) -> list[slice]:
    """Returns the rows of each launch of one call.

    A lane reads 16 INT8 weights at a time and needs as many accumulators per row. So a call of more than a few rows
    makes a second pass over the weights rather than spill registers.
    """
    at_once = 4 // weights if weight_dtype == torch.int8 else rows
    return [slice(first, min(first + at_once, rows)) for first in range(0, rows, at_once)]


def block_k(weight_dtype: torch.dtype) -> int:
    """Returns the number of columns that one warp reads with one 16-byte load per lane."""
    return 32 * 16 // weight_dtype.itemsize


def key(op: str, num_outputs: int, num_inputs: int, weight_dtype: torch.dtype) -> str:
    """Returns the name of a table entry."""
    return f"{op}/{num_outputs}x{num_inputs}/{str(weight_dtype).removeprefix('torch.')}"


def tile_for(op: str, weight: torch.Tensor, *, rows: int, weights: int = 1) -> Tile:
    """Returns the measured tile for this weight's device and Triton version, else the default; adapted to `rows`."""
    tile = DEFAULTS[op]
    name = key(op, weight.shape[0], weight.shape[1], weight.dtype)
    if _trial is not None:
        tile = _trial.tile
        _trial.asked.append(name)
    elif weight.device.type == "cuda":
        tile = _table(_device_name(weight.device.index or 0)).get(name, tile)
    return tile.for_rows(rows, weight.shape[1], itemsize=weight.dtype.itemsize, weights=weights)


def read(path: Path) -> dict[str, dict[str, dict[str, Tile]]]:
    """Reads a table: device name → Triton version → entry → tile.

    Raises:
        ValueError: If the file is not such a table; the message names the file.
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


def table_text(path: Path, device: str, version: str, tiles: dict[str, Tile]) -> str:
    """Returns the table at `path`, if there is one, with the tiles of one device and version replaced.

    Raises:
        ValueError: If the file is not such a table.
    """
    table = read(path) if path.exists() else {}
    table.setdefault(device, {})[version] = dict(sorted(tiles.items()))
    return json.dumps(table, indent=2, default=dataclasses.asdict) + "\n"


@dataclasses.dataclass(frozen=True)
class _Trial:
    tile: Tile
    asked: list[str]


_trial: _Trial | None = None


@contextmanager
def trial(tile: Tile, asked: list[str]) -> Iterator[None]:
    """Makes every GEMV use this tile, and appends the entries that were looked up to `asked`."""
    global _trial
    _trial = _Trial(tile, asked)
    try:
        yield
    finally:
        _trial = None


def is_tuned(device: torch.device) -> bool:
    """Returns True if there are measured tiles for this CUDA device and Triton version."""
    return bool(_table(_device_name(device.index or 0)))


def use_table(path: Path) -> None:
    """Reads tiles from `path` from now on, instead of the table shipped with the package.

    Raises:
        ValueError: If the file is not such a table.
    """
    global TABLE_PATH
    read(path)
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
