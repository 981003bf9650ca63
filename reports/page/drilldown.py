"""The drill-down: every cell's answer to the same sample, with steps visible without colour."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from hambench.records import Sample, SampleRecord, Score
from hambench.reports.html_text import printable
from hambench.reports.number_text import clip, listing, significant
from hambench.reports.page.answers import Answer, answer_of
from hambench.reports.view import CellView, View

PROMPT_HEAD, PROMPT_TAIL = 1200, 800
"""Characters to show from the start and the end of a long prompt."""
MOST_PLAIN = 200
"""Maximum number of samples in plain HTML; the others are packed."""
TELLING_SHARE = 0.6
"""Share of the shown samples that are chosen as informative; the rest is drawn at random."""
SEED = 0
REGRESSED_POINTS = 10.0
"""Points below the baseline's at which a graded answer counts as regressed."""


@dataclass(frozen=True, slots=True)
class SampleView:
    """The content of one sample on the page."""

    number: int
    sample_id: str
    title: str
    flags: tuple[str, ...]
    search: str
    tokens: int
    """Number of tokens of its longest answer."""
    acceptance: float | None
    """Lowest acceptance rate among its answers."""
    prompt_tokens: int | None
    prompt: str
    references: tuple[str, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Drilldown:
    """The samples to show, and a note on the rest."""

    samples: tuple[SampleView, ...]
    total: int
    counts: dict[str, int]
    """Number of shown samples per flag."""
    num_plain: int
    """Number of samples, from the first, in plain HTML; the others are packed."""
    judged: bool
    """Whether the target has judged answers that differ from the baseline's."""
    ties: str
    """A sentence on how close to a tie the first differences from the baseline were; empty if there are none."""

    @property
    def plain(self) -> tuple[SampleView, ...]:
        """Samples in plain HTML, readable without a script."""
        return self.samples[: self.num_plain]

    @property
    def packed(self) -> tuple[SampleView, ...]:
        """Samples that the page's script unpacks on demand."""
        return self.samples[self.num_plain :]

    @property
    def left_out(self) -> str:
        """A sentence on samples that are left out; empty if there are none."""
        missing = self.total - len(self.samples)
        if not missing:
            return ""
        return (
            f"{len(self.samples)} of {self.total} samples are shown: those where methods disagree or fail first, then "
            f"others drawn at random. All of them are in records.jsonl of the run; `hambench report --samples all` "
            "puts them into the page."
        )


def drilldown(
    view: View, *, limit: int | None, max_bytes: int | None, plain_bytes: int | None = None
) -> Drilldown:
    """Chooses samples and lays out their answers.

    Args:
        view: The run.
        limit: Maximum number of samples; ``None`` for all.
        max_bytes: Approximate size limit; ``None`` for none.
        plain_bytes: Approximate size limit of the samples in plain HTML, in addition to :data:`MOST_PLAIN`; ``None``
            lifts both limits.
    """
    by_sample: dict[str, dict[str, SampleRecord]] = {}
    for record in view.run.measured:
        # show only the first repeat, because repeats serve timing
        if record.repeat == 0 and record.sample_id in view.run.samples:
            by_sample.setdefault(record.sample_id, {})[record.cell] = record
    flags = {sample_id: _flags(view, sample_id, records) for sample_id, records in by_sample.items()}
    shown: list[SampleView] = []
    size = num_plain = 0
    for sample_id in _ranked(view, by_sample, flags, limit):
        sample = _sample_view(
            view, view.run.samples[sample_id], by_sample[sample_id], flags[sample_id], len(shown)
        )
        size += len(sample.prompt) + 400 + sum(len(answer.markup) + 250 for answer in sample.answers)
        if max_bytes is not None and size > max_bytes and shown:
            break
        shown.append(sample)
        if plain_bytes is None or not num_plain or (size <= plain_bytes and num_plain < MOST_PLAIN):
            num_plain = len(shown)
    counts: dict[str, int] = {}
    for sample in shown:
        for flag in sample.flags:
            counts[flag] = counts.get(flag, 0) + 1
    return Drilldown(
        tuple(shown),
        len(by_sample),
        counts,
        num_plain,
        judged=bool(counts.get("differs", 0) and view.divergences),
        ties=_ties(view, counts.get("differs", 0)),
    )


def _ranked(
    view: View,
    by_sample: dict[str, dict[str, SampleRecord]],
    flags: dict[str, tuple[str, ...]],
    limit: int | None,
) -> list[str]:
    weights = {"regressed": 8, "failed": 4, "disagree": 2, "differs": 1}
    order = {sample_id: index for index, sample_id in enumerate(view.run.samples)}
    ranked = sorted(by_sample, key=lambda s: (-sum(weights.get(flag, 0) for flag in flags[s]), order[s]))
    if limit is None or limit >= len(ranked):
        return ranked
    telling = ranked[: int(limit * TELLING_SHARE)]
    rest = ranked[len(telling) :]
    return telling + random.Random(SEED).sample(rest, limit - len(telling))


def _flags(view: View, sample_id: str, records: dict[str, SampleRecord]) -> tuple[str, ...]:
    points = {
        label: score.points for label in records if (score := _score(view, label, sample_id)) is not None
    }
    found = []
    # compare each answer with vanilla's under the same conditions
    bases = {
        cell.label: base.label
        for cell in view.cells
        if cell.label in records and (base := view.baseline_of(cell)) is not None
    }
    if len({round(value, 6) for value in points.values() if value is not None}) > 1:
        found.append("disagree")
    if any(_regressed(points.get(label), points.get(base)) for label, base in bases.items()):
        found.append("regressed")
    if any(record.error is not None for record in records.values()):
        found.append("failed")
    if any(_differ(records[label], records.get(base)) for label, base in bases.items()):
        found.append("differs")
    return tuple(found)


def _regressed(points: float | None, reference: float | None) -> bool:
    return points is not None and reference is not None and points <= reference - REGRESSED_POINTS


def _differ(record: SampleRecord, base: SampleRecord | None) -> bool:
    if record.trace is None or base is None or base.trace is None:
        return False
    return record.trace.token_ids != base.trace.token_ids


def _sample_view(
    view: View, sample: Sample, records: dict[str, SampleRecord], flags: tuple[str, ...], number: int
) -> SampleView:
    bases = {cell.label: view.baseline_of(cell) for cell in view.cells if cell.label in records}
    answers = tuple(
        answer_of(
            cell,
            records[cell.label],
            _score_text(view, cell, sample.sample_id),
            records.get(base.label) if (base := bases[cell.label]) else None,
            parting=view.divergences.get((cell.label, sample.sample_id, 0)),
            judged=view.run.judged(records[cell.label]),
        )
        for cell in view.cells
        if cell.label in records
    )
    traces = [record.trace for record in records.values() if record.trace is not None]
    rates = []
    for trace in traces:
        drafted = sum(step.drafted or 0 for step in trace.steps)
        if drafted:
            rates.append(sum(step.accepted or 0 for step in trace.steps) / drafted)
    prompt = _shortened(sample.prompt)
    return SampleView(
        number=number,
        sample_id=sample.sample_id,
        title=f"{sample.task} #{sample.doc_id}{f', turn {sample.turn}' if sample.turn else ''}",
        flags=flags,
        search=clip(printable(f"{sample.sample_id} {sample.category} {sample.prompt[-200:]}").lower(), 400),
        tokens=max((len(trace.token_ids) for trace in traces), default=0),
        acceptance=min(rates, default=None),
        prompt_tokens=traces[0].prompt_tokens if traces else None,
        prompt=prompt,
        references=tuple(clip(reference, 600) for reference in sample.references[:8]),
        answers=answers,
    )


def _ties(view: View, num_differing: int) -> str:
    """Returns a sentence on the target's two best logits at the first differences from the baseline."""
    if not num_differing:
        return ""
    gaps = sorted(parting.gap for parting in view.divergences.values())
    if not gaps:
        return (
            "How near a tie each first difference was is not in this run: `hambench proxies RUN` has the target judge "
            "the answers, and the report made after it shows it."
        )
    return (
        "Where an answer leaves the baseline's, the gap between the target's two best logits and the regret of the "
        f"token taken instead are given (median gap {significant(gaps[len(gaps) // 2])}). In bfloat16 logits between "
        "16 and 32 lie 0.125 apart, so a gap no larger is a tie that rounding alone can turn."
    )


def _shortened(prompt: str) -> str:
    left = len(prompt) - PROMPT_HEAD - PROMPT_TAIL
    if left <= 200:
        return prompt
    return f"{prompt[:PROMPT_HEAD]}\n\n[… {left} characters left out …]\n\n{prompt[-PROMPT_TAIL:]}"


def _score(view: View, label: str, sample_id: str) -> Score | None:
    return view.primary_scores.get((label, sample_id, 0))


def _score_text(view: View, cell: CellView, sample_id: str) -> str:
    score = _score(view, cell.label, sample_id)
    if score is None:
        return "not scored"
    if score.points is None or score.value is None:
        return f"{score.metric} failed: {clip(score.error or 'no reason given', 120)}"
    return f"{score.metric} {score.value:.3g}"


def words_of(flags: Sequence[str]) -> str:
    """Returns the flags' words for readers."""
    words = {
        "disagree": "scores differ",
        "regressed": "worse than the baseline",
        "failed": "failed somewhere",
        "differs": "tokens differ",
    }
    return listing([words.get(flag, flag) for flag in flags])
