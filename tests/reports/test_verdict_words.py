"""What the strip says follows from the comparisons, and from nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import synthetic

from hambench.analysis.bandwidth_limit import limits_of
from hambench.groups import ALL
from hambench.records import Comparison, Estimate, Verdict
from hambench.reports.compared import around
from hambench.reports.page.cautions import cautions, watermark
from hambench.reports.page.verdict_words import (
    ACCURACY_WORDS,
    KV_METRIC,
    KV_WORDS,
    SPEED_WORDS,
    SYMBOLS,
    TONES,
    answer,
    method_verdicts,
    percent_change,
    sentence,
    stats,
)
from hambench.reports.sections.overview import overview_figure
from hambench.reports.sections.tables import summary_table
from hambench.reports.view import View, merge, view_cells
from hambench.run_notes import Note
from hambench.store import Run, load_run


def compared(metric: str, verdict: Verdict, value: float, cell: str = "c", **more: object) -> Comparison:
    effect = Estimate(value=value, low=value - 0.1, high=value + 0.1, n=50)
    return Comparison(
        candidate=cell, baseline="vanilla", group=ALL, metric=metric, effect=effect, verdict=verdict, **more
    )  # type: ignore[arg-type]


def judged(run: Run, *, fidelity: Verdict | None = None, **verdicts: tuple[Verdict, float, Verdict]) -> View:
    """A view whose comparisons are given: label → (speed verdict, ratio, accuracy verdict), and one of all regrets."""
    view = View(run)
    names = {
        "spec2": "speculative[k=2]",
        "ham5": "hamburger[confidence=0.5]",
        "ham9": "hamburger[confidence=0.9]",
        "control": "hamburger[confidence=1.01]",
    }
    found = {}
    for short, (speed, ratio, accuracy) in verdicts.items():
        label = names[short]
        found[label, ALL, "tps"] = compared("tps", speed, ratio, label)
        found[label, ALL, "accuracy"] = compared(
            "accuracy", accuracy, -0.5, label, minimum_detectable_effect=2.25
        )
        found[label, ALL, KV_METRIC] = compared(KV_METRIC, "better", 0.69, label)
        if fidelity is not None:
            found[label, ALL, "regret"] = compared("regret", fidelity, 1.48, label)
    view.__dict__["comparisons"] = found
    return view


def test_the_fastest_that_holds_accuracy_is_the_answer(run: Run) -> None:
    view = judged(run, spec2=("better", 1.3, "equivalent"), ham9=("better", 1.2, "equivalent"))
    assert answer(view).startswith("Ship speculative[k=2]: 1.30×")


def test_a_faster_one_that_is_undecided_is_named_but_not_recommended(run: Run) -> None:
    view = judged(run, spec2=("better", 1.3, "equivalent"), ham5=("better", 1.9, "inconclusive"))
    text = answer(view)
    assert text.startswith("Ship speculative[k=2]")
    assert "hamburger[confidence=0.5] is faster still (1.90×" in text
    assert "whether it holds accuracy is open" in text


def test_what_is_faster_but_less_accurate_is_never_recommended(run: Run) -> None:
    text = answer(judged(run, ham5=("better", 1.9, "worse")))
    assert text.startswith("Keep vanilla")
    assert "less accurate" in text


def test_undecided_accuracy_is_said_with_what_could_have_been_seen(run: Run) -> None:
    text = answer(judged(run, ham5=("better", 1.9, "inconclusive")))
    assert "fastest setting that was not shown to lose accuracy" in text
    assert "−0.5 pt [−0.6, −0.4]" in text
    assert "2.2" in text
    assert "Ship" not in text


def test_nothing_faster_keeps_the_baseline(run: Run) -> None:
    assert answer(judged(run, spec2=("worse", 0.8, "equivalent"))).startswith("Keep vanilla: nothing")


def test_a_sentence_has_effect_interval_and_words(run: Run) -> None:
    view = judged(run, ham5=("better", 1.71, "inconclusive"))
    text = sentence(view, view.by_label["hamburger[confidence=0.5]"])
    assert text == (
        "1.71× [1.61, 1.81] TPS, KV per position −31 %, accuracy −0.5 pt [−0.6, −0.4]: faster, less KV memory and "
        "accuracy inconclusive (smallest difference it could show: 2.2 pt)."
    )


def test_each_method_has_one_verdict_and_the_control_is_never_its_best(run: Run) -> None:
    view = judged(
        run,
        ham5=("better", 1.9, "worse"),
        ham9=("better", 1.1, "equivalent"),
        control=("better", 3.0, "equivalent"),
    )
    verdicts = {verdict.cell.method: verdict for verdict in method_verdicts(view)}
    assert list(verdicts) == ["vanilla", "speculative", "prompt_lookup", "hamburger"]
    assert verdicts["hamburger"].cell.label == "hamburger[confidence=0.9]"
    assert verdicts["hamburger"].chosen_of == 4
    assert "one-token control" in dict(verdicts["hamburger"].others)["hamburger[confidence=1.01]"]


def test_changes_in_percent_have_one_digit_only_when_small() -> None:
    assert percent_change(0.69) == "−31 %"
    assert percent_change(1.021) == "+2.1 %"
    assert percent_change(1.0) == "0.0 %"


@pytest.mark.parametrize("metric", ["tps", KV_METRIC])
def test_a_ratio_interval_is_carried_to_the_value(metric: str) -> None:
    comparison = replace(compared(metric, "better", 2.0), effect=Estimate(value=2.0, low=1.8, high=2.2, n=9))
    shown = around(100.0, comparison)
    assert (shown.value, shown.low, shown.high) == (100.0, pytest.approx(90.0), pytest.approx(110.0))


def test_an_accuracy_interval_is_shifted_and_kept_in_range() -> None:
    comparison = replace(
        compared("accuracy", "inconclusive", -1.0), effect=Estimate(value=-1.0, low=-4.0, high=2.0, n=9)
    )
    shown = around(99.5, comparison)
    assert (shown.low, shown.high) == (96.5, 100.0)


def test_no_interval_is_hidden_because_the_verdict_is_equivalent() -> None:
    comparison = replace(
        compared("accuracy", "equivalent", 0.0), effect=Estimate(value=0.0, low=-1.0, high=1.0, n=9)
    )
    assert (around(40.0, comparison).low, around(40.0, comparison).high) == (39.0, 41.0)


FASTER = "hamburger[confidence=0.5]"


@pytest.mark.parametrize("fidelity", [None, *get_args(Verdict)])
@pytest.mark.parametrize("accuracy", get_args(Verdict))
@pytest.mark.parametrize("speed", get_args(Verdict))
def test_every_word_is_handled_by_every_part_and_only_worse_is_less_accurate(
    run: Run, speed: Verdict, accuracy: Verdict, fidelity: Verdict | None
) -> None:
    view = judged(run, ham5=(speed, 1.9, accuracy), fidelity=fidelity)
    cell = view.by_label[FASTER]
    headline = answer(view)
    said = sentence(view, cell)
    glance = overview_figure(view)
    assert glance is not None
    parts = [headline, said, glance.finding, " ".join(stat.word for stat in stats(view, cell))]
    assert all(parts)
    faster, left = speed == "better", fidelity == "worse" and accuracy != "worse"
    assert ("less accurate" in headline) == (accuracy == "worse" and faster)
    assert ("further from the target's own choices" in headline) == (left and faster)
    assert ("shown to leave the target" in glance.finding) == (left and faster)
    assert ("less accurate" in said) == (accuracy == "worse")
    assert ("further from the target's own choices" in said) == (fidelity == "worse")
    assert headline.startswith("Ship ") == (faster and accuracy in ("better", "equivalent") and not left)
    assert ("fastest setting" in headline) == (
        faster and accuracy in ("inconclusive", "not comparable") and not left
    )
    assert glance.finding.startswith("None of") == (speed != "better")
    row = next(r for r in summary_table(view).rows if r[0].text == FASTER)
    column = [c.title for c in summary_table(view).columns].index("Accuracy verdict")
    assert row[column].text.startswith(SYMBOLS[accuracy])


@pytest.mark.parametrize("fidelity", [None, *get_args(Verdict)])
@pytest.mark.parametrize("num_equal", [9, 18])
def test_a_lossless_method_is_taken_at_its_word_only_where_its_regret_allows_it(
    run: Run, num_equal: int, fidelity: Verdict | None
) -> None:
    view = judged(run, spec2=("better", 1.3, "inconclusive"), fidelity=fidelity)
    key = ("speculative[k=2]", ALL, "accuracy")
    view.comparisons[key] = replace(view.comparisons[key], num_equal=num_equal, num_answers=18)
    borne_out = fidelity == "equivalent" or (num_equal == 18 and fidelity != "worse")
    glance = overview_figure(view)
    assert glance is not None
    assert answer(view).startswith("Ship ") == borne_out
    assert ("lossless by design" in answer(view)) == borne_out
    assert ("lossless by design" in glance.finding) == borne_out


def test_a_setting_that_left_the_target_ranks_below_one_that_is_open(run: Run) -> None:
    view = judged(run, ham9=("better", 1.1, "inconclusive"), ham5=("better", 1.9, "equivalent"))
    view.comparisons[FASTER, ALL, "regret"] = compared("regret", "worse", 1.48, FASTER)
    verdicts = {verdict.cell.method: verdict for verdict in method_verdicts(view)}
    assert verdicts["hamburger"].cell.label == "hamburger[confidence=0.9]"
    assert f"{FASTER} is faster and further from the target's own choices" in answer(view)


def test_the_words_of_every_table_are_all_the_words() -> None:
    for words in (SYMBOLS, TONES, SPEED_WORDS, ACCURACY_WORDS, KV_WORDS):
        assert set(words) == set(get_args(Verdict))
    assert [word for word, text in ACCURACY_WORDS.items() if "less" in text] == ["worse"]


@pytest.mark.parametrize(
    "tier", [("equivalent", "inconclusive"), ("inconclusive", "not comparable"), ("not comparable", "worse")]
)
def test_settings_rank_by_what_is_known_of_their_accuracy(run: Run, tier: tuple[Verdict, Verdict]) -> None:
    view = judged(run, ham9=("better", 1.1, tier[0]), ham5=("better", 1.9, tier[1]))
    verdicts = {verdict.cell.method: verdict for verdict in method_verdicts(view)}
    assert verdicts["hamburger"].cell.label == "hamburger[confidence=0.9]"


def test_a_run_without_scores_calls_nothing_less_accurate(tmp_path: Path) -> None:
    cells = synthetic.cells(confidences=(0.5,))
    samples, records, _ = synthetic.simulate(cells, per_task=3, error_rate=0)
    header = synthetic.header(cells, num_samples=len(samples), ignore_eos=True)
    unscored = load_run(synthetic.write(tmp_path / "run", header, samples, records, []))
    view = View(unscored)
    text = answer(view)
    assert "less accurate" not in text
    assert "fastest setting" in text or text.startswith("Ship ")
    for verdict in method_verdicts(view):
        assert "less accurate" not in verdict.sentence


def test_a_lossless_method_is_shipped_by_design_with_the_number_of_equal_answers(run: Run) -> None:
    for num_equal, fidelity, ships in (
        (18, None, True),
        (17, None, False),
        (9, "equivalent", True),
        (8, "equivalent", False),
    ):
        view = judged(run, spec2=("better", 1.3, "inconclusive"), fidelity=fidelity)
        found = view.comparisons["speculative[k=2]", ALL, "accuracy"]
        told = replace(found, num_equal=num_equal, num_answers=18)
        view.comparisons["speculative[k=2]", ALL, "accuracy"] = told
        text = answer(view)
        assert text.startswith("Ship ") == ships
        assert (f"lossless by design: {num_equal} of 18 answers" in text) == ships
    lossy = judged(run, ham5=("better", 1.3, "inconclusive"))
    told = replace(lossy.comparisons[FASTER, ALL, "accuracy"], num_equal=18, num_answers=18)
    lossy.comparisons[FASTER, ALL, "accuracy"] = told
    assert "Ship" not in answer(lossy)


@pytest.mark.parametrize("metric", ["tps", KV_METRIC])
def test_only_accuracy_is_lossless_by_design_on_a_card(run: Run, metric: str) -> None:
    view = judged(run, ham5=("equivalent", 1.0, "inconclusive"))
    reason = "in each of the 3 answers" if metric == KV_METRIC else ""
    effect = Estimate(value=1.0, n=3)
    view.comparisons[FASTER, ALL, metric] = replace(
        compared(metric, "equivalent", 1.0, FASTER), effect=effect, reason=reason
    )
    shown = {stat.title: stat.interval for stat in stats(view, view.by_label[FASTER])}
    title = "KV per position" if metric == KV_METRIC else "decode speed"
    assert shown[title] == (reason or "no interval: too few samples")
    assert "lossless by design" not in shown.values()


@pytest.mark.parametrize("changes", [{"ignore_eos": True}, {"think_end": "</think>"}])
def test_runs_that_were_not_asked_alike_do_not_share_a_plot(run: Run, changes: dict[str, object]) -> None:
    other = replace(run, header=replace(run.header, run_id="second", **changes))  # type: ignore[arg-type]
    assert len(merge([run, other])) == 2


def test_runs_of_other_samples_do_not_share_a_plot(run: Run) -> None:
    """Of a budget's samples the clock decides how many there are, and their mean score depends on which."""
    fewer = dict(list(run.samples.items())[:-1])
    kept = tuple(record for record in run.records if record.sample_id in fewer)
    header = replace(run.header, run_id="second")
    other = replace(run, header=header, samples=fewer, records=kept, scores=())
    assert len(merge([run, other])) == 2
    assert len(merge([run, replace(run, header=header)])) == 1


