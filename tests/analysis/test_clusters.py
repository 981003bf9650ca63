"""Samples about one document are one cluster: the suite says so, and the statistics follow it."""

import dataclasses
import json

import pytest
import synthetic

from hambench.analysis.arms import cluster_of
from hambench.analysis.comparisons import compare_cells
from hambench.store import load_run
from hambench.suites import CaptureRequest, capture


def test_questions_about_one_document_are_one_cluster(tmp_path):
    rows = [
        {"context": context, "input": f"q{i}", "answers": ["a"], "all_classes": None, "length": 1}
        for i, context in enumerate(("one text", "one text", "another"))
    ]
    (tmp_path / "qasper.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second, third = capture(CaptureRequest("longbench", tasks=("qasper",), data=tmp_path)).samples
    assert cluster_of(first) == cluster_of(second) != cluster_of(third)


def test_one_question_in_two_languages_is_one_cluster_and_other_tasks_stand_alone(tmp_path):
    (tmp_path / "mgsm_en.tsv").write_text("1+1?\t2\n2+2?\t4\n")
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    asked = capture(
        CaptureRequest("standard", tasks=("mgsm_en_cot_en", "gsm8k_cot_llama"), data=tmp_path)
    ).samples
    english, other, alone = asked
    german = dataclasses.replace(english, sample_id="standard/mgsm_de/0", task="mgsm_de")
    assert cluster_of(english) == cluster_of(german) != cluster_of(other)
    assert cluster_of(alone) == (alone.sample_id,)


@pytest.fixture
def run(tmp_path):
    cells = synthetic.cells(confidences=(0.5,))
    return load_run(
        synthetic.write_run(tmp_path / "run", cells, tasks=synthetic.TASKS[:1], per_task=40, error_rate=0.0)
    )


def test_a_document_asked_about_ten_times_counts_less_than_ten_documents(run):
    def width(samples):
        changed = dataclasses.replace(run, samples=samples)
        (row,) = [
            each
            for each in compare_cells(changed, run.header.cells[-1].label, "vanilla", groups=["all"])
            if each.metric == "accuracy"
        ]
        return row.effect.high - row.effect.low

    # the same differences in every question about a document: ten answers hold no more than one
    together = {
        key: dataclasses.replace(sample, cluster=f"document {sample.doc_id // 10}")
        for key, sample in run.samples.items()
    }
    assert width(together) > 1.2 * width(run.samples)
