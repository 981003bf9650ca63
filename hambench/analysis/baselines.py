"""Which cell another is judged against: vanilla of the same run under the same conditions.

A sweep over threads, regimes, kernels, contexts or answer limits has a vanilla cell under each of them. A method is
judged against the one that shares its conditions, so that its ratio is the method's and not that of a second thread.
What the conditions themselves do is seen on the vanilla cells: each is judged against the first.

Two runs are two moments of a machine, which drifts by more than methods differ. In a report that joins runs, no cell is
judged against a cell of another run.
"""

from __future__ import annotations

from collections.abc import Sequence

from hambench.records import Cell

BASELINE = "vanilla"


def baseline_cell(cells: Sequence[Cell]) -> Cell | None:
    """The first vanilla cell: the baseline of a run whose cells share their conditions."""
    return next((cell for cell in cells if cell.method == BASELINE), None)


def baseline_of(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """The cell that another one is divided by, of the same run: itself for the first vanilla cell of its run.

    ``None`` where the run has no vanilla cell.
    """
    of_run = [other for other in cells if other.run == cell.run]
    alike = next((c for c in of_run if c.method == BASELINE and c.conditions == cell.conditions), None)
    return baseline_cell(of_run) if alike is None or alike.label == cell.label else alike


def has_several(cells: Sequence[Cell]) -> bool:
    """Whether the cells of a run are divided by more than one cell, so that a table must name it."""
    return len({baseline.label for cell in cells if (baseline := baseline_of(cell, cells))}) > 1