def test_vanilla_is_never_shipped_over_vanilla(run: Run) -> None:
    (merged,) = merge([run, replace(run, header=replace(run.header, run_id="second"))])
    view = View(merged)
    view.__dict__["comparisons"] = {
        (f"vanilla @{run.header.run_id}", ALL, "tps"): compared("tps", "better", 1.3),
        ("vanilla @second", ALL, "tps"): compared("tps", "better", 1.3),
        ("vanilla @second", ALL, "accuracy"): compared("accuracy", "equivalent", 0.0),
    }
    assert "Ship" not in answer(view)


def test_the_best_of_many_settings_says_so_and_its_interval_is_wider(run: Run) -> None:
    view = judged(run, ham9=("better", 1.2, "equivalent"))
    text = answer(view)
    num = sum(cell.method != "vanilla" and not cell.control for cell in view.cells)
    assert f"(best of {num} settings, interval widened for the choice)" in text
    assert "1.20× [1.10, 1.30]" not in text


def test_worst_cautions_come_first_and_each_kind_is_known(run: Run) -> None:
    notes = (
        Note("offline", "Offline edition: built here."),
        Note("dequantised", "Model: Q4_1 de-quantised to bfloat16."),
        Note("simulated", "simulated: invented"),
    )
    view = View(replace(run, header=replace(run.header, notes=notes), records=run.records[:-3]))
    found = cautions(view)
    assert [caution.severity for caution in found] == sorted(
        (caution.severity for caution in found), key=lambda severity: severity != "bad"
    )
    titles = [caution.title for caution in found]
    assert {"Simulated", "Partial run", "Offline edition", "De-quantised model", "CPU"} <= set(titles)
    mark = watermark(view)
    for word in ("simulated", "offline edition", "de-quantised model", "partial run", "CPU"):
        assert word in mark


