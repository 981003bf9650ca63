"""A user's files: what is read, and that every bad row is one line with its place and the fix."""

import json
import os

import msgspec
import pandas as pd
import pytest

from hambench.errors import BadRowsError, DataError, HambenchError
from hambench.suites import CaptureRequest, capture
from hambench.suites.own import patterns
from hambench.suites.own.questions import RowError, question_of


def write(tmp_path, name, *rows):
    path = tmp_path / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
    return path


def chat(messages, *, add_generation_prompt=True):
    said = "".join(f"<{each['role']}>{each['content']}</>" for each in messages)
    return f"{said}<assistant>" if add_generation_prompt else said


def asked(path, **options):
    return capture(CaptureRequest(suite=str(path), **options))


def test_a_file_of_prompts_is_a_suite(tmp_path):
    path = write(
        tmp_path,
        "mine.jsonl",
        {"prompt": "Why?", "id": "why", "category": "short", "max_new_tokens": 7, "stop": "\n"},
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]},
        {"prompt": "def f(", "chat": False, "metric": "contains", "reference": ["x", "y"]},
    )
    captured = asked(path, apply_chat_template=chat)
    first, second, third = captured.samples
    assert (captured.suite, captured.data_source) == ("mine", "own prompts")
    assert first.sample_id == "mine/short/why"
    assert (first.prompt, first.chat) == ("<user>Why?</><assistant>", True)
    assert (first.max_new_tokens, first.stop) == (7, ("\n",))
    assert second.prompt == "<system>Be kind.</><user>Hello</><assistant>"
    assert second.task == "mine"
    assert (third.prompt, third.chat, third.references) == ("def f(", False, ("x", "y"))


def test_rows_that_ask_the_same_are_a_caution(tmp_path):
    """Greedy answers to them are equal, and as many samples would make intervals too narrow."""
    rows = [
        {"turns": ["Why?", "Really?"], "category": "a"},
        {"turns": ["Why?"], "category": "a"},
        {"turns": ["Why?", "Really?"], "category": "b", "max_new_tokens": 9},
        {"turns": ["Why?"], "category": "a"},
    ]
    path = write(tmp_path, "mine.jsonl", *rows)
    said = [str(note) for note in asked(path).notes if "earlier row" in str(note)]
    assert len(said) == 1
    assert said[0].startswith("2 of 4 rows of mine.jsonl ask what an earlier row asks")
    # of those that are asked
    assert not any("earlier row" in str(note) for note in asked(path, tasks=("b",)).notes)
    assert not any("earlier row" in str(note) for note in asked(path, limit=1, tasks=("a",)).notes)


def test_without_a_template_the_text_is_asked_as_it_stands(tmp_path):
    path = write(
        tmp_path,
        "mine.jsonl",
        {"prompt": " Once "},
        {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]},
    )
    assert [sample.prompt for sample in asked(path).samples] == [" Once ", "a\n\nb"]


def test_csv_and_parquet_say_the_same_as_json(tmp_path):
    rows = [
        {"prompt": "one, two", "category": "a", "max_new_tokens": 5, "metric": "exact", "reference": "2"},
        {"turns": ["first", "second\nline"], "category": "b"},
    ]
    plain = asked(write(tmp_path, "x.jsonl", *rows))
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path / "x.parquet")
    cells = frame.assign(turns=[None, json.dumps(rows[1]["turns"])], max_new_tokens=["5", None])
    cells.to_csv(tmp_path / "x.csv", index=False)
    for name in ("x.parquet", "x.csv"):
        assert asked(tmp_path / name).samples == plain.samples, name


