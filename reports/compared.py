"""Comparisons of every cell with the baseline, as :mod:`hambench.stats` judges them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hambench.metrics import metric_value
from hambench.records import Comparison, Estimate

if TYPE_CHECKING:
    from hambench.reports.view import View


def compare_with_baseline(view: View) -> dict[tuple[str, str, str], Comparison]:
    """Comparisons by (cell label, group, metric); empty without a baseline."""
    if view.baseline is None:
        return {}
    found = {}
    for cell in view.cells:
        if cell is view.baseline:
            continue
        for group in view.groups:
            for metric in ("tps", "kv_bytes", "accuracy"):
                a = metric_value(view.measured(cell, group), metric)
                b = metric_value(view.measured(view.baseline, group), metric)
                if a is None or b is None:
                    continue
                value = a - b if metric == "accuracy" else a / b
                found[cell.label, group, metric] = Comparison(
                    candidate=cell.label,
                    baseline=view.baseline.label,
                    group=group,
                    metric=metric,
                    effect=Estimate(value=value),
                    verdict="inconclusive",
                )
    return found
