"""Acceptance by place in the draft, what drafts cost, and what that leaves to gain."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import write_run

from hambench.analysis.drafts.acceptance import (
    acceptance_conditional,
    acceptance_joint,
    drafted_histogram,
    place_counts,
)
from hambench.analysis.drafts.costs import MIN_STEPS, DraftCosts, VerifyCost, draft_costs, verify_cost
from hambench.records import GenerationTrace, StepRecord
from hambench.store import load_run


def trace(*rounds, last=None):
    """A trace of rounds (drafted, accepted); ``last`` is a step as it stands."""
    steps = [StepRecord(tokens=(0,), seconds=1.0)]
    steps += [StepRecord(tokens=(1,) * (a + 1), seconds=1.0, drafted=d, accepted=a) for d, a in rounds]
    return GenerationTrace(prompt_tokens=3, steps=(*steps, *([last] if last else [])), finish="length")


def test_acceptance_by_place_is_conditional_on_the_places_before_and_joint_over_all_rounds():
    rounds = trace((2, 2), (2, 1), (2, 0), (1, 1), (0, 0))
    assert acceptance_conditional([rounds]) == {1: 3 / 4, 2: 1 / 2}
    assert acceptance_joint([rounds]) == {1: 3 / 4, 2: 1 / 3}
    assert drafted_histogram([rounds]) == {0: 1, 1: 1, 2: 3}


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30))
def test_joint_acceptance_is_the_product_of_conditional_ones_where_all_rounds_are_as_long(pairs):
    rounds = [(6, accepted) for _, accepted in pairs]
    conditional, joint = (f([trace(*rounds)]) for f in (acceptance_conditional, acceptance_joint))
    product = 1.0
    for place, share in joint.items():
        product *= conditional.get(place, 0.0)
        assert share == pytest.approx(product)


def test_places_that_an_answers_end_hid_are_not_counted():
    # four drafted, all accepted as far as is known, and the answer ended after two
    cut = StepRecord(tokens=(1, 2), seconds=1.0, drafted=4, accepted=2, discarded=3)
    assert [place.drafted for place in place_counts([trace(last=cut)])] == [1, 1]
    assert acceptance_conditional([trace(last=cut)]) == {1: 1.0, 2: 1.0}
    # here the correction was the last token kept: what was rejected is known
    known = dataclasses.replace(cut, accepted=1)
    assert acceptance_conditional([trace(last=known)]) == {1: 1.0, 2: 0.0}


def test_what_a_peer_does_not_tell_is_absent_and_what_was_not_drafted_has_no_places():
    unknown = dataclasses.replace(trace((2, 1)).steps[1], drafted=None)
    assert acceptance_conditional([trace(last=unknown)]) == {}
    assert drafted_histogram([trace(last=unknown)]) == {}
    assert acceptance_conditional([trace((0, 0))]) == {}
    assert drafted_histogram([trace((0, 0))]) == {}


def test_a_cost_is_measured_interpolated_or_on_the_line_from_one_row():
    cost = VerifyCost({3: 1.2, 5: 1.6})
    assert cost(1) == 1
    assert cost(2) == pytest.approx(1.1)
    assert cost(4) == pytest.approx(1.4)
    assert cost(9) == pytest.approx(1.6 + 4 * 0.15)


def test_a_verification_that_nobody_measured_is_not_free():
    assert VerifyCost()(1) == 1
    assert VerifyCost()(7) is None
    costs = DraftCosts(0.0, VerifyCost(), (0.9,), (50,))
    assert costs.speedup(1) is None
    assert costs.best() is None
    assert costs.limit is None
    assert costs.unknown == "what its verifications cost is unknown"


def test_the_formula_of_the_speed_up():
    costs = DraftCosts(0.5, VerifyCost({2: 1.1, 3: 1.2}), (0.8, 0.5), (50, 40))
    assert costs.speedup(1) == pytest.approx(1.8 / 1.6)
    assert costs.speedup(2) == pytest.approx((1 + 0.8 + 0.4) / 2.2)
    # a third place is taken to be like the second
    assert costs.speedup(3) == pytest.approx((1 + 0.8 + 0.4 + 0.2) / (1.3 + 1.5))
    half = dataclasses.replace(costs, share=0.5)
    assert half.speedup(1) == pytest.approx((0.5 + 0.9) / (0.5 + 0.8))


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        (DraftCosts(0.81, VerifyCost({3: 1.0}), (0.95, 0.9), (99, 94)), "the draft's cost limits it"),
        (DraftCosts(0.02, VerifyCost({2: 1.0}), (0.3,), (99,)), "; acceptance limits it: free drafts"),
        (
            DraftCosts(0.0, VerifyCost({2: 1.1}), (0.3,), (99,)),
            "δ 0.00: .*; acceptance limits it: perfect drafts",
        ),
    ],
)
def test_the_limit_is_what_would_gain_more_if_it_were_ideal(costs, words):
    import re

    assert re.search(words, costs.limit)
    assert f": {costs.best_words}; " in costs.limit


def test_only_lengths_that_were_looked_at_are_compared():
    cheap = DraftCosts(0.01, VerifyCost({5: 1.1}), (0.9, 0.9, 0.9, 0.9), (50, 45, 40, 9))
    # nine rounds tried the fourth place
    assert cheap.most_drafted == 3
    assert cheap.best()[0] == 3
    assert cheap.best(acceptance=(1.0,))[0] == 3
    assert cheap.best_words == f"of k = 1 to 3, k = 3 gives most: {cheap.speedup(3):.2f}×"
    # no verification was as wide as four drafts need
    narrow = dataclasses.replace(cheap, verify=VerifyCost({3: 1.1}), tried=(50, 45, 40, 36))
    assert narrow.most_drafted == 2
    assert "of k = 1 to 2, k = 2 gives most" in narrow.limit
    few = dataclasses.replace(cheap, tried=(9, 8, 7, 6))
    assert (few.most_drafted, few.best(), few.limit) == (0, None, None)
    assert few.unknown.startswith("fewer than 10 rounds drafted")
    one = dataclasses.replace(cheap, tried=(50, 9, 8, 7))
    assert one.best_words == f"k = 1 gives {one.speedup(1):.2f}×"


def test_a_draft_of_unknown_cost_has_no_best_length():
    costs = DraftCosts(None, VerifyCost({2: 1.1}), (0.9,), (50,))
    assert costs.speedup(3) is None
    assert costs.best() is None
    assert costs.limit is None


def spec_run(tmp_path, **fields):
    """A run whose steps take what delta 0.4 and v(r) = 1 + 0.05 (r - 1) say, in vanilla steps."""
    run = load_run(write_run(tmp_path / "run", per_task=2))
    records = []
    for record in run.records:
        unit = 0.01 * (1 + len(record.sample_id) % 3)
        if record.trace is None:
            records.append(record)
            continue
        steps = [record.trace.steps[0]]
        for step in record.trace.steps[1:]:
            forwards = step.draft_forwards or 0
            draft_s = 0.4 * forwards * unit
            verify_s = unit * (1 + 0.05 * (step.drafted or 0))
            told = {"draft_seconds": draft_s} if fields.get("told") and forwards else {}
            steps.append(dataclasses.replace(step, seconds=draft_s + verify_s, **told))
        records.append(
            dataclasses.replace(record, trace=dataclasses.replace(record.trace, steps=tuple(steps)))
        )
    return dataclasses.replace(run, records=tuple(records))


@pytest.mark.parametrize("told", [True, False])
def test_costs_are_found_again_whether_drafting_was_timed_or_not(tmp_path, told):
    run = spec_run(tmp_path, told=told)
    by_method = {cell.method: cell for cell in run.header.cells}
    for cell in (None, by_method["speculative"], by_method["prompt_lookup"]):
        verify = verify_cost(run, by_method["vanilla"], cell)
        assert verify.by_rows
        for rows, cost in verify.by_rows.items():
            assert cost == pytest.approx(1 + 0.05 * (rows - 1))
    drafted = draft_costs(run, by_method["speculative"])
    assert drafted.delta == pytest.approx(0.4)
    assert draft_costs(run, by_method["prompt_lookup"]).delta == 0
    assert draft_costs(run, by_method["vanilla"]) is None


def slower(run, label, factor):
    """The run with all decode steps of one cell slower."""
    records = []
    for record in run.records:
        if record.cell == label and record.trace is not None:
            first, *rest = record.trace.steps
            rest = [
                dataclasses.replace(
                    step,
                    seconds=step.seconds * factor,
                    draft_seconds=None if step.draft_seconds is None else step.draft_seconds * factor,
                )
                for step in rest
            ]
            trace = dataclasses.replace(record.trace, steps=(first, *rest))
            record = dataclasses.replace(record, trace=trace)
        records.append(record)
    return dataclasses.replace(run, records=tuple(records))


def test_the_cost_of_verifying_is_a_cells_own_and_not_a_mean_over_cells_that_cost_differently(tmp_path):
    run = spec_run(tmp_path, told=True)
    vanilla, two, four, lookup = (
        next(cell for cell in run.header.cells if cell.label == label)
        for label in ("vanilla", "speculative[k=2]", "speculative[k=4]", "prompt_lookup[k=8]")
    )
    mixed = slower(run, lookup.label, 3.0)
    for cell in (two, four):
        assert draft_costs(mixed, cell) == draft_costs(run, cell)
    assert list(draft_costs(run, two).verify.by_rows) == [3]
    for rows, cost in draft_costs(mixed, lookup).verify.by_rows.items():
        assert cost == pytest.approx(3 * (1 + 0.05 * (rows - 1)))
    # one that does not tell its verifications apart is given those of one cell: of a lookup, which has no draft model
    untold = spec_run(tmp_path / "untold", told=False)
    assert draft_costs(untold, two).verify == verify_cost(untold, vanilla, lookup)


def test_costs_are_borrowed_from_one_cell_whose_steps_can_stand_for_others(tmp_path):
    """Of those under the same conditions that verify exactly: without a draft model first, then with the most steps."""
    untold = spec_run(tmp_path, told=False)
    vanilla, two, four, lookup = (
        next(cell for cell in untold.header.cells if cell.label == label)
        for label in ("vanilla", "speculative[k=2]", "speculative[k=4]", "prompt_lookup[k=8]")
    )
    own = verify_cost(untold, vanilla, lookup)

    def joined(record_of, **fields):
        """The run with one more cell before the others: prompt lookup's records, changed."""
        other = dataclasses.replace(lookup, label="other", **fields)
        records = (record_of(r) for r in untold.records if r.cell == lookup.label and r.trace is not None)
        header = dataclasses.replace(untold.header, cells=(other, *untold.header.cells))
        return dataclasses.replace(untold, header=header, records=(*records, *untold.records))

    def tripled(record, keep=1.0):
        first, *rest = record.trace.steps
        kept = rest[: max(1, int(keep * len(rest)))]
        steps = tuple(dataclasses.replace(step, seconds=3 * step.seconds) for step in kept)
        return dataclasses.replace(
            record, cell="other", trace=dataclasses.replace(record.trace, steps=(first, *steps))
        )

    def timed(record):
        told = tripled(record)
        steps = tuple(
            dataclasses.replace(step, draft_forwards=1, draft_seconds=0.0) for step in told.trace.steps
        )
        return dataclasses.replace(told, trace=dataclasses.replace(told.trace, steps=steps))

    # other threads; answers that are not the target's; a draft model
    for run in (
        joined(tripled, threads=2),
        joined(tripled, method="hamburger", knobs={"confidence": 0.5}),
        joined(timed),
        joined(lambda record: tripled(record, keep=0.7)),
    ):
        assert any(record.cell == "other" for record in run.records)
        for cell in (None, two, four):
            assert verify_cost(run, vanilla, cell) == own
    # where the other has the more steps, it is the one
    other = {r.sample_id for r in untold.answered(lookup.label)[:2]}
    run = joined(tripled)
    fewer = tuple(r for r in run.records if r.cell != lookup.label or r.sample_id not in other)
    lent = verify_cost(dataclasses.replace(run, records=fewer), vanilla, two)
    assert lent.by_rows == pytest.approx({rows: 3 * cost for rows, cost in own.by_rows.items()})


