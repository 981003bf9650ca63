"""The offline edition: deterministic rows that can be asked and answered, in every category of both suites."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from hambench.records import SampleRecord
from hambench.suites import CaptureRequest, capture, check, score
from hambench.suites.catalogue import tasks_of
from hambench.suites.offline import OFFLINE, offline_tasks

BUILT = [each for each in OFFLINE.values() if each.entry.name != "humaneval_instruct"]
IDS = [each.entry.name for each in BUILT]


@pytest.mark.parametrize("each", BUILT, ids=IDS)
def test_fewer_rows_are_the_first_of_more(each):
    assert each.build(4) == each.build(each.entry.num_rows)[:4]


@pytest.mark.parametrize("each", BUILT, ids=IDS)
def test_all_promised_rows_are_built_and_none_twice(each):
    rows = [json.dumps(row, sort_keys=True) for row in each.build(each.entry.num_rows)]
    assert len(rows) == each.entry.num_rows
    # made-up questions may meet by chance, most are different
    assert len(set(rows)) >= 0.9 * len(rows)


@pytest.mark.parametrize(
    "each", [e for e in BUILT if "stdlib" not in e.entry.name], ids=lambda e: e.entry.name
)
def test_another_seed_gives_other_rows(each):
    assert each.build(6, seed=1) != each.build(6, seed=0)


def test_rows_do_not_depend_on_hash_seed_or_locale(tmp_path):
    code = (
        "import hashlib, json\nfrom hambench.suites.offline import OFFLINE\n"
        "rows = [each.build(5) for each in OFFLINE.values()]\n"
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "LC_ALL": "C", "HAMBENCH_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    rows = [each.build(5) for each in OFFLINE.values()]
    assert done.stdout.strip() == hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@pytest.mark.parametrize("official", ["standard", "longbench"])
def test_every_category_of_the_official_suite_is_covered(official):
    built = {"standard": "offline-standard", "longbench": "offline-long"}[official]
    assert {entry.category for entry in tasks_of(official)} == {
        each.entry.category for each in offline_tasks(built)
    }


@pytest.mark.parametrize("suite", ["offline-long", "offline-standard"])
def test_gold_answers_score_high_and_wrong_ones_low(suite):
    tasks = tuple(e.entry.name for e in offline_tasks(suite) if e.entry.name not in ("built-instructions",))
    captured = capture(CaptureRequest(suite, tasks=tasks, limit=3))
    assert check(captured, allow_code_execution=True) == {}
    samples = {sample.sample_id: sample for sample in captured.samples}
    records = [
        SampleRecord(cell=cell, sample_id=sample.sample_id, prompt_hash=sample.prompt_hash, text=text)
        for sample in captured.samples
        for cell, text in (("right", _right(sample)), ("wrong", "zzz"))
    ]
    scores = [
        each for each in score(captured.spec, samples, records, allow_code_execution=True) if each.primary
    ]
    for each in scores:
        assert (each.value > 0.9) is (each.cell == "right"), each


def _right(sample):
    if sample.task == "humaneval_instruct":
        return sample.doc["canonical_solution"]
    return sample.references[0]


def test_instructions_are_checked_by_lm_evals_own_checkers():
    captured = capture(CaptureRequest("offline-standard", tasks=("built-instructions",), limit=3))
    first, bullets, commas = captured.samples
    assert bullets.doc["instruction_id_list"] == ["detectable_format:number_bullet_lists"]
    assert commas.doc["instruction_id_list"] == ["punctuation:no_comma"]
    answers = {
        first.sample_id: ("word " * 60, 1.0),
        bullets.sample_id: ("* a\n* b\n* c", 1.0),
        commas.sample_id: ("one, two", 0.0),
    }
    records = [
        SampleRecord(cell="v", sample_id=each, prompt_hash="", text=text)
        for each, (text, _) in answers.items()
    ]
    scores = score(captured.spec, {each.sample_id: each for each in captured.samples}, records)
    found = {each.sample_id: each.value for each in scores if each.primary}
    assert found == {each: expected for each, (_, expected) in answers.items()}


def test_no_row_is_empty_or_too_long_for_a_small_context():
    captured = capture(CaptureRequest("offline-long"))
    assert {sample.task for sample in captured.samples} == {
        each.entry.name for each in offline_tasks("offline-long")
    }
    for sample in captured.samples:
        assert sample.references
        assert all(sample.references)
        assert 200 < len(sample.prompt) < 12_000
