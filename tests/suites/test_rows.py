"""Data files: every public form is read, and what is wrong with one is said with file and line."""

import gzip
import json

import pytest

from hambench.errors import DataError
from hambench.suites import CaptureRequest, capture
from hambench.suites.catalogue import ENTRIES
from hambench.suites.listing import describe
from hambench.suites.rows import find_file, read_rows, read_task

ROW = {"question": "1+1?", "answer": "#### 2"}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_json_lines_arrays_and_gzip_give_the_same_rows(tmp_path):
    lines = json.dumps(ROW) + "\n\n" + json.dumps(ROW) + "\n"
    plain = write(tmp_path / "a.jsonl", lines)
    array = write(tmp_path / "b.json", json.dumps([ROW, ROW]))
    zipped = tmp_path / "c.jsonl.gz"
    zipped.write_bytes(gzip.compress(lines.encode()))
    assert read_rows(plain).rows == read_rows(array).rows == read_rows(zipped).rows == (ROW, ROW)


def test_a_row_may_hold_line_separators_that_are_not_newlines(tmp_path):
    row = {"question": "a\u2028b\x85c", "answer": ""}
    path = write(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=False) + "\n")
    assert read_rows(path).rows == (row,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "a", "answer": "b"}\n{"question": \n', r"a\.jsonl, line 2: broken JSON"),
        (
            '{"question": "a", "answer": "b"}\n\n{"question": "c"}\n',
            r"a\.jsonl, line 3: missing column 'answer'",
        ),
        ("[1]\n", r"a\.jsonl, line 1: expected a JSON object, got list"),
        ("\n", r"a\.jsonl contains no rows"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_rows(write(tmp_path / "a.jsonl", text), ("question", "answer"))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz"])
def test_half_a_surrogate_pair_costs_no_more_than_its_character(tmp_path, name):
    rows = [
        {"a": "red"},
        {"a": "x \ud83d.", "\udc00": ["\udfff", {"b": "\ud800\ud800"}], "n": 1.5},
        {"a": "whole 😀"},
    ]
    content = json.dumps(rows) if name == "rows.json" else "\n".join(map(json.dumps, rows))
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    read = read_rows(path)
    repaired = {"a": "x \ufffd.", "\ufffd": ["\ufffd", {"b": "\ufffd\ufffd"}], "n": 1.5}
    assert read.rows == (rows[0], repaired, rows[2])
    assert read.repaired == (2,)
    assert read.note == f"{name}, line 2: half a surrogate pair is not text and was replaced by U+FFFD."
    assert "\\ud83d" in content


def test_rows_without_half_pairs_have_no_note(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"a": "\\ud83d and 😀"}) + "\n")
    read = read_rows(path)
    assert (read.rows, read.repaired, read.note) == (({"a": "\\ud83d and 😀"},), (), "")


def test_a_capture_says_which_rows_were_repaired_and_asks_them_all(tmp_path):
    rows = [{"question": f"1 + {number}?", "answer": "#### 2"} for number in range(4)]
    rows[1]["question"] = rows[2]["question"] = "\udead?"
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(map(json.dumps, rows)))
    captured = capture(CaptureRequest("standard", tasks=("gsm8k_cot_llama",), data=tmp_path))
    assert len(captured.samples) == 4
    assert "\ufffd?" in captured.samples[1].prompt
    (note,) = [note.text for note in captured.notes if "surrogate" in note.text]
    assert note.startswith("gsm8k_cot_llama: gsm8k.jsonl, lines 2, 3: half a surrogate pair")
    json.dumps(captured.spec).encode()


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.JSONL.GZ", "a.jsonl.Gz", "a.json.gz", "a.JSON"])
def test_the_ending_says_what_a_file_holds_in_small_and_large_letters(tmp_path, name):
    content = (
        json.dumps([{"prompt": "a"}]) if "json." in name.lower() or name == "a.JSON" else '{"prompt": "a"}\n'
    )
    raw = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.lower().endswith("gz") else raw)
    assert read_rows(tmp_path / name).rows == ({"prompt": "a"},)
    assert [each.prompt for each in capture(CaptureRequest(suite=str(tmp_path / name))).samples] == ["a"]


