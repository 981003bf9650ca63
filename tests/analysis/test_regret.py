"""Regret of two arms: few answers tell a bad decoder, equal ones prove what they are, speed alone tells nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from synthetic import write_run

from hambench.analysis.arms import Arm
from hambench.analysis.comparisons import compare_cells, compare_run
from hambench.analysis.measurements import measure_run
from hambench.analysis.regret import unread_text
from hambench.analysis.statistics.ratio_difference import ratio_difference
from hambench.analysis.summary import cell_objects, render_table
from hambench.analysis.verdicts import verdict_of
from hambench.groups import ALL
from hambench.records import Fidelity, SampleRecord, answer_key
from hambench.reports.page.standing import accuracy_standing
from hambench.reports.view import View
from hambench.store import Run, load_run

LOSSY = "hamburger[confidence=0.5]"
CONTROL = "hamburger[confidence=1.01]"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return load_run(write_run(tmp_path_factory.mktemp("runs") / "run", per_task=3, error_rate=0.0))


def regret_of(run: Run, cell: str):
    return next(row for row in compare_cells(run, cell, "vanilla", metrics=("regret",)) if row.group == ALL)


def equal_answers(run: Run, cell: str) -> Run:
    """The run with a cell's answers made vanilla's."""
    base = {(r.sample_id, r.repeat): r for r in run.records if r.cell == "vanilla"}

    def swapped(record: SampleRecord) -> SampleRecord:
        return (
            dataclasses.replace(base[record.sample_id, record.repeat], cell=cell)
            if record.cell == cell
            else record
        )

    return dataclasses.replace(run, records=tuple(map(swapped, run.records)))


def test_eighteen_answers_tell_a_lossy_method_and_clear_a_lossless_one(run: Run) -> None:
    lossy, lossless = regret_of(run, LOSSY), regret_of(run, "speculative[k=4]")
    assert lossy.verdict == "worse"
    assert lossy.effect.low > 0
    assert lossless.verdict == "equivalent"
    assert "lossless by design, 18 of 18 answers equal" in lossless.reason


def test_the_difference_is_that_of_the_printed_numbers(run: Run) -> None:
    overall = {m.cell: m for m in measure_run(run) if m.group == ALL}
    difference = overall[LOSSY].regret.value - overall["vanilla"].regret.value
    assert regret_of(run, LOSSY).effect.value == pytest.approx(difference)
    judged = [run.judged(r) for r in run.measured if r.cell == LOSSY]
    tokens = sum(len(item.regrets) for item in judged)
    assert overall[LOSSY].regret.value == pytest.approx(sum(item.regret for item in judged) / tokens)
    assert overall[LOSSY].agreement == pytest.approx(sum(item.num_agreed for item in judged) / tokens)
    assert overall["vanilla"].agreement == 1


def test_equal_answers_of_a_method_that_may_lose_something_prove_as_much_as_their_number(run: Run) -> None:
    equal = equal_answers(run, LOSSY)
    few = regret_of(equal, LOSSY)
    assert few.verdict == "inconclusive"
    assert "18 of 18 answers equal token by token: at most 15% of answers differ" in few.reason
    assert "equal ones would show that fidelity holds" in few.reason
    # 15 % of the answers, each 3 nats at every token
    assert few.effect.value == 0
    assert few.effect.high == pytest.approx(0.4597, abs=0.01)
    # one answer proves nothing, whatever it is
    first = next(iter(run.samples))
    one = dataclasses.replace(
        equal,
        samples={first: run.samples[first]},
        records=tuple(r for r in equal.records if r.sample_id == first),
    )
    assert regret_of(one, LOSSY).verdict == "inconclusive"
    assert regret_of(one, LOSSY).effect.low is None


def test_a_few_differing_answers_say_that_they_are_too_few(run: Run) -> None:
    equal = equal_answers(run, LOSSY)
    mine = [r for r in run.records if r.cell == LOSSY and r.trace][:2]
    keys = {(r.cell, r.sample_id) for r in mine}
    records = (*(r for r in equal.records if (r.cell, r.sample_id) not in keys), *mine)
    row = regret_of(dataclasses.replace(equal, records=records), LOSSY)
    assert row.verdict == "inconclusive"
    assert "samples differ in regret: too few to know their spread, so the interval is a bound" in row.reason


def test_without_judgements_there_is_nothing_to_compare(run: Run) -> None:
    assert not compare_cells(dataclasses.replace(run, fidelity={}), LOSSY, "vanilla", metrics=("regret",))
    # judged on one side only
    base = next(r for r in run.records if r.cell == "vanilla" and r.trace)
    half = dataclasses.replace(run, fidelity={answer_key(base): run.judged(base)})
    row = regret_of(half, LOSSY)
    if row.effect is None:
        assert row.verdict == "not comparable"
        assert "the target's judgement" in row.reason


def test_a_speed_only_run_withholds_the_speed_of_text_that_nobody_read(run: Run) -> None:
    header = dataclasses.replace(run.header, ignore_eos=True)
    speed_only = dataclasses.replace(run, header=header, scores=())
    speeds = {r.candidate: r for r in compare_run(speed_only, metrics=("tps",), groups=[ALL])}
    assert speeds[LOSSY].verdict == "not comparable"
    assert "chose text of its own, which nothing scored" in speeds[LOSSY].reason
    assert speeds["speculative[k=4]"].verdict != "not comparable"
    # text as good as the target's own is compared
    same = equal_answers(speed_only, LOSSY)
    (row,) = compare_cells(same, LOSSY, "vanilla", metrics=("tps",), groups=[ALL])
    assert row.verdict != "not comparable"
    # where answers are scored, their text is not unread
    (row,) = compare_cells(run, LOSSY, "vanilla", metrics=("tps",), groups=[ALL])
    assert row.verdict != "not comparable"


SPECULATIVE = "speculative[k=4]"


def junk(run: Run, cell: str, *, every: int = 2, readable: bool = True) -> Run:
    """The run with other tokens in some of a cell's answers, which cost 3 nats each or can't be read by the target."""
    records, fidelity = [], dict(run.fidelity)
    own = [record for record in run.records if record.cell == cell and record.trace is not None]
    spoiled = {record.sample_id for record in own[::every]}
    for record in run.records:
        if record.cell == cell and record.trace is not None and record.sample_id in spoiled:
            steps = tuple(
                dataclasses.replace(s, tokens=tuple(90_000 + t for t in s.tokens)) for s in record.trace.steps
            )
            record = dataclasses.replace(record, trace=dataclasses.replace(record.trace, steps=steps))
            n = len(record.trace.token_ids)
            fidelity[answer_key(record)] = Fidelity(
                sample_id=record.sample_id,
                answer=answer_key(record),
                regrets=(3.0,) * n if readable else (),
                logprobs=(-3.0,) * n if readable else (),
                gaps=(1.0,) * n if readable else (),
                error=None if readable else "token 90000 is not in the vocabulary",
            )
        records.append(record)
    return dataclasses.replace(run, records=tuple(records), fidelity=fidelity)


def test_a_broken_lossless_method_is_not_called_lossless_by_design(run: Run) -> None:
    broken = junk(run, SPECULATIVE)
    rows = {r.metric: r for r in compare_cells(broken, SPECULATIVE, "vanilla", groups=[ALL])}
    assert rows["regret"].verdict == "worse"
    for metric in ("accuracy", "regret"):
        assert 0 < rows[metric].num_equal < rows[metric].num_answers
        assert "lossless by design" not in rows[metric].reason
        assert "meant to be lossless" in rows[metric].reason
    view = View(broken)
    assert accuracy_standing(view, view.by_label[SPECULATIVE]) == "left"


@pytest.mark.parametrize(("every", "refused"), [(2, True), (9, False)])
def test_answers_that_the_target_cannot_read_are_counted_and_many_of_them_refuse(
    run: Run, every: int, refused: bool
) -> None:
    broken = junk(run, SPECULATIVE, every=every, readable=False)
    row = regret_of(broken, SPECULATIVE)
    assert row.num_answers == 18
    assert row.num_left_out == row.num_answers - row.num_equal > 0
    assert (row.verdict == "not comparable") == refused
    assert f"{row.num_left_out} of 18 answers not judged on both sides" in row.reason
    none = junk(run, SPECULATIVE, every=1, readable=False)
    assert regret_of(none, SPECULATIVE).verdict == "not comparable"
    # a lossy method of which the target read the good part only is not cleared by that part
    cleared = equal_answers(run, LOSSY)
    assert regret_of(junk(cleared, LOSSY, every=9, readable=False), LOSSY).num_left_out > 0


@pytest.mark.parametrize("cell", [SPECULATIVE, LOSSY])
@pytest.mark.parametrize(("every", "readable"), [(2, True), (2, False), (1, False)])
def test_a_speed_only_run_refuses_text_shown_to_be_worse_or_unreadable_whatever_the_method_promises(
    run: Run, cell: str, every: int, readable: bool
) -> None:
    header = dataclasses.replace(run.header, ignore_eos=True)
    speed_only = dataclasses.replace(equal_answers(run, cell), header=header, scores=())
    (row,) = compare_cells(speed_only, cell, "vanilla", metrics=("tps",), groups=[ALL])
    assert row.verdict != "not comparable"
    broken = junk(speed_only, cell, every=every, readable=readable)
    (row,) = compare_cells(broken, cell, "vanilla", metrics=("tps",), groups=[ALL])
    assert row.verdict == "not comparable"
    assert "chose text of its own" in row.reason
    assert ("nats more per token" if readable else "did not judge") in row.reason


def test_one_unread_answer_keeps_a_lossy_speed_back(run: Run) -> None:
    header = dataclasses.replace(run.header, ignore_eos=True)
    a, b = Arm.of(dataclasses.replace(run, header=header), LOSSY), Arm.of(run, "vanilla")
    row = dataclasses.replace(regret_of(run, LOSSY), verdict="equivalent", num_equal=17, num_answers=18)
    assert not unread_text(a, b, row)
    assert "1 of 18 answers" in unread_text(a, b, dataclasses.replace(row, num_left_out=1))


def test_repeated_text_of_a_lossy_method_is_said(run: Run) -> None:
    def repeating(record: SampleRecord) -> SampleRecord:
        if record.cell != LOSSY or record.trace is None:
            return record
        steps = tuple(dataclasses.replace(s, tokens=(7,) * len(s.tokens)) for s in record.trace.steps)
        return dataclasses.replace(record, trace=dataclasses.replace(record.trace, steps=steps))

    assert "repeats itself" not in render_table(run)
    looping = dataclasses.replace(run, records=tuple(map(repeating, run.records)))
    table = render_table(looping)
    assert f"! {LOSSY} repeats itself" in table
    overall = {m.cell: m for m in measure_run(looping) if m.group == ALL}
    assert overall[LOSSY].distinct_4grams < 0.1 < 0.9 < overall["vanilla"].distinct_4grams


def test_table_and_json_show_the_same_regret(run: Run) -> None:
    item = next(item for item in cell_objects(run) if item["cell"] == LOSSY)
    assert f" {item['regret']['value']:.3f} " in render_table(run)
    assert f" {item['agreement']:.1%} " in render_table(run)
    assert item["regret_delta"]["verdict"] == "worse"
    assert "fidelity worse" in render_table(run)


def test_swapping_the_arms_mirrors_the_interval() -> None:
    rng = np.random.default_rng(3)
    a, b = (
        (rng.exponential(5, 12), rng.integers(9, 60, 12)),
        (rng.exponential(1, 12), rng.integers(9, 60, 12)),
    )
    there, back = ratio_difference(a, b, unseen=3.0), ratio_difference(b, a, unseen=3.0)
    assert (there.effect, there.low, there.high) == pytest.approx((-back.effect, -back.high, -back.low))
    assert there.p_value == back.p_value


@pytest.mark.parametrize("num_differing", range(7))
def test_however_few_answers_differ_an_interval_is_printed_and_a_few_call_nothing(num_differing: int) -> None:
    tokens = np.full(18, 40.0)
    nats = np.where(np.arange(18) < num_differing, 60.0, 0.0)
    result = ratio_difference((nats, tokens), (0 * nats, tokens), unseen=3.0)
    assert result.low is not None
    assert result.high is not None
    assert result.low <= result.effect <= result.high
    # 18 answers leave 15 % of them, each of which may give up all there is
    assert result.high > 0.4
    assert (result.low < 0) == (num_differing < 5)
    assert verdict_of(result, margin=0.05, better="lower")[0] in ("inconclusive", "worse")


def test_a_judgement_needs_as_many_numbers_of_each_kind() -> None:
    with pytest.raises(ValueError, match="must have the same length, got"):
        Fidelity(sample_id="s", answer="a", regrets=(0.0,), logprobs=(), gaps=(1.0,))