def test_a_folder_of_texts_is_a_suite_with_a_category_per_folder(tmp_path):
    folder = tmp_path / "texts"
    (folder / "code").mkdir(parents=True)
    (folder / "b.txt").write_text("Prose")
    (folder / "code" / "a.md").write_text("Code")
    (folder / "notes.pdf").write_bytes(b"\xff")
    captured = asked(folder)
    assert [(each.sample_id, each.prompt) for each in captured.samples] == [
        ("texts/texts/b", "Prose"),
        ("texts/code/code/a", "Code"),
    ]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"holds no prompts: put one prompt into each file, named \*\.txt"):
        asked(empty)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": ""}, "prompt must be text that is not blank, got ''"),
        ({"prompt": 5}, "prompt must be text that is not blank, got 5"),
        ({"text": "hi"}, "has no prompt: give one of prompt, messages or turns"),
        ({"prompt": "a", "turns": ["b"]}, "has prompt and turns: keep one of them"),
        ({"turns": []}, "turns must be a list of texts"),
        ({"turns": ["a", None]}, "turn 2 must be text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "the role of message 1 must be one of system"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "the last message must be the user's"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "message 1 holds more than text",
        ),
        ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens must be a whole number >= 1, got 0"),
        ({"prompt": "a", "max_new_tokens": 1.5}, "max_new_tokens must be a whole number >= 1, got 1.5"),
        ({"prompt": "a", "reference": "b"}, "has a reference without a metric: add metric, one of exact"),
        ({"prompt": "a", "metric": "exact"}, "has metric exact without a reference: add reference"),
        ({"prompt": "a", "metric": "bleu", "reference": "b"}, "metric must be one of exact, contains"),
        ({"prompt": "a", "metric": ["exact"], "reference": "b"}, "metric must be one of exact, contains"),
        ({"question_id": 1, "turns": ["a"], "metric": {}}, "metric must be one of exact, contains"),
        (
            {"prompt": "a", "metric": "regex", "reference": "("},
            r"reference '\(' must be a regular expression",
        ),
        (
            {"prompt": "a", "metric": "regex", "reference": "(" * 5000 + ")" * 5000},
            r"reference '\(.*\.\.\. nests too deeply: write it with fewer brackets",
        ),
        (
            {"prompt": "a", "metric": "regex", "reference": "(?au)a"},
            r"reference '\(\?au\)a' must be a regular expression \(ASCII, .*\): correct it",
        ),
        (
            {"question_id": 1, "turns": ["a"], "metric": "regex", "reference": "("},
            r"reference '\(' must be a regular expression \(missing \) at position 1\): correct it, or use",
        ),
        ({"question_id": 1, "turns": ["a"], "metric": "exact"}, "has metric exact without a reference"),
        ({"prompt": "a", "metric": "contains", "reference": " "}, "reference must not be blank, got ' '"),
        ({"prompt": "a", "metric": "exact", "reference": ["a", ""]}, r"must not be blank, got \['a', ''\]"),
        (
            {"prompt": "a", "metric": "exact", "reference": 42.0},
            'reference must be text, got the number 42.0: write it as the answer should, like "42"',
        ),
        ({"turns": ["a", "b"], "metric": "exact", "reference": "b"}, "one entry per turn"),
        ({"prompt": "a", "refrence": "b"}, "has a column 'refrence': did you mean 'reference'"),
        ({"prompt": "a", "id": "two\nlines"}, "id must be one line"),
        ({"prompt": "a", "category": True}, "category must be a text or a whole number"),
        ({"prompt": "a", "stop": [""]}, "stop must be a text or a list of texts"),
        ({"prompt": "a", "chat": "maybe"}, "chat must be true or false"),
        ({"turns": ["a"], "chat": False}, "chat is false: give the text as prompt"),
        ({"conversations": "x"}, "conversations must be a list"),
        ({"conversations": [{"from": "moon", "value": "x"}]}, "piece 1 of conversations must have from"),
        ({"custom_id": "1", "body": 3}, "body must be an object"),
        ({"body": {"messages": []}, "url": "/v1/embeddings"}, "asks /v1/embeddings"),
        ({"body": {"messages": [], "tools": [{}]}}, "asks with tools"),
        ({"body": {"model": "m"}}, "body must have messages or prompt"),
    ],
)
def test_a_bad_row_says_what_to_change(row, message):
    with pytest.raises(RowError, match=message):
        question_of(row)


def test_every_bad_row_is_one_line_with_file_line_and_fix(tmp_path):
    path = write(
        tmp_path,
        "mine.jsonl",
        {"prompt": "good"},
        "",
        '{"prompt": "torn',
        "[1]",
        {"prompt": "x", "id": "1"},
        {"prompt": " "},
    )
    with pytest.raises(BadRowsError) as raised:
        asked(path)
    head, *lines = raised.value.lines
    assert head.startswith(f"{path}: 4 rows can't be asked")
    assert [line.partition(": ")[0] for line in lines] == [f"{path}, line {n}" for n in (3, 4, 5, 6)]
    assert "broken JSON" in lines[0]
    assert "must be an object" in lines[1]
    assert f"has the id '1' of {path}, line 1" in lines[2]
    assert all("\n" not in line for line in raised.value.lines)


