"""Which pages a report has, in which order, and what stands on each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hambench.reports import (
    cautions,
    latency,
    memory,
    notes,
    overview,
    paper_figures,
    pareto_figure,
    steps_figures,
    tables,
    verdicts,
)
from hambench.reports.identity import Facts, identity
from hambench.reports.notes import Term
from hambench.reports.values import Figure, Section
from hambench.reports.verdicts import MethodVerdict
from hambench.reports.view import View

if TYPE_CHECKING:
    from hambench.reports.html import ReportOptions


@dataclass(frozen=True, slots=True)
class Page:
    """Everything the template shows of one run (or of several merged ones)."""

    prefix: str
    heading: str
    subheading: str
    version: str
    cautions: list[cautions.Caution]
    answer: str
    verdicts: list[MethodVerdict]
    overview: tuple[Figure, ...]
    identity: list[Facts]
    sections: list[Section]
    terms: list[Term]


def build(view: View, options: ReportOptions) -> Page:
    """Computes every page of a run."""
    header = view.run.header
    sections = [
        Section("identity", "Run", "Everything needed to judge these numbers, or to measure them again."),
        pareto_figure.pareto_section(view),
        paper_figures.paper_section(view),
        Section("tables", "Tables", tables=(tables.summary_table(view), tables.task_table(view))),
        latency.latency_section(view),
        steps_figures.steps_section(view),
        memory.memory_section(view),
        Section("notes", "Notes", "What every number means, in the words of the code that computes it."),
    ]
    mark = cautions.watermark(view)
    glance = overview.overview_figure(view)
    first = () if glance is None else (glance,)
    for figure in (*first, *(figure for section in sections for figure in section.figures)):
        figure.plate.watermark = mark
    return Page(
        prefix=view.prefix,
        heading=f"Which decoding strategy should I ship for {header.model.get('name', 'this model')}?",
        subheading=f"{mark} · {header.created_at}",
        version=header.hambench_version,
        cautions=cautions.cautions(view),
        answer=verdicts.answer(view),
        verdicts=verdicts.method_verdicts(view),
        overview=first,
        identity=identity(view, include_host=options.include_host),
        sections=sections,
        terms=notes.terms(),
    )