def test_a_damaged_archive_or_encoding_is_a_data_error(tmp_path):
    whole = gzip.compress(b'{"question": "a"}\n' * 200)
    (tmp_path / "a.jsonl.gz").write_bytes(b"not gzip")
    (tmp_path / "b.jsonl").write_bytes(b'{"question": "\xff"}\n')
    (tmp_path / "c.jsonl.gz").write_bytes(whole[:14] + b"\xff" * 10 + whole[24:])
    (tmp_path / "d.jsonl.gz").write_bytes(whole[:-12])
    (tmp_path / "e.jsonl").write_text("[" * 100_000)
    (tmp_path / "f.json").write_text("[" * 100_000)
    (tmp_path / "g.jsonl").write_text('{"question": ' + "1" * 5000 + "}")
    expected = {
        "a.jsonl.gz": "archive is damaged",
        "b.jsonl": "not UTF-8",
        "c.jsonl.gz": "archive is damaged",
        "d.jsonl.gz": "archive is damaged",
        "e.jsonl": "line 1: broken JSON",
        "f.json": "broken JSON",
        "g.jsonl": "line 1: broken JSON",
    }
    for name, message in expected.items():
        with pytest.raises(DataError, match=message):
            read_rows(tmp_path / name)


@pytest.mark.parametrize("name", ["mbpp.jsonl", "mbpp.jsonl.gz", "mbpp.json"])
def test_the_listing_counts_the_rows_that_are_asked(tmp_path, name):
    rows = [{"task_id": n, "text": "t", "code": "c", "test_list": ["assert f()"]} for n in (1, 11, 12, 600)]
    lines = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
    content = lines.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    listed = {each.task: each for each in describe("standard", tmp_path)}
    assert listed["mbpp_instruct"].source == f"{tmp_path / name} (2 rows)"


def test_a_damaged_archive_is_said_by_the_listing(tmp_path):
    (tmp_path / "lcc.jsonl.gz").write_bytes(b"\x1f\x8bbroken")
    listed = {each.task: each for each in describe("longbench", tmp_path)}
    assert "archive is damaged" in listed["lcc"].missing


def test_a_cell_of_a_tsv_may_be_as_long_as_it_likes(tmp_path):
    path = write(tmp_path / "mgsm_en.tsv", f"{'long ' * 40_000}\t1,234\r\nshort\t5\r\n")
    assert [row["answer_number"] for row in read_rows(path).rows] == [1234, 5]


def test_tsv_questions_may_hold_quotes_and_answers_thousands_separators(tmp_path):
    write(tmp_path / "mgsm_en.tsv", 'She said "2\t1,234\nTwo?\t2\n')
    rows = read_task(tmp_path, ENTRIES["mgsm_en_cot_en"]).rows
    assert [(row["question"], row["answer_number"]) for row in rows] == [('She said "2', 1234), ("Two?", 2)]


def test_a_tsv_answer_that_is_no_number_names_its_line(tmp_path):
    write(tmp_path / "mgsm_en.tsv", "One?\t1\nTwo?\ttwo\n")
    with pytest.raises(DataError, match=r"mgsm_en\.tsv, line 2: the answer must be an integer, got 'two'"):
        read_task(tmp_path, ENTRIES["mgsm_en_cot_en"])


def test_files_are_found_in_the_folder_and_one_folder_down(tmp_path):
    deep = write(tmp_path / "any-name" / "lcc.jsonl", "{}\n")
    assert find_file(tmp_path, ENTRIES["lcc"].files) == deep
    top = write(tmp_path / "lcc.jsonl", "{}\n")
    assert find_file(tmp_path, ENTRIES["lcc"].files) == top
    assert find_file(tmp_path, ENTRIES["trec"].files) is None


def test_mbpp_asks_its_test_split_only(tmp_path):
    rows = [
        {"task_id": i, "text": "t", "code": "c", "test_list": ["a", "b", "c"]} for i in (1, 10, 11, 510, 511)
    ]
    write(tmp_path / "mbpp.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found = read_task(tmp_path, ENTRIES["mbpp_instruct"]).rows
    assert [row["task_id"] for row in found] == [11, 510]


def test_longbench_rows_of_the_re_hosted_schema_get_their_question(tmp_path):
    row = {"question": "who?", "context": "c", "answers": ["a"]}
    write(tmp_path / "hotpotqa.jsonl", json.dumps(row) + "\n")
    assert read_task(tmp_path, ENTRIES["hotpotqa"]).rows[0]["input"] == "who?"


def test_arc_answers_are_letters_whatever_their_keys_and_however_many_choices(tmp_path):
    rows = [
        {"question": "Q?", "choices": {"text": [*"wxyz"], "label": [*"1234"]}, "answerKey": "3"},
        {"question": "Q?", "choices": {"text": [*"wxy"], "label": [*"ABC"]}, "answerKey": "B"},
        {"question": "Q?", "choices": {"text": [*"vwxyz"], "label": [*"12345"]}, "answerKey": "1"},
    ]
    lines = [json.dumps({"id": str(number), **row}) for number, row in enumerate(rows)]
    write(tmp_path / "arc_challenge/test.jsonl", "\n".join(lines))
    captured = capture(CaptureRequest(None, tasks=("arc_challenge_chat",), data=tmp_path))
    assert [sample.references for sample in captured.samples] == [("C",), ("B",), ("A",)]