def test_other_processes_are_told_of(run: Run) -> None:
    busy = tuple(replace(record, other_load=0.4) for record in run.records)
    assert "Disturbed" in [caution.title for caution in cautions(View(replace(run, records=busy)))]
    thinking = tuple(replace(record, text=f"Hm</think>{record.text}") for record in run.records)
    said = [caution.title for caution in cautions(View(replace(run, records=thinking)))]
    assert "Thinking is scored" in said
    cut = replace(run, records=thinking, header=replace(run.header, think_end="</think>"))
    assert "Thinking is scored" not in [caution.title for caution in cautions(View(cut))]
    assert "Disturbed" not in [caution.title for caution in cautions(View(run))]


def test_native_calls_that_went_alone_are_told_of(run: Run) -> None:
    first, *rest = run.records
    alone = replace(first, native_calls=40, native_calls_alone=10, contaminated=True)
    records = (alone, *(replace(record, native_calls=40, native_calls_alone=2) for record in rest))
    found = cautions(View(replace(run, records=records)))
    (text,) = [caution.text for caution in found if caution.title == "Threads went alone"]
    assert f"in 1 of {len(records)} answers the native engine made 25% of its calls on one thread" in text
    # nobody else took more of the machine
    assert "Disturbed" not in [caution.title for caution in found]
    quiet = tuple(replace(record, native_calls=40, native_calls_alone=2) for record in run.records)
    assert "Threads went alone" not in [c.title for c in cautions(View(replace(run, records=quiet)))]


