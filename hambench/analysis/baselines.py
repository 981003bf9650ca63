"""Chooses each cell's baseline: vanilla of the same run under the same conditions.

A sweep over threads, regimes, kernels, contexts or answer limits has a vanilla cell under each condition. A method is
compared with the one under its own conditions, so that its ratio shows the method and not a second thread. The vanilla
cells, each compared with the first one, show the effect of the conditions.

Two runs were measured at different times, and a machine drifts by more than methods differ. So a report that joins runs
never compares cells of different runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from hambench.records import Cell
from hambench.registry import BASELINE, is_lossless


def baseline_cell(cells: Sequence[Cell]) -> Cell | None:
    """Returns the first plain vanilla cell, the baseline of a run whose cells share their conditions."""
    return next((cell for cell in cells if is_baseline(cell)), None)


def is_baseline(cell: Cell) -> bool:
    """Returns whether a cell is plain vanilla, which others are judged against: its cache is not rounded."""
    return cell.method == BASELINE and is_lossless(cell)


def baseline_of(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """Returns a cell's baseline in the same run, which for the run's first vanilla cell is itself.

    Returns ``None`` if the run has no vanilla cell.
    """
    of_run = [other for other in cells if other.run == cell.run]
    alike = next((c for c in of_run if is_baseline(c) and c.conditions == cell.conditions), None)
    return baseline_cell(of_run) if alike is None or alike.label == cell.label else alike


def has_several(cells: Sequence[Cell]) -> bool:
    """Returns whether the cells of a run have different baselines, so that a table must name them."""
    return len({baseline.label for cell in cells if (baseline := baseline_of(cell, cells))}) > 1
