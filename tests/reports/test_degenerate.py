"""Every state of a run has a page that says what is missing; nothing prints NaN."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic
from page_parser import Parsed

from hambench.records import Cell, Sample
from hambench.reports import ReportOptions, render_html
from hambench.store import Run, load_run


def simulated(tmp_path: Path, cells: tuple[Cell, ...] | None = None, **options: object) -> Run:
    return load_run(synthetic.write_run(tmp_path / "run", cells, **options))


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text.split("</style>")[1].split("<script>")[0]))


def check(page: str) -> str:
    parsed = Parsed(page)
    assert parsed.problems == []
    assert len(parsed.ids) == len(set(parsed.ids))
    text = plain(page)
    for word in ("nan", "NaN", "inf", "Traceback", "Undefined"):
        assert not re.search(rf"(?<![\w.]){word}(?![\w-])", text), word
    # the word may stand in an answer, but not alone where a number should
    assert not re.search(r'>\s*None\s*<|="None"', page)
    return text


ONE = (synthetic.TASKS[0],)
TWO = synthetic.TASKS[:2]
CELLS = (*synthetic.cells()[:2], *synthetic.cells()[4:6])


def test_one_method_has_nothing_to_choose(tmp_path: Path) -> None:
    run = simulated(tmp_path, synthetic.cells()[:1], tasks=ONE, per_task=3)
    text = check(render_html([run]))
    assert "Only vanilla was run" in text
    assert "needs HAMburger cells" in text


def test_one_sample_gives_no_interval_and_no_verdict(tmp_path: Path) -> None:
    run = simulated(tmp_path, CELLS, tasks=ONE, per_task=1, error_rate=0.0)
    text = check(render_html([run]))
    assert "inconclusive" in text


def test_a_run_where_everything_failed_says_so(tmp_path: Path) -> None:
    run = simulated(tmp_path, CELLS, tasks=ONE, per_task=3, error_rate=1.0)
    text = check(render_html([run]))
    assert "every sample failed" in text
    assert "12 of 12 answers failed" in text
    assert "no cell has both numbers" in text


def test_a_run_without_scores_says_nothing_about_accuracy(tmp_path: Path) -> None:
    run = replace(simulated(tmp_path, CELLS, tasks=ONE, per_task=3), scores=())
    text = check(render_html([run]))
    assert "Not scored" in text


def test_a_run_without_baseline_calls_nothing_faster(tmp_path: Path) -> None:
    run = simulated(tmp_path, synthetic.cells()[1:5], tasks=ONE, per_task=3)
    text = check(render_html([run]))
    assert "No baseline" in text
    assert "▲" not in text.split("Notes")[0]


def test_a_run_that_has_not_begun_renders(tmp_path: Path) -> None:
    run = replace(simulated(tmp_path, CELLS, tasks=ONE, per_task=2), records=(), scores=(), telemetry=())
    text = check(render_html([run]))
    assert "Partial run" in text
    assert "0 of 8 answers" in text


def test_nan_and_infinite_scores_are_absent_not_zero(tmp_path: Path) -> None:
    run = simulated(tmp_path, CELLS, tasks=ONE, per_task=4, error_rate=0.0)
    broken = tuple(
        replace(score, value=float("nan") if index % 2 else float("inf"))
        for index, score in enumerate(run.scores)
    )
    text = check(render_html([replace(run, scores=broken)]))
    assert "no score" in text


def test_a_step_that_took_no_time_does_not_break_a_figure(tmp_path: Path) -> None:
    run = simulated(tmp_path, CELLS, tasks=ONE, per_task=2, error_rate=0.0)
    records = []
    for record in run.records:
        assert record.trace is not None
        steps = tuple(replace(step, seconds=0.0) for step in record.trace.steps)
        records.append(replace(record, trace=replace(record.trace, steps=steps)))
    check(render_html([replace(run, records=tuple(records))]))


def test_a_peer_that_tells_only_tokens_and_times_is_shown_without_the_rest(tmp_path: Path) -> None:
    run = simulated(tmp_path, CELLS, tasks=ONE, per_task=3, error_rate=0.0)
    unknown = dict.fromkeys(
        ("target_forwards", "draft_forwards", "micro_forwards", "drafted", "accepted", "kv_slots", "kv_bytes")
    )
    records = []
    for record in run.records:
        if record.cell == CELLS[1].label:
            assert record.trace is not None
            steps = tuple(replace(step, **unknown) for step in record.trace.steps)
            record = replace(record, trace=replace(record.trace, steps=steps))
        records.append(record)
    text = check(render_html([replace(run, records=tuple(records))]))
    assert f"Left out because a number is missing: {CELLS[1].label}" in text


@pytest.mark.slow
def test_thirty_methods_with_names_of_eighty_characters_render(tmp_path: Path) -> None:
    cells = (
        synthetic.cells()[0],
        *(
            Cell(
                method=f"method{i}-{'long' * 20}",
                label=f"method{i}-{'name' * 19}",
                knobs={},
                model="toy",
                dtype="x",
            )
            for i in range(30)
        ),
    )
    run = simulated(tmp_path, cells, tasks=ONE, per_task=2)
    text = check(render_html([run], options=ReportOptions(samples=1)))
    assert f"method29-{'name' * 19}" in text


def test_a_task_name_of_eighty_characters_is_cut_in_figures_only(tmp_path: Path) -> None:
    tasks = tuple(replace(task, name=f"{task.name}-{'y' * 80}") for task in TWO)
    run = simulated(tmp_path, synthetic.cells()[:3], tasks=tasks, per_task=2)
    page = render_html([run])
    check(page)
    assert f"{TWO[0].name}-{'y' * 80}" in page


def test_runs_of_one_machine_share_a_plot_and_others_do_not(tmp_path: Path) -> None:
    cells = synthetic.cells()
    one = load_run(synthetic.write_run(tmp_path / "a", cells[:2], tasks=ONE, per_task=3))
    two = load_run(
        synthetic.write_run(
            tmp_path / "b", cells[:1] + cells[3:4], tasks=ONE, per_task=3, header_changes={"run_id": "other"}
        )
    )
    together = render_html([one, two])
    check(together)
    assert together.count('id="verdict"') == 1
    assert "prompt_lookup" in together
    assert "vanilla @other" in together
    machines = ((one, {"cpu": "first"}), (two, {"cpu": "second"}))
    apart = render_html([replace(run, header=replace(run.header, environment=env)) for run, env in machines])
    check(apart)
    assert apart.count('id="r0-verdict"') == apart.count('id="r1-verdict"') == 1


def test_runs_of_other_prompts_do_not_share_a_plot(tmp_path: Path) -> None:
    one = simulated(tmp_path, synthetic.cells()[:1], tasks=ONE, per_task=2)
    other = replace(one, header=replace(one.header, data_hashes={"other": "1" * 64}))
    assert 'id="r1-verdict"' in render_html([one, other], options=ReportOptions(samples="none"))


def test_no_run_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        render_html([])


def test_what_the_drilldown_leaves_out_is_said(tiny_run: Run) -> None:
    page = render_html([tiny_run], options=ReportOptions(samples=3))
    assert f"3 of {len(tiny_run.samples)} samples are shown" in page
    assert page.count("data-sample=") == 3
    assert "Left out by" in render_html([tiny_run], options=ReportOptions(samples="none"))


@pytest.mark.slow
def test_a_large_run_stays_within_five_megabytes(tmp_path: Path) -> None:
    # more samples than the cap: past it, only the cap decides the size
    tasks = tuple(replace(synthetic.TASKS[i % 6], name=f"task{i}", answer_tokens=120) for i in range(16))
    cells = (synthetic.cells()[0], synthetic.cells()[2], synthetic.cells()[5])
    run = simulated(tmp_path, cells, tasks=tasks, per_task=14)
    assert isinstance(next(iter(run.samples.values())), Sample)
    page = render_html([run])
    assert len(page.encode()) <= 5_000_000
    assert f"of {16 * 14} samples are shown" in page