@pytest.mark.parametrize(("threads", "told"), [(4, True), (3, False)])
def test_who_has_a_thread_on_every_core_is_told_to_leave_one(run: Run, threads: int, told: bool) -> None:
    environment = {**run.header.environment, "cpu_affinity": 4, "torch_threads": threads}
    busy = tuple(replace(record, other_load=0.4) for record in run.records)
    found = cautions(View(replace(run, header=replace(run.header, environment=environment), records=busy)))
    (text,) = [caution.text for caution in found if caution.title == "Disturbed"]
    assert ("`--threads 3`" in text) == told


def test_a_run_that_chose_its_threads_is_told_nothing_of_them(run: Run) -> None:
    environment = {**run.header.environment, "cpu_affinity": 4, "torch_threads": 4}
    cells = tuple(replace(cell, threads=2) for cell in run.header.cells)
    busy = tuple(replace(record, other_load=0.4) for record in run.records)
    header = replace(run.header, environment=environment, cells=cells)
    (text,) = [
        c.text for c in cautions(View(replace(run, header=header, records=busy))) if c.title == "Disturbed"
    ]
    assert "--threads" not in text


def test_cells_get_short_names_series_and_order() -> None:
    views = {view.label: view for view in view_cells(synthetic.cells())}
    assert views["speculative[k=4]"].short == "k=4"
    assert views["hamburger[confidence=0.8]"].short == "0.8"
    assert views["hamburger[confidence=0.8]"].order == 0.8
    assert views["vanilla"].short == ""
    assert views["hamburger[confidence=1.01]"].control
    assert views["speculative[k=2]"].series == views["speculative[k=4]"].series


