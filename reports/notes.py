"""Method notes: the definition of every number, from the docstring of the code that computes it."""

from __future__ import annotations

from dataclasses import dataclass

from hambench.metrics import METRICS


@dataclass(frozen=True, slots=True)
class Term:
    """A word of the report and what it means."""

    name: str
    definition: str
    unit: str = ""
    better: str = ""


VERDICTS = (
    Term("▲ better, ▼ worse", "The 95 % interval of the paired effect lies wholly on one side of no change."),
    Term("≈ equivalent", "The interval lies within the margin that counts as no difference."),
    Term(
        "? inconclusive",
        "The interval is too wide to say; the smallest difference the run could show is given.",
    ),
    Term("✕ not comparable", "Something that must agree differs, or one side has no number."),
)


def terms() -> list[Term]:
    """Every metric, then the words of the verdicts."""
    metrics = [Term(info.name, info.definition, info.unit, info.better) for info in METRICS.values()]
    return [*metrics, *VERDICTS]
