"""Defines the report's pages, their order and their content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hambench.reports.page import cautions, verdict_words
from hambench.reports.page.drilldown import Drilldown, drilldown
from hambench.reports.page.verdict_words import MethodVerdict
from hambench.reports.sections import latency, memory, notes, overview, paper_figures, tables
from hambench.reports.sections.batches import batches_section
from hambench.reports.sections.example import Example, example
from hambench.reports.sections.history_page import history_section
from hambench.reports.sections.identity import Facts, identity
from hambench.reports.sections.kernels_page import kernels_section
from hambench.reports.sections.notes import Term
from hambench.reports.sections.pareto_page import pareto_section
from hambench.reports.sections.roofline_figure import roofline_section
from hambench.reports.sections.steps_figures import steps_section
from hambench.reports.values import Figure, Section
from hambench.reports.view import View

if TYPE_CHECKING:
    from hambench.reports.options import ReportOptions


@dataclass(frozen=True, slots=True)
class Page:
    """The template's values for one run (or several merged ones)."""

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
    drilldown: Drilldown
    example: Example | None

    def figures(self) -> list[Figure]:
        """All figures in reading order."""
        return [*self.overview, *(figure for section in self.sections for figure in section.figures)]


def build(view: View, options: ReportOptions) -> Page:
    """Computes every page of a run."""
    header = view.run.header
    limit = (
        {"all": None, "none": 0}.get(options.samples, 0)
        if isinstance(options.samples, str)
        else options.samples
    )
    everything = options.samples == "all"
    if options.script:
        most, plain = options.sample_bytes, options.plain_bytes
    else:
        most, plain = options.plain_bytes, None
    found = drilldown(view, limit=limit, max_bytes=None if everything else most, plain_bytes=plain)
    mark = cautions.watermark(view)
    glance = overview.overview_figure(view)
    page = Page(
        prefix=view.prefix,
        heading=f"Which decoding strategy should I ship for {view.model_name}?",
        subheading=f"{mark} · {header.created_at[:16].replace('T', ' ')} UTC",
        version=header.hambench_version,
        cautions=cautions.cautions(view),
        answer=verdict_words.answer(view),
        verdicts=verdict_words.method_verdicts(view),
        overview=() if glance is None else (glance,),
        identity=identity(view, include_host=options.include_host),
        sections=[
            Section("identity", "Run", "Everything needed to judge these numbers, or to measure them again."),
            pareto_section(view),
            paper_figures.paper_section(view, published=options.published),
            Section("tables", "Tables", tables=tables.all_tables(view)),
            Section(
                "samples",
                "Samples",
                "The same sample answered by every cell.",
                missing=() if found.samples else (_no_samples(view, options),),
            ),
            latency.latency_section(view),
            steps_section(view),
            *(() if (batches := batches_section(view)) is None else (batches,)),
            memory.memory_section(view),
            roofline_section(view),
            kernels_section(options.kernels, options.profile, prefix=view.prefix),
            history_section(view, options.history),
            Section("notes", "Notes", "What every number means, in the words of the code that computes it."),
        ],
        terms=notes.terms(),
        drilldown=found,
        example=example(view),
    )
    num_samples = len(view.run.samples)
    for figure in page.figures():
        figure.canvas.watermark = f"{num_samples} sample{'s' * (num_samples != 1)} · {mark}"
    return page


def _no_samples(view: View, options: ReportOptions) -> str:
    if options.samples in ("none", 0):
        return "Left out by `--samples none`; the answers are in records.jsonl of the run."
    return (
        "The run has no answers yet."
        if not view.run.measured
        else "No answer belongs to a sample of this run."
    )