def test_a_width_of_a_few_steps_is_not_measured(tmp_path):
    run = spec_run(tmp_path, told=True)
    vanilla, two = (
        next(cell for cell in run.header.cells if cell.label == label)
        for label in ("vanilla", "speculative[k=2]")
    )
    left = MIN_STEPS - 1
    records = []
    for record in run.records:
        if record.cell == two.label and record.trace is not None:
            num = min(left, len(record.trace.steps) - 1)
            left -= num
            trace = dataclasses.replace(record.trace, steps=record.trace.steps[: 1 + num])
            record = dataclasses.replace(record, trace=trace)
        records.append(record)
    assert left == 0
    # what it has is too little; its costs are lent to it
    few = dataclasses.replace(run, records=tuple(records))
    lookup = next(cell for cell in run.header.cells if cell.method == "prompt_lookup")
    assert verify_cost(run, vanilla, two) != verify_cost(run, vanilla, lookup)
    assert verify_cost(few, vanilla, two) == verify_cost(few, vanilla, lookup)


def test_rounds_that_drafted_nothing_are_vanilla_steps_in_the_speed_up(tmp_path):
    run = spec_run(tmp_path, told=True)
    lookup = next(cell for cell in run.header.cells if cell.method == "prompt_lookup")
    assert draft_costs(run, lookup).share == 1

    def without_a_hit(record):
        if record.cell != lookup.label or record.trace is None:
            return record
        first, *rest = record.trace.steps
        steps = (
            dataclasses.replace(step, tokens=step.tokens[:1], drafted=0, accepted=0)
            if place % 3 == 0
            else step
            for place, step in enumerate(rest)
        )
        return dataclasses.replace(record, trace=dataclasses.replace(record.trace, steps=(first, *steps)))

    found = dataclasses.replace(run, records=tuple(map(without_a_hit, run.records)))
    steps = [step for r in found.answered(lookup.label) for step in r.trace.steps[1:]]
    idle = sum(step.drafted == 0 for step in steps)
    assert idle
    assert draft_costs(found, lookup).share == pytest.approx(1 - idle / len(steps))


