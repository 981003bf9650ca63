"""Columns of every task's rows: what would be scored wrongly is refused with file and line, before it is asked."""

import json

import pytest

from hambench.errors import DataError
from hambench.suites import CaptureRequest, capture
from hambench.suites.catalogue import ENTRIES
from hambench.suites.columns import check_row
from hambench.suites.offline import OFFLINE

LONG = {"context": "c", "input": "q", "answers": ["a"], "all_classes": None, "length": 1}
RIGHT = {
    "multifieldqa_en": LONG,
    "trec": {**LONG, "all_classes": ["a", "b"]},
    "ifeval": {"key": 1, "prompt": "p", "instruction_id_list": ["a:b"], "kwargs": [{}]},
    "mgsm_en_cot_en": {"question": "q", "answer_number": 3},
    "gsm8k_cot_llama": {"question": "q", "answer": "#### 1"},
    "arc_challenge_chat": {"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"},
    "humaneval_instruct": {"task_id": "HumanEval/0", "prompt": "p", "test": "t", "entry_point": "f"},
    "mbpp_instruct": {"task_id": 11, "text": "t", "code": "c", "test_list": ["assert f()"]},
}
WRONG = [
    ("multifieldqa_en", "answers", "red0"),
    ("multifieldqa_en", "answers", []),
    ("multifieldqa_en", "answers", [1900]),
    ("multifieldqa_en", "context", None),
    ("multifieldqa_en", "input", 5),
    ("trec", "all_classes", None),
    ("trec", "all_classes", "a b"),
    ("ifeval", "instruction_id_list", "a:b"),
    ("ifeval", "kwargs", {}),
    ("ifeval", "kwargs", []),
    ("mgsm_en_cot_en", "answer_number", "3"),
    ("gsm8k_cot_llama", "answer", 1),
    ("arc_challenge_chat", "choices", ["a", "b"]),
    ("arc_challenge_chat", "choices", {"text": ["a"], "label": ["A", "B"]}),
    ("arc_challenge_chat", "answerKey", 0),
    ("humaneval_instruct", "test", ["t"]),
    ("mbpp_instruct", "task_id", "11"),
    ("mbpp_instruct", "test_list", "assert f()"),
]


@pytest.mark.parametrize("task", RIGHT)
def test_rows_of_the_public_schema_pass(task):
    check_row(ENTRIES[task], RIGHT[task], "here")


@pytest.mark.parametrize(("task", "column", "value"), WRONG)
def test_another_kind_of_value_is_refused_with_its_place_and_column(task, column, value):
    with pytest.raises(DataError, match=rf"rows.jsonl, line 7: column.* '{column}'"):
        check_row(ENTRIES[task], {**RIGHT[task], column: value}, "rows.jsonl, line 7")


def test_every_official_task_has_a_schema():
    for entry in ENTRIES.values():
        with pytest.raises(DataError):
            check_row(entry, dict.fromkeys(entry.columns, 0.5), "here")


@pytest.mark.parametrize("each", OFFLINE.values(), ids=list(OFFLINE))
def test_built_rows_keep_the_schema_of_the_task_they_stand_in_for(each):
    for row in each.build(5):
        check_row(ENTRIES[each.counterpart], row, "here")


def test_a_run_is_refused_before_it_asks_anything(tmp_path):
    rows = [LONG, {**LONG, "answers": "a"}]
    (tmp_path / "multifieldqa_en.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"multifieldqa_en.jsonl, line 2: column 'answers'.*got 'a'"):
        capture(CaptureRequest("longbench", tasks=("multifieldqa_en",), data=tmp_path))


def test_rows_of_the_hub_are_checked_as_well(monkeypatch):
    import datasets

    from hambench.suites.sources import hub_rows

    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: [LONG, {**LONG, "answers": "a"}])
    with pytest.raises(DataError, match=r"row 2: column 'answers'"):
        hub_rows(ENTRIES["qasper"])
