"""The offline edition: deterministic rows that can be asked and answered, in every category of both suites."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from hambench.records import SampleRecord
from hambench.suites import CaptureRequest, capture, check, score
from hambench.suites.catalogue import tasks_of
from hambench.suites.harness.longbench import edit_similarity
from hambench.suites.offline import OFFLINE, OFFLINE_SUITES, offline_tasks
from hambench.suites.offline.lengths import TOKENS, depth

BUILT = [each for each in OFFLINE.values() if each.entry.name != "function-bodies"]
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


@pytest.mark.parametrize("each", BUILT, ids=IDS)
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


@pytest.mark.parametrize("suite", OFFLINE_SUITES)
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
    if "canonical_solution" in sample.doc:
        return sample.doc["canonical_solution"].removeprefix("   ")
    return sample.references[0]


def test_instructions_are_checked_by_lm_evals_own_checkers():
    captured = capture(CaptureRequest("offline-standard", tasks=("built-instructions",), limit=4))
    words, bullets, _, ending = captured.samples
    assert words.doc["instruction_id_list"] == ["keywords:existence", "length_constraints:number_words"]
    assert bullets.doc["instruction_id_list"] == ["detectable_format:number_bullet_lists"]
    assert ending.doc["instruction_id_list"] == ["startend:end_checker"]
    keywords = " and ".join(words.doc["kwargs"][0]["keywords"])
    answers = [
        (words, f"A note on {keywords}.", 1.0),
        (words, f"A note on {keywords}. {'More of it. ' * 40}", 0.0),
        (words, "A note.", 0.0),
        (bullets, "* a\n" * bullets.doc["kwargs"][0]["num_bullets"], 1.0),
        (bullets, "* a\n" * (bullets.doc["kwargs"][0]["num_bullets"] + 1), 0.0),
        (ending, f"So it was. {ending.doc['kwargs'][0]['end_phrase']}", 1.0),
        (ending, "So it was.", 0.0),
    ]
    records = [
        SampleRecord(cell=str(number), sample_id=sample.sample_id, prompt_hash="", text=text)
        for number, (sample, text, _) in enumerate(answers)
    ]
    scores = score(captured.spec, {each.sample_id: each for each in captured.samples}, records)
    found = {each.cell: each.value for each in scores if each.primary}
    assert found == {str(number): expected for number, (_, _, expected) in enumerate(answers)}


@pytest.mark.parametrize(
    ("suite", "task"), [("offline-hard", "function-bodies"), ("offline-standard", "next-function")]
)
def test_the_body_of_a_function_is_begun(suite, task):
    captured = capture(CaptureRequest(suite, tasks=(task,), limit=3))
    for sample in captured.samples:
        # after a blank line a small model goes on with a comment at the margin: a stop string, and an empty answer
        assert sample.prompt.endswith('"""\n   ')
        assert sample.prompt.endswith(sample.doc["prompt"])
        assert ("\n#" if task == "function-bodies" else "\ndef") in sample.stop


def test_no_program_passes_two_of_the_short_functions():
    rows = OFFLINE["next-function"].build(60)
    assert len({row["canonical_solution"] for row in rows}) == len(rows)
    bodies = [row["canonical_solution"].strip() for row in rows]
    passed = Counter()
    for row in rows:
        head = row["prompt"].rpartition("def ")[2].split(":")[0]
        for body in bodies:
            space = {}
            exec(f"def {head}:\n    {body}\n{row['test']}", space)
            try:
                space["check"](space[row["entry_point"]])
                passed[body] += 1
            except (AssertionError, NameError):
                continue
    assert set(passed.values()) == {1}
    assert set(passed) == set(bodies)