@pytest.mark.parametrize(
    "row", [{"prompt": "a \ud83d b"}, {"turns": ["a", "\udc00"]}, {"prompt": "a", "note": "\ud800"}]
)
@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_half_a_surrogate_pair_is_a_bad_row(tmp_path, name, row):
    rows = [{"prompt": "whole 😀"}, row]
    path = tmp_path / name
    path.write_text(json.dumps(rows) if name == "x.json" else "\n".join(map(json.dumps, rows)))
    with pytest.raises(BadRowsError) as raised:
        asked(path)
    (line,) = raised.value.lines[1:]
    assert line.startswith(
        f"{path}, {'element' if name == 'x.json' else 'line'} 2: holds half a surrogate pair"
    )


def test_names_that_are_not_utf_8_are_spelled_out(tmp_path):
    folder = tmp_path / os.fsdecode(b"all\xff")
    (folder / os.fsdecode(b"kind\xfe")).mkdir(parents=True)
    (folder / os.fsdecode(b"kind\xfe") / os.fsdecode(b"\xfd.txt")).write_text("hello")
    for path in (folder, folder / os.fsdecode(b"kind\xfe") / os.fsdecode(b"\xfc.jsonl")):
        if path.suffix == ".jsonl":
            path.write_text(json.dumps({"prompt": "hello"}))
        captured = asked(path)
        msgspec.json.encode([captured.spec, captured.samples, captured.notes])
        assert "\\x" in captured.suite


def test_the_lines_of_a_csv_are_those_of_the_file(tmp_path):
    path = write(tmp_path, "x.csv", "prompt,max_new_tokens", '"two\nlines",4', "good,many", "a,b,c", '"open')
    with pytest.raises(BadRowsError) as raised:
        asked(path)
    _, *lines = raised.value.lines
    assert [line.partition(": ")[0].rpartition("line ")[2] for line in lines] == ["4", "5", "6"]
    assert "has 3 cells where the header has 2: put quotes around" in lines[1]
    assert "is not CSV" in lines[2]


def test_a_pattern_that_compiles_forever_is_a_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(patterns, "PATTERN_SECONDS", 0.3)
    monkeypatch.setattr(patterns, "MEMORY_BYTES", 8 << 30)  # time must end first
    pattern = "a{1000}"
    for _ in range(4):
        pattern = f"({pattern}){{1000}}"
    rows = [{"prompt": "a", "metric": "regex", "reference": each} for each in ("a+", pattern, "b+")]
    with pytest.raises(BadRowsError, match=r"line 2: reference .* takes longer than 0.3 seconds: write"):
        asked(write(tmp_path, "x.jsonl", *rows))


@pytest.mark.parametrize("prompt", ['["a"]', '{"a": 1}', "[1, 2] + [3]", "[", "{"])
def test_a_text_of_a_csv_that_looks_like_json_stays_a_text(tmp_path, prompt):
    pd.DataFrame([{"prompt": prompt, "category": "[c]"}]).to_csv(tmp_path / "x.csv", index=False)
    (sample,) = asked(tmp_path / "x.csv").samples
    assert (sample.prompt, sample.task) == (prompt, "[c]")


@pytest.mark.parametrize(
    ("cell", "references"),
    [
        ("[0]", ("[0]",)),
        ("[0-9]+", ("[0-9]+",)),
        ("42.0", ("42.0",)),
        ('["a", "b"]', ("a", "b")),
        ('{"a": 1}', ('{"a": 1}',)),
    ],
)
def test_a_reference_of_a_csv_is_a_text_or_a_list_of_texts(tmp_path, cell, references):
    row = {
        "prompt": "x",
        "metric": "regex" if "[0" in cell else "exact",
        "reference": cell,
        "stop": '["\\n"]',
    }
    pd.DataFrame([row]).to_csv(tmp_path / "x.csv", index=False)
    (sample,) = asked(tmp_path / "x.csv").samples
    assert (sample.references, sample.stop) == (references, ("\n",))


