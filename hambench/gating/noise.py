"""The noise floor of each machine, as measured by an A/A gate where nothing changed."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hambench.errors import HambenchError
from hambench.files import write_new
from hambench.gating.speed import loss_found, noise_floor


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The spread of one A/A gate's blocks."""

    schema_version: int
    created_at: str
    machine: str
    """Id of the machine's fingerprint."""
    model: str
    dtype: str
    method: str
    kernels: str = "reference"
    """Of the gate; calibrations of older versions measured torch's operations."""
    num_blocks: int
    effect: float
    """Mean ln(second / first), measured between equals."""
    sd: float
    """Standard deviation of the blocks' log ratios."""

    def floor(self, num_blocks: int) -> float:
        """Returns the relative half-width of the interval of ``num_blocks`` blocks where nothing changed."""
        return noise_floor(self.sd, num_blocks)

    def loss_found(self, num_blocks: int, threshold: float) -> float:
        """Returns the smallest relative loss that a gate of ``num_blocks`` detects in both rounds, 80 times in 100."""
        return loss_found(self.sd, num_blocks, threshold)


def save_calibration(root: Path, calibration: Calibration) -> Path:
    """Writes the calibration to a new file; the newest one of a machine counts."""
    stamp = calibration.created_at.replace(":", "").replace("-", "")[:15]
    path = root / calibration.machine / f"{stamp}-{uuid.uuid4().hex[:8]}.json"
    write_new(path, msgspec.json.format(msgspec.json.encode(calibration), indent=2) + b"\n")
    return path


def load_calibration(root: Path, *, machine: str, model: str, dtype: str, kernels: str) -> Calibration | None:
    """Returns the newest calibration of a machine with a model and kernels; ``None`` if there is none."""
    found = []
    for path in sorted((root / machine).glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Calibration))
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise HambenchError(
                f"{path} is not a calibration: {error}; delete it or calibrate again"
            ) from error
    asked = (model, dtype, kernels)
    mine = [each for each in found if (each.model, each.dtype, each.kernels) == asked]
    return max(mine, key=lambda each: each.created_at, default=None)


def refuse_below_floor(threshold: float, num_blocks: int, calibration: Calibration | None) -> str:
    """Refuses a threshold below the machine's noise floor; returns a note on the floor, or that it is unknown.

    Raises:
        HambenchError: If the threshold is below the floor; the message names both and the two fixes.
    """
    if calibration is None:
        return "noise of this machine unknown: run `hambench calibrate`"
    floor, when = calibration.floor(num_blocks), calibration.created_at[:10]
    if threshold < floor:
        raise HambenchError(
            f"threshold {threshold:.1%} is below this machine's noise floor of {floor:.1%} with {num_blocks} blocks "
            f"(calibrated {when}): raise the threshold, or measure more blocks"
        )
    found = calibration.loss_found(num_blocks, threshold)
    return (
        f"noise floor of this machine with {num_blocks} blocks: {floor:.1%}, calibrated {when}; "
        f"a loss of {found:.1%} would be detected 4 times in 5"
    )