def test_a_directory_names_the_letter_that_is_asked_for():
    for row in OFFLINE["module-look-up"].build(12):
        asked = row["begun"].removeprefix("Module ").removesuffix(" (letter").partition(": ")[2]
        assert row["choices"]["text"]["ABCD".index(row["answerKey"])] == asked
        directory, _, examples = row["question"].partition("\n\nModule ")
        assert f"{asked} (letter {row['answerKey']})" in directory
        assert asked not in examples.partition("What is the letter")[0]


LONG = offline_tasks("offline-long")


@pytest.mark.parametrize("each", LONG, ids=[each.entry.name for each in LONG])
def test_texts_are_of_every_length_and_ask_at_every_depth(each):
    rows = each.build(40)
    by_length = {}
    for number, row in enumerate(rows):
        by_length.setdefault(TOKENS[number % len(TOKENS)], []).append(len(row["context"] + row["input"]))
    sizes = {length: sum(found) / len(found) for length, found in by_length.items()}
    assert sorted(sizes) == [300, 600, 1200, 2400, 6000]
    assert list(dict(sorted(sizes.items())).values()) == sorted(sizes.values())
    for length, size in sizes.items():
        assert 2 * length < size < 7 * length, (length, size)
    for start in range(len(TOKENS)):
        places = [depth(number) for number in range(start, 40, len(TOKENS))]
        assert min(places) < 0.35
        assert max(places) > 0.65


LOOKED_UP = {
    "doc-section-retrieval": lambda row: [row["answers"][0]],
    "stdlib-line-number": lambda row: [f"{row['input']} begins at line {row['answers'][0]}"],
    "doc-key-fact": lambda row: [f"{row['begun']} {row['answers'][0]}."],
    "doc-two-keys": lambda row: [f"{row['begun'].split(': ')[0]}: ", row["begun"].split(": ")[1]],
    "module-synopsis": lambda row: [f'Summary of {row["input"]}: "{row["answers"][0]}"'],
}


@pytest.mark.parametrize("task", LOOKED_UP)
def test_an_answer_stands_once_in_the_text_and_never_in_the_question(task):
    for row in OFFLINE[task].build(40):
        answer, context = row["answers"][0], row["context"]
        first, *rest = LOOKED_UP[task](row)
        assert context.count(first) == 1, row["_id"]
        for text in rest:
            # one of several sentences that begin alike: only the passage says which
            assert context.count(text) > 1
            assert context.index(text, context.index(first)) < context.index(answer, context.index(first))
        assert answer not in row["input"]
        assert answer not in row.get("begun", "")


@pytest.mark.parametrize("task", ["stdlib-next-line", "stdlib-cross-file"])
def test_a_line_to_complete_stands_in_the_text_but_is_unlike_the_line_before(task):
    for row in OFFLINE[task].build(40):
        text = f"{row['context']}\n{row['input']}".rstrip("\n")
        last = text.split("\n")[-1]
        assert edit_similarity(last, row["answers"][0]) <= 0.65
        if task == "stdlib-next-line":
            assert f"\n{last}\n{row['answers'][0]}\n" in text
        else:
            old, new = re.search(r": (\w+) is now (\w+)\n", row["context"]).groups()
            assert new in row["answers"][0]
            assert row["answers"][0].replace(new, old) in row["context"]
            assert row["answers"][0] not in row["input"].split("\n")


def test_every_kind_of_line_and_every_letter_is_asked_as_often():
    kinds = [row["answers"][0] for row in OFFLINE["stdlib-line-kind"].build(40)]
    assert set(Counter(kinds).values()) == {5}
    for task in ("module-purpose", "module-look-up"):
        letters = [row["answerKey"] for row in OFFLINE[task].build(40)]
        assert set(Counter(letters).values()) == {10}


def test_no_row_is_empty_or_too_long_for_a_small_context():
    captured = capture(CaptureRequest("offline-long"))
    assert {sample.task for sample in captured.samples} == {
        each.entry.name for each in offline_tasks("offline-long")
    }
    for sample in captured.samples:
        assert sample.references
        assert all(sample.references)
        assert 200 < len(sample.prompt) < 36_000
