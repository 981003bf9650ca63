"""The drill-down shows each step once, in order, and picks samples that tell something."""

from __future__ import annotations

import re
from dataclasses import replace

from hambench.records import GenerationTrace, SampleRecord, StepRecord
from hambench.reports.page.answers import steps_markup
from hambench.reports.page.drilldown import drilldown
from hambench.reports.sections.example import example
from hambench.reports.sections.steps.calibration import calibration_figure
from hambench.reports.values import significant
from hambench.reports.view import View
from hambench.store import Run


def record(*steps: tuple[str, StepRecord], **more: object) -> SampleRecord:
    return SampleRecord(
        cell="c",
        sample_id="s",
        prompt_hash="h",
        trace=GenerationTrace(prompt_tokens=3, steps=tuple(step for _, step in steps), finish="eos"),
        text="".join(text for text, _ in steps),
        step_texts=tuple(text for text, _ in steps),
        **more,  # type: ignore[arg-type]
    )


def test_every_step_of_several_tokens_is_a_span_with_its_size() -> None:
    markup = steps_markup(
        record(
            ("a", StepRecord(tokens=(1,), seconds=1.0)),
            ("b<c", StepRecord(tokens=(2, 3), seconds=0.01, continue_probs=(0.9, 0.25))),
            ("d", StepRecord(tokens=(4,), seconds=0.01)),
        )
    )
    assert re.sub(r"<[^>]+>", "", markup) == "ab&lt;cd"
    (span,) = re.findall(r"<i [^>]*>", markup)
    assert 'data-n="2"' in span
    assert "step 1: 2 tokens, 10.0 ms, ids 2 3; P(continue) 0.90 0.25" in span


def test_rejected_drafts_are_counted_even_where_one_token_came_out() -> None:
    markup = steps_markup(record(("x", StepRecord(tokens=(1,), seconds=0.1, drafted=4, accepted=0))))
    assert 'data-r="4"' in markup
    assert "data-n" not in markup
    assert "drafted 4, accepted 0, rejected 4" in markup


def test_the_step_that_leaves_the_baseline_is_marked() -> None:
    steps = [("a", StepRecord(tokens=(1,), seconds=0.1)), ("bc", StepRecord(tokens=(2, 3), seconds=0.1))]
    assert 'class="split"' in steps_markup(record(*steps), 2)
    assert "split" not in steps_markup(record(*steps), None)


def test_text_is_shown_whole_when_the_run_stored_none_per_step() -> None:
    plain = replace(record(("a<b\n", StepRecord(tokens=(1,), seconds=0.1))), step_texts=())
    assert steps_markup(plain) == "a&lt;b↵\n"


def test_a_first_difference_shows_what_the_target_says_there(run: Run) -> None:
    label = "hamburger[confidence=0.5]"
    unjudged = drilldown(View(replace(run, fidelity={})), limit=None, max_bytes=None)
    facts = {
        s.sample_id: a.facts
        for s in unjudged.samples
        for a in s.answers
        if a.cell.label == label and not a.error
    }
    leaving = next(sample_id for sample_id, words in facts.items() if "leaves the baseline" in words)
    assert "apart" not in facts[leaving]
    assert "regret" not in facts[leaving]
    assert "hambench proxies RUN" in unjudged.ties
    view = View(run)
    judged = drilldown(view, limit=None, max_bytes=None)
    (words,) = (
        a.facts for s in judged.samples if s.sample_id == leaving for a in s.answers if a.cell.label == label
    )
    parting = view.divergences[label, leaving, 0]
    assert (
        f"(two best logits {significant(parting.gap)} apart, regret {significant(parting.regret)} nats)"
        in words
    )
    assert parting.regret > 0
    assert "tokens the target's own" in words
    assert "median gap" in judged.ties
    assert "hambench proxies" not in judged.ties


