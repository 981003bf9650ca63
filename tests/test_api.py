import pandas as pd
import pytest

import hambench
from hambench.api import load


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


def test_lossless_methods_score_the_same(results):
    by_cell = results.samples.pivot_table(index="sample_id", columns="cell", values="score")
    assert (by_cell["vanilla"] == by_cell["speculative[k=3]"]).all()


def test_groups_go_down_to_tasks(results):
    assert {"all"} < set(results.tasks["group"])


def test_a_stored_run_gives_the_same_frames(results):
    again = load(results.path)
    pd.testing.assert_frame_equal(again.cells, results.cells)
