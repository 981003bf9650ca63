"""Memory as drawn: everything that a method needs is in its bar."""

from __future__ import annotations

from hambench.reports.sections.memory import totals_figure
from hambench.reports.view import View
from hambench.store import Run


def test_the_memory_bars_hold_the_weights_that_a_method_adds(run: Run) -> None:
    figure = totals_figure(View(run))
    assert figure is not None
    assert figure.table is not None
    added = {row[0].text: row[2].value for row in figure.table.rows}
    assert added["vanilla"] == 0
    assert added["speculative[k=2]"] == 135_000_000
    assert added["hamburger[confidence=0.5]"] == 287_000_000
    # the smallest cache is not the smallest total, where its weights are the largest
    assert "hamburger" not in figure.finding.partition("halving")[2]
    drawn = [bar.get_width() * 2**20 for bar in figure.canvas.axes[0].patches]
    assert sum(abs(width - 287_000_000) < 1 for width in drawn) == sum(
        "hamburger" in label for label in added
    )
