"""Renders one answer as markup: a span per step that yields several tokens or rejects some, else plain text."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup, escape

from hambench.analysis.fidelity import Divergence, first_difference
from hambench.records import Fidelity, GenerationTrace, SampleRecord, StepRecord
from hambench.reports.html_text import printable
from hambench.reports.number_text import seconds_text, significant
from hambench.reports.view import CellView

MAX_CHARACTERS = 20_000
"""Maximum number of characters to show of an answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One cell's answer to one sample."""

    cell: CellView
    score: str
    facts: str
    """Tokens, steps, speed, and the comparison with the baseline's answer."""
    error: str | None
    markup: Markup


def answer_of(
    cell: CellView,
    record: SampleRecord,
    score: str,
    base: SampleRecord | None,
    *,
    parting: Divergence | None = None,
    judged: Fidelity | None = None,
) -> Answer:
    """Lays out an answer.

    Args:
        cell: The cell that answered.
        record: The answer, or its error.
        score: The answer's score.
        base: The baseline's record of the same sample, if there is one.
        parting: The first difference from the baseline's answer and the target's judgement there, if known.
        judged: The target's judgement of the answer, if any.
    """
    if record.trace is None:
        return Answer(cell, score, "", record.error or "no answer", Markup(""))
    trace = record.trace
    first = None
    if base is not None and base is not record and base.trace is not None:
        first = first_difference(trace.token_ids, base.trace.token_ids)
    facts = _facts(trace, record, base, first, parting, judged)
    return Answer(cell, score, facts, None, steps_markup(record, first))


def steps_markup(record: SampleRecord, first_differing: int | None = None) -> Markup:
    """Returns the answer with marked steps, or only its text if the run stored no text per step.

    A step of several tokens is a span followed by its number of tokens and preceded by rejected drafts, struck through.
    Colour only repeats this. A newline is shown as ``↵`` and kept.
    """
    trace = record.trace
    if trace is None:
        return Markup("")
    if len(record.step_texts) != len(trace.steps):
        return escape(_visible(record.text or "")[:MAX_CHARACTERS])
    parts: list[str | Markup] = []
    position = length = 0
    for number, (step, piece) in enumerate(zip(trace.steps, record.step_texts, strict=True)):
        text = _visible(piece)
        length += len(text)
        if length > MAX_CHARACTERS:
            parts.append(f"\n[… {len(trace.steps) - number} more steps …]")
            break
        differs = first_differing is not None and position <= first_differing < position + len(step.tokens)
        position += len(step.tokens)
        rejected = (step.drafted or 0) - (step.accepted or 0)
        if len(step.tokens) == 1 and not step.drafted and not differs:
            parts.append(text)
            continue
        attributes = [f'title="{escape(_tip(number, step))}"']
        if len(step.tokens) > 1:
            attributes.append(f'data-n="{len(step.tokens)}"')
        if rejected:
            attributes.append(f'data-r="{rejected}"')
        if differs:
            attributes.append('class="split"')
        parts.append(Markup("<i {}>{}</i>").format(Markup(" ".join(attributes)), text))
    return Markup("").join(parts)


def _facts(
    trace: GenerationTrace,
    record: SampleRecord,
    base: SampleRecord | None,
    first: int | None,
    parting: Divergence | None,
    judged: Fidelity | None,
) -> str:
    tokens, steps = len(trace.token_ids), len(trace.steps)
    facts = [f"{tokens} token{'s' * (tokens != 1)} in {steps} step{'s' * (steps != 1)}"]
    decode = sum(step.timed_s for step in trace.steps[1:])
    later = sum(len(step.tokens) for step in trace.steps[1:])
    if decode > 0 and later:
        facts.append(f"{later / decode:.1f} tokens/s")
    drafted = sum(step.drafted or 0 for step in trace.steps)
    if drafted:
        facts.append(
            f"{sum(step.accepted or 0 for step in trace.steps)} of {drafted} drafted tokens accepted"
        )
    facts.append(f"ended by {trace.finish}")
    if record.truncated_tokens:
        facts.append(f"{record.truncated_tokens} prompt tokens cut")
    if base is not None and base is not record and base.trace is not None:
        if first is None:
            facts.append("same tokens as the baseline")
        else:
            facts.append(f"leaves the baseline at token {first + 1}{_parting_words(parting)}")
    if judged is not None and judged.regrets:
        facts.append(
            f"regret {judged.regret:.2f} nats in all, "
            f"{judged.num_agreed} of {len(judged.regrets)} tokens the target's own"
        )
    if len(record.step_texts) != steps:
        facts.append("no text per step was stored")
    return ", ".join(facts)


def _parting_words(parting: Divergence | None) -> str:
    if parting is None:
        return ""
    words = f"two best logits {significant(parting.gap)} apart"
    if parting.regret is not None:
        words += f", regret {significant(parting.regret)} nats"
    return f" ({words})"


def _tip(number: int, step: StepRecord) -> str:
    count = len(step.tokens)
    took = "prompt copied, not timed" if step.seconds is None else seconds_text(step.seconds)
    tip = f"step {number}: {count} token{'s' * (count != 1)}, {took}, ids "
    tip += " ".join(map(str, step.tokens))
    if step.drafted:
        tip += f"; drafted {step.drafted}, accepted {step.accepted}, rejected {step.drafted - (step.accepted or 0)}"
    if step.continue_probs:
        tip += "; P(continue) " + " ".join(f"{p:.2f}" for p in step.continue_probs)
    return tip


def _visible(text: str) -> str:
    return printable(text).replace("\n", "↵\n").replace("\t", "⇥\t")
