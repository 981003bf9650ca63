import dataclasses

import pandas as pd
import pytest

import hambench
from hambench.api import open_run
from hambench.errors import UnknownNameError
from hambench.kernels.cpu.build import find_compiler
from hambench.records import Cell


@pytest.fixture(scope="module")
def results(tiny_model, rows, tmp_path_factory):
    return hambench.run(
        methods=["vanilla", "speculative"],
        knobs={"k": [3]},
        model=str(tiny_model),
        dtype="float32",
        suite="longbench",
        tasks=("lcc", "multifieldqa_en"),
        data=rows,
        limit=2,
        max_new_tokens=5,
        out=tmp_path_factory.mktemp("api") / "run",
    )


def test_results_are_frames(results):
    assert list(results.cells["cell"]) == ["vanilla", "speculative[k=3]"]
    assert isinstance(results.samples, pd.DataFrame)
    assert len(results.samples) == 2 * 2 * 2
    assert set(results.samples["new_tokens"]) == {5}
    assert results.samples["score"].notna().all()
    assert (results.cells["tps"] > 0).all()


def test_axes_are_those_of_the_command_line(tiny_model, rows, tmp_path):
    results = hambench.run(
        methods=["vanilla"],
        axes={"contexts": [100, 400], "threads": [1]},
        model=str(tiny_model),
        dtype="float32",
        tasks=("lcc",),
        data=rows,
        limit=1,
        max_new_tokens=2,
        out=tmp_path / "run",
    )
    assert list(results.cells["cell"]) == ["vanilla[threads=1,context=100]", "vanilla[threads=1,context=400]"]
    assert (
        list(results.cells["context"]) == list(results.tasks.query("group == 'all'")["context"]) == [100, 400]
    )
    fields = {field.name for field in dataclasses.fields(Cell)} - {"label", "knobs", "own_sizes", "run"}
    assert fields <= set(results.cells.columns)
    # by default as on the command line: native where it can be had
    expected = "reference" if find_compiler() is None else "native"
    assert {cell.kernels for cell in results.run.header.cells} == {expected}
    with pytest.raises(UnknownNameError, match="did you mean contexts"):
        hambench.run(methods=["vanilla"], axes={"context": [100]}, out=tmp_path / "other")


def test_comparisons_are_paired_with_the_baseline_and_have_a_verdict(results):
    rows = results.comparisons
    assert set(rows["candidate"]) == {"speculative[k=3]"}
    assert set(rows["baseline"]) == {"vanilla"}
    # a lossless method's answers are the baseline's, token by token
    accuracy = rows[(rows["metric"] == "accuracy") & (rows["group"] == "all")].iloc[0]
    assert (accuracy["effect"], accuracy["verdict"]) == (0, "equivalent")
    assert rows["verdict"].notna().all()


def test_lossless_methods_score_the_same(results):
    by_cell = results.samples.pivot_table(index="sample_id", columns="cell", values="score")
    assert (by_cell["vanilla"] == by_cell["speculative[k=3]"]).all()


def test_groups_go_down_to_tasks(results):
    assert {"all"} < set(results.tasks["group"])


def test_a_stored_run_gives_the_same_frames(results):
    again = open_run(results.path)
    pd.testing.assert_frame_equal(again.cells, results.cells)