def test_nothing_is_said_of_ties_where_no_answer_leaves_the_baseline(tiny_run: Run) -> None:
    assert drilldown(View(tiny_run), limit=None, max_bytes=None).ties == ""


def test_samples_past_the_first_bytes_are_packed_and_none_without_a_bound(view: View) -> None:
    packed = drilldown(view, limit=None, max_bytes=None, plain_bytes=1)
    assert len(packed.plain) == 1
    assert packed.plain + packed.packed == packed.samples
    assert len(packed.samples) == packed.total
    assert drilldown(view, limit=None, max_bytes=None).packed == ()


def test_joined_spans_are_the_answer(view: View) -> None:
    shown = drilldown(view, limit=None, max_bytes=None)
    assert len(shown.samples) == shown.total == len(view.run.samples)
    compared = 0
    for sample in shown.samples:
        for item in sample.answers:
            stored = next(
                r for r in view.run.measured if r.cell == item.cell.label and r.sample_id == sample.sample_id
            )
            if item.error is None:
                text = re.sub(r"<[^>]+>", "", item.markup).replace("↵", "")
                assert text == stored.text
                compared += 1
            else:
                assert item.error == stored.error
    assert compared > 100


def test_what_tells_most_comes_first_and_the_rest_is_a_seeded_draw(view: View) -> None:
    few = drilldown(view, limit=10, max_bytes=None)
    assert [s.sample_id for s in few.samples] == [
        s.sample_id for s in drilldown(view, limit=10, max_bytes=None).samples
    ]
    assert len(few.samples) == 10
    weights = [("regressed" in s.flags, "failed" in s.flags) for s in few.samples[:6]]
    assert weights == sorted(weights, reverse=True)
    assert "10 of 24" in few.left_out
    assert drilldown(view, limit=None, max_bytes=None).left_out == ""


def test_the_byte_bound_stops_the_list_but_keeps_one(view: View) -> None:
    assert len(drilldown(view, limit=None, max_bytes=1).samples) == 1


def test_flags_follow_scores_and_tokens(view: View) -> None:
    base = view.baseline
    assert base is not None
    shown = drilldown(view, limit=None, max_bytes=None)
    for sample in shown.samples:
        values = {
            label: score.value
            for (label, sample_id, _), score in view.primary_scores.items()
            if sample_id == sample.sample_id
        }
        assert ("disagree" in sample.flags) == (
            len({round(100 * v, 6) for v in values.values() if v is not None}) > 1
        )
        reference = values.get(base.label)
        worse = reference is not None and any(v is not None and v <= reference - 0.1 for v in values.values())
        assert ("regressed" in sample.flags) == worse
    assert shown.counts["disagree"] > 0


def test_long_prompts_are_cut_in_the_middle_and_say_so(run: Run) -> None:
    samples = {key: replace(sample, prompt="A" * 5000 + "END") for key, sample in run.samples.items()}
    shown = drilldown(View(replace(run, samples=samples)), limit=1, max_bytes=None).samples[0]
    assert len(shown.prompt) < 2200
    assert "3003 characters left out" in shown.prompt
    assert shown.prompt.endswith("END")


def test_the_example_is_a_hamburger_answer_and_admits_being_chosen(view: View) -> None:
    picked = example(view)
    assert picked is not None
    assert picked.cell.method == "hamburger"
    assert not picked.cell.control
    assert "Chosen for its many tokens" in picked.caption


def test_calibration_needs_the_one_token_control(run: Run) -> None:
    figure, _ = calibration_figure(View(run))
    assert figure is not None
    cells = tuple(cell for cell in run.header.cells if cell.label != "hamburger[confidence=1.01]")
    figure, reason = calibration_figure(View(replace(run, header=replace(run.header, cells=cells))))
    assert figure is None
    assert "one-token control" in reason
    figure, reason = calibration_figure(View(replace(run, header=replace(run.header, temperature=0.8))))
    assert figure is None
    assert "another random draw" in reason
