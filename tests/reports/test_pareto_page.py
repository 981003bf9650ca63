"""Which plots the Pareto page has: memory per task where a setting saves memory, and a curve per eviction rule."""

import dataclasses

import synthetic

from hambench.methods.kv_press import KVPressConfig
from hambench.registry import variant_of
from hambench.reports.sections.pareto_page import pareto_section, saves_memory
from hambench.reports.view import View
from hambench.store import load_run


def run_of(tmp_path, cells):
    return load_run(synthetic.write_run(tmp_path / "run", cells, per_task=4, error_rate=0.0))


def halved(run, label):
    """The run with one cell's KV bytes cut to half."""
    records = tuple(
        record
        if record.cell != label or record.trace is None
        else dataclasses.replace(
            record,
            trace=dataclasses.replace(
                record.trace,
                steps=tuple(
                    dataclasses.replace(step, kv_bytes=step.kv_bytes // 2) for step in record.trace.steps
                ),
            ),
        )
        for record in run.records
    )
    return dataclasses.replace(run, records=records)


def test_memory_per_task_is_drawn_where_a_setting_saves_memory(tmp_path):
    run = run_of(tmp_path, synthetic.cells(confidences=(0.5,)))
    label = run.header.cells[-1].label
    view = View(halved(run, label))
    assert saves_memory(view)
    figures = {figure.name: figure for figure in pareto_section(view).figures}
    assert {"pareto-kv-accuracy", "pareto-kv-regret", "pareto-tasks", "pareto-tasks-kv"} <= set(figures)
    assert "is the smallest in" in figures["pareto-tasks-kv"].finding
    assert "is the fastest in" in figures["pareto-tasks"].finding


def test_where_no_setting_saves_memory_the_figure_is_left_out(tmp_path):
    vanilla = [
        cell for cell in synthetic.cells(confidences=(0.5,)) if cell.method in ("vanilla", "speculative")
    ]
    view = View(run_of(tmp_path, vanilla))
    assert not saves_memory(view)
    assert "pareto-tasks-kv" not in [figure.name for figure in pareto_section(view).figures]


def test_each_eviction_rule_is_a_curve_of_its_own(tmp_path):
    vanilla = synthetic.cells(confidences=())[0]
    cells = [
        vanilla,
        *(
            dataclasses.replace(vanilla, label=config.label, method="kv_press", knobs=config.knobs())
            for press in ("snapkv", "knorm")
            for dtype in ("model", "int8")
            for ratio in (0.5, 0.9)
            for config in [KVPressConfig(press=press, ratio=ratio, kv_dtype=dtype)]
        ),
    ]
    assert [variant_of(cell) for cell in cells] == [
        "",
        *["snapkv"] * 2,
        *["snapkv int8"] * 2,
        *["knorm"] * 2,
        *["knorm int8"] * 2,
    ]
    view = View(run_of(tmp_path, cells))
    figure = next(f for f in pareto_section(view).figures if f.name == "pareto-kv-accuracy")
    lines = [
        line
        for line in figure.canvas.axes[0].get_lines()
        if len(line.get_xdata()) == 2 and line.get_linestyle() != "None"
    ]
    curves = [line for line in lines if line.get_linewidth() == 1.3]
    assert len(curves) == 4