def test_references_of_turns_stand_in_a_csv_too(tmp_path):
    row = {"turns": '["a", "b"]', "metric": "exact", "reference": '[["x", "y"], null]'}
    pd.DataFrame([row]).to_csv(tmp_path / "x.csv", index=False)
    assert [each.references for each in asked(tmp_path / "x.csv").samples] == [("x", "y"), ()]


def test_broken_json_of_a_csv_cell_is_named(tmp_path):
    path = write(tmp_path, "x.csv", "turns", '"[""a"", b]"', '"[""a""]"', f'"{"[" * 5000}"')
    with pytest.raises(BadRowsError) as raised:
        asked(path)
    _, first, second = raised.value.lines
    assert first.endswith(
        "line 2: turns is broken JSON (Expecting value, character 7): write a list or object of JSON, its quotes "
        "doubled"
    )
    assert "line 4: " in second


def test_numbers_that_a_parquet_column_with_gaps_made_fractions_are_refused(tmp_path):
    rows = [{"prompt": "a", "metric": "exact", "reference": 42}, {"prompt": "b"}]
    pd.DataFrame(rows).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(
        BadRowsError, match=r"row 1: reference must be text, got the number 42\.0: write it as"
    ):
        asked(tmp_path / "x.parquet")
    pd.DataFrame(rows[:1]).to_parquet(tmp_path / "x.parquet")
    assert asked(tmp_path / "x.parquet").samples[0].references == ("42",)


def test_a_prompt_of_a_csv_may_be_longer_than_the_readers_own_limit(tmp_path):
    path = write(tmp_path, "x.csv", "prompt", '"' + "x" * 200_000 + '"')
    assert len(asked(path).samples[0].prompt) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"", "holds no rows"),
        ("x.jsonl", b"\xff\xfe", "is not UTF-8"),
        ("x.json", b"[", "broken JSON"),
        ("x.parquet", b"PAR", "is not a Parquet file"),
        ("x.jsonl.gz", b"zip", "the archive is damaged"),
        ("x.csv", b"prompt,prompt\na,b", "two columns are named 'prompt'"),
    ],
)
def test_a_file_that_is_none_is_one_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        asked(tmp_path / name)


def test_a_missing_file_and_options_of_other_suites_are_refused(tmp_path):
    with pytest.raises(DataError, match="can't read"):
        asked(tmp_path / "none.jsonl")
    path = write(tmp_path, "x.jsonl", {"prompt": "a", "category": "one"})
    with pytest.raises(HambenchError, match="--preset says nothing"):
        asked(path, preset="paper")
    with pytest.raises(HambenchError, match="--data says nothing"):
        asked(path, data=tmp_path)
    with pytest.raises(HambenchError, match="--edition offline"):
        asked(path, edition="offline")
    with pytest.raises(DataError, match="has no category 'two'; it has one"):
        asked(path, tasks=("two",))


def test_a_file_of_another_kind_is_told_what_it_should_be(tmp_path):
    (tmp_path / "mine.txt").write_text("Why?")
    with pytest.raises(
        DataError, match=r"mine\.txt must end in one of \.jsonl, .*put a single text into a folder"
    ):
        asked(tmp_path / "mine.txt")
    (tmp_path / "alone").mkdir()
    (tmp_path / "mine.txt").rename(tmp_path / "alone" / "mine.txt")
    assert [each.prompt for each in asked(tmp_path / "alone").samples] == ["Why?"]


def test_a_suites_name_goes_before_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "efficiency").mkdir()
    (tmp_path / "efficiency" / "a.txt").write_text("Prose")
    monkeypatch.chdir(tmp_path)
    assert asked("efficiency", edition="offline", tasks=("prompt-code",)).data_source == "offline edition"
    mine = asked("./efficiency")
    assert (mine.suite, mine.data_source) == ("own-efficiency", "own prompts")


def test_a_row_that_the_template_refuses_is_named(tmp_path):
    def refuse(messages, *, add_generation_prompt=True):
        if messages[0]["role"] == "system":
            raise HambenchError("no system role")
        return "ok"

    path = write(
        tmp_path,
        "x.jsonl",
        {"prompt": "a"},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
    )
    with pytest.raises(BadRowsError, match=r"line 2: no system role"):
        asked(path, apply_chat_template=refuse)