def test_a_batch_has_no_cost_of_its_own_rows(tmp_path):
    run = spec_run(tmp_path, told=True)
    cells = tuple(dataclasses.replace(cell, batch=4) for cell in run.header.cells)
    batch = dataclasses.replace(run, header=dataclasses.replace(run.header, cells=cells))
    drafting = [cell for cell in run.header.cells if draft_costs(run, cell) is not None]
    assert drafting
    assert all(draft_costs(batch, dataclasses.replace(cell, batch=4)) is None for cell in drafting)


def test_a_cell_without_vanilla_under_its_conditions_has_no_costs(tmp_path):
    run = spec_run(tmp_path, told=True)
    cells = tuple(
        dataclasses.replace(cell, threads=2) if cell.method == "speculative" else cell
        for cell in run.header.cells
    )
    other = dataclasses.replace(run, header=dataclasses.replace(run.header, cells=cells))
    assert draft_costs(run, run.header.cells[1]) is not None
    assert draft_costs(other, cells[1]) is None


def test_a_draft_model_that_nothing_times_is_not_free(tmp_path):
    run = spec_run(tmp_path, told=True)
    drafting = next(cell for cell in run.header.cells if cell.method == "speculative")
    # no sample of vanilla has a step to compare with
    records = tuple(
        dataclasses.replace(r, trace=dataclasses.replace(r.trace, steps=r.trace.steps[:1]))
        if r.cell == "vanilla" and r.trace is not None
        else r
        for r in run.records
    )
    assert draft_costs(dataclasses.replace(run, records=records), drafting).delta is None
    # the verifications of another cell took longer than its whole steps
    untold = slower(spec_run(tmp_path / "untold", told=False), "prompt_lookup[k=8]", 50.0)
    assert draft_costs(untold, drafting).delta is None


def test_the_demos_run_says_what_was_read_off_it_by_hand(shared_data):
    run = load_run(shared_data / "runs" / "demo-amx-2-cores")
    cell = next(cell for cell in run.header.cells if cell.label == "speculative[k=4]")
    costs = draft_costs(run, cell)
    assert [round(share, 2) for share in costs.acceptance] == [0.99, 0.98, 0.99, 0.93]
    assert costs.delta == pytest.approx(0.8, abs=0.03)
    assert "the draft's cost limits it" in costs.limit


def test_the_terminals_table_says_acceptance_by_place_and_what_limits_each_setting(tmp_path):
    from hambench.analysis.summary import render_table

    run = load_run(write_run(tmp_path / "run", per_task=2))
    lines = [line for line in render_table(run).splitlines() if "drafts accepted by place" in line]
    assert [line.split(":")[0] for line in lines] == [
        "speculative[k=2]",
        "speculative[k=4]",
        "prompt_lookup[k=8]",
    ]
    costs = draft_costs(run, run.header.cells[2])
    assert " ".join(f"{share:.2f}" for share in costs.acceptance) in lines[1]
    assert costs.limit in lines[1]
