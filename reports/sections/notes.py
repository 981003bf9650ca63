"""Method notes: the definition of every number, as ``hambench ls metrics`` prints it."""

from __future__ import annotations

from dataclasses import dataclass

from hambench.analysis.glossary import definitions


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
    Term(
        "✕ not comparable",
        "Something that must agree differs, or more than a fifth of the samples have an answer of one side only.",
    ),
)


def terms() -> list[Term]:
    """Returns every number that is shown, then the words of the verdicts."""
    numbers = [Term(entry.name, entry.text, entry.unit, entry.better or "") for entry in definitions()]
    return [*numbers, *VERDICTS]
