"""What the strip says follows from the comparisons, and from nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import synthetic

from hambench.groups import ALL
from hambench.records import Comparison, Estimate, Verdict
from hambench.reports.compared import around
from hambench.reports.page.cautions import cautions, watermark
from hambench.reports.page.verdicts import answer, method_verdicts, percent_change, sentence
from hambench.reports.view import View, merge, view_cells
from hambench.run_notes import Note
from hambench.store import Run


def compared(metric: str, verdict: Verdict, value: float, cell: str = "c", **more: object) -> Comparison:
    effect = Estimate(value=value, low=value - 0.1, high=value + 0.1, n=50)
    return Comparison(
        candidate=cell, baseline="vanilla", group=ALL, metric=metric, effect=effect, verdict=verdict, **more
    )  # type: ignore[arg-type]


def judged(run: Run, **verdicts: tuple[Verdict, float, Verdict]) -> View:
    """A view whose comparisons are given: label → (speed verdict, ratio, accuracy verdict)."""
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
        found[label, ALL, "kv_bytes"] = compared("kv_bytes", "better", 0.69, label)
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
    assert "needs more samples" in text


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
        "1.71× [1.61, 1.81] TPS, KV −31 %, accuracy −0.5 pt [−0.6, −0.4]: faster, less KV memory and "
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


@pytest.mark.parametrize("metric", ["tps", "kv_bytes"])
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


def test_equal_tokens_leave_nothing_uncertain() -> None:
    comparison = replace(
        compared("accuracy", "equivalent", 0.0), effect=Estimate(value=0.0, low=-7.0, high=7.0, n=9)
    )
    assert around(40.0, comparison).low is None


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
