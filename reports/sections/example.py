"""The paper's figure 1: one answer of a method that merges tokens, with coloured steps."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from hambench.records import SampleRecord
from hambench.registry import facts_of
from hambench.reports.page.answers import steps_markup
from hambench.reports.view import CellView, View


@dataclass(frozen=True, slots=True)
class Example:
    """An answer to show step by step."""

    cell: CellView
    sample_id: str
    caption: str
    markup: Markup


def example(view: View) -> Example | None:
    """Returns an answer of readable length with many tokens per step; ``None`` if no method merges tokens.

    It is the best of its kind, so the caption says that and gives the mean.
    """
    cells = [cell for cell in view.cells if facts_of(cell.method).merges_tokens and not cell.control]
    picked = max(
        ((_weight(record), cell, record) for cell in cells for record in view.records[cell.label]),
        key=lambda item: item[0],
        default=None,
    )
    if picked is None or picked[0] <= 0:
        return None
    _, cell, record = picked
    assert record.trace is not None
    tokens, steps = len(record.trace.token_ids), len(record.trace.steps)
    mean = view.measured(cell).tokens_per_target_forward
    return Example(
        cell=cell,
        sample_id=record.sample_id,
        caption=(
            f"Sample {record.sample_id} by {cell.label}: {tokens} tokens in {steps} steps. Chosen for its many tokens "
            f"per step; the mean of this setting is {'–' if mean is None else f'{mean:.2f}'}."
        ),
        markup=steps_markup(record),
    )


def _weight(record: SampleRecord) -> float:
    trace = record.trace
    if trace is None or not 24 <= len(trace.token_ids) <= 120 or len(record.step_texts) != len(trace.steps):
        return 0.0
    return len(trace.token_ids) / len(trace.steps)
