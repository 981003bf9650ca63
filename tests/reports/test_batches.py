"""The curve over batch: what is drawn, what is taken at each batch, and where a method stops paying."""

from types import SimpleNamespace

import pytest

from hambench.analysis.batches.curve import BatchPoint, batch_points, choices, setting_of, stops_paying
from hambench.records import Cell, Comparison, Estimate
from hambench.reports.page.html import render_html
from hambench.reports.sections.batches import batches_section, finding
from hambench.reports.view import View
from hambench.runner.request import RunRequest
from hambench.runner.start import start_run
from hambench.runner.sweep import Sweep


def cell(method, batch, **knobs):
    words = [f"{name}={value}" for name, value in knobs.items()]
    label = f"{method}[{','.join([*words, f'batch={batch}'])}]"
    return Cell(method=method, label=label, knobs=knobs, model="m", dtype="bfloat16", batch=batch)


def point(method, batch, gain=None, low=None, high=None, verdict="inconclusive", tps=100.0, **knobs):
    one = cell(method, batch, **knobs)
    compared = None
    if gain is not None:
        compared = Comparison(
            candidate=one.label,
            baseline=f"vanilla[batch={batch}]",
            group="all",
            metric="tps",
            effect=Estimate(value=gain, low=low, high=high, n=9),
            verdict=verdict,
        )
    measured = SimpleNamespace(tps=tps, user_tps=tps / batch)
    return BatchPoint(cell=one, setting=setting_of(one), measured=measured, compared=compared)


POINTS = [
    point("vanilla", 1, tps=100.0),
    point("vanilla", 8, tps=450.0),
    point("speculative", 1, 1.4, 1.35, 1.45, "better", k=4),
    point("speculative", 8, 0.8, 0.75, 0.85, "worse", k=4),
    point("prompt_lookup", 1, 1.37, 1.30, 1.44, "better"),
    point("prompt_lookup", 8, 1.2, 1.1, 1.3, "better"),
    point("suffix", 1, 1.0, 0.9, 1.1),
    point("suffix", 8, 1.02, 0.9, 1.1),
]


def test_the_batch_is_not_part_of_a_setting():
    assert setting_of(cell("vanilla", 4)) == "vanilla"
    assert setting_of(cell("speculative", 4, k=2)) == "speculative[k=2]"
    alone = Cell(method="vanilla", label="vanilla", knobs={}, model="m", dtype="bfloat16")
    assert setting_of(alone) == "vanilla"
    assert batch_points([alone], {"vanilla": None}, {}) == []


def test_the_simplest_setting_within_the_interval_of_the_fastest_is_taken():
    at_one, at_eight = choices(POINTS)
    # speculation is fastest at 1; what comes before prompt lookup in the run is the fastest itself
    assert (at_one.batch, at_one.fastest.setting, at_one.chosen.setting) == (
        1,
        "speculative[k=4]",
        "speculative[k=4]",
    )
    assert (at_eight.batch, at_eight.chosen.setting) == (8, "prompt_lookup")
    reordered = sorted(POINTS, key=lambda p: p.cell.method != "prompt_lookup")
    assert choices(reordered)[0].chosen.setting == "prompt_lookup"
    assert choices(reordered)[0].fastest.setting == "speculative[k=4]"


def test_vanilla_is_taken_where_nobody_is_shown_to_be_faster():
    points = [POINTS[0], point("suffix", 1, 1.3, 0.9, 1.8)]
    (choice,) = choices(points)
    assert choice.chosen.setting == "vanilla"
    assert choice.fastest.setting == "suffix"


def test_where_a_method_stops_paying_is_the_smallest_batch_from_which_on_it_is_not_shown_to():
    assert stops_paying(POINTS) == {"speculative[k=4]": 8, "prompt_lookup": None, "suffix": 1}
    said = finding(POINTS)
    assert "Vanilla yields 4.50 times as much at batch 8 as at batch 1" in said
    assert "speculative[k=4] is not shown to pay from batch 8 on" in said
    assert "prompt_lookup still pays at batch 8" in said
    assert "suffix is shown to pay at no batch" in said


@pytest.fixture(scope="module")
def run(tiny_model, rows, tmp_path_factory):
    sweep = Sweep(
        model=str(tiny_model), methods=("vanilla", "prompt_lookup"), dtype="float32", batches=(1, 2)
    )
    request = RunRequest(
        sweep=sweep, suite="longbench", tasks=("lcc",), data=rows, limit=3, max_new_tokens=8, fidelity=False
    )
    return start_run(request, tmp_path_factory.mktemp("runs") / "batches")


def test_the_report_of_a_run_over_batches_has_the_curve_and_the_choice(run):
    section = batches_section(View(run))
    (figure,), (table,) = section.figures, section.tables
    assert [row[0].text for row in table.rows] == ["1", "2"]
    settings = {row[0].text for row in figure.table.rows}
    assert settings == {"vanilla", "prompt_lookup"}
    assert all(row[2].value > 0 and row[3].value > 0 for row in figure.table.rows)
    assert all(row[6].value > 0 for row in figure.table.rows)
    page = render_html([run])
    assert "Speed over batch" in page
    assert "what to take" in page.lower()


def test_a_run_of_one_batch_has_no_such_page(tiny_model, rows, tmp_path):
    sweep = Sweep(model=str(tiny_model), methods=("vanilla",), dtype="float32")
    request = RunRequest(
        sweep=sweep, suite="longbench", tasks=("lcc",), data=rows, limit=1, max_new_tokens=4, fidelity=False
    )
    assert batches_section(View(start_run(request, tmp_path / "run"))) is None