def test_merging_keeps_every_record_and_renames_what_clashes(run: Run) -> None:
    other = replace(run, header=replace(run.header, run_id="second"))
    (merged,) = merge([run, other])
    assert len(merged.records) == 2 * len(run.records)
    labels = [cell.label for cell in merged.header.cells]
    assert len(labels) == len(set(labels)) == 2 * len(run.header.cells)
    assert {record.cell for record in merged.records} == set(labels)


def at_pace(run: Run, factor: float, run_id: str) -> Run:
    """The same run at another moment of the machine."""
    records = tuple(
        record
        if record.trace is None
        else replace(
            record,
            trace=replace(
                record.trace,
                steps=tuple(replace(step, seconds=step.seconds * factor) for step in record.trace.steps),
            ),
        )
        for record in run.records
    )
    return replace(run, header=replace(run.header, run_id=run_id), records=records)


def test_a_joined_report_divides_every_cell_by_vanilla_of_its_own_run(run: Run) -> None:
    slow = at_pace(run, 1.5, "slow")
    alone = {view.run.header.run_id: view for view in (View(run), View(slow))}
    joined = View(merge([run, slow])[0])
    for cell in joined.cells:
        own = alone[cell.cell.run]
        label = cell.label.partition(" @")[0]
        base = joined.baseline_of(cell)
        assert base is not None
        assert base.cell.run == cell.cell.run
        for metric in ("tps", "accuracy"):
            there, here = own.compared(own.by_label[label], metric), joined.compared(cell, metric)
            assert (here is None) == (there is None)
            if here is not None and there is not None:
                assert here.effect == there.effect
                assert here.verdict == there.verdict
    # each run's vanilla is a baseline; neither is judged against the other
    for cell in joined.cells:
        if cell.method == "vanilla":
            assert joined.is_baseline(cell)
            assert joined.compared(cell, "tps") is None


def test_a_joined_report_holds_speeds_against_the_bandwidth_of_their_own_run(run: Run) -> None:
    slow = replace(
        run,
        header=replace(run.header, run_id="slow"),
        telemetry=tuple(
            {**reading, "read": reading["read"] / 2} if reading.get("kind") == "bandwidth" else reading
            for reading in run.telemetry
        ),
    )
    alone = limits_of(run)
    joined = limits_of(merge([run, slow])[0])
    assert alone
    for label, limit in alone.items():
        assert joined[f"{label} @{run.header.run_id}"].bandwidth == limit.bandwidth
        assert joined[f"{label} @slow"].bandwidth == limit.bandwidth / 2
