"""Public files are suites as they are: Spec-Bench, MT-Bench, ShareGPT, OpenAI batches; scores of own rows."""

import dataclasses
import json
import re

import pytest

from hambench.records import SampleRecord
from hambench.suites import CaptureRequest, capture, score
from hambench.suites.own import metrics, patterns
from hambench.suites.own.questions import MT_BENCH, SPEC_BENCH

BENCH = [
    {"question_id": 81 + number, "category": category, "turns": ["first", "second"], "reference": ["", None]}
    for number, category in enumerate(category for category in MT_BENCH for _ in range(4))
]
SPEC = [
    *BENCH,
    *(
        {"question_id": 200 + number, "category": category, "turns": ["only"]}
        for number, category in enumerate(category for category in SPEC_BENCH for _ in range(4))
    ),
]


def asked(tmp_path, rows, name="question.jsonl", **options):
    path = tmp_path / name
    path.write_text("\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows))
    return capture(CaptureRequest(suite=str(path), **options))


def test_spec_bench_has_six_categories_and_a_limit_is_that_of_each(tmp_path):
    captured = asked(tmp_path, SPEC, limit=3)
    conversations = {}
    for sample in captured.samples:
        conversations.setdefault(sample.category, set()).add(sample.conversation or sample.sample_id)
    assert {category: len(asked) for category, asked in conversations.items()} == {
        "mt_bench": 3,
        **dict.fromkeys(SPEC_BENCH, 3),
    }
    assert captured.num_left_out == len(SPEC) - 3 * (1 + len(SPEC_BENCH))
    assert asked(tmp_path, SPEC).num_left_out == 0
    # the eight take turns, so that three rows are not three of one kind
    assert {s.task for s in captured.samples if s.category == "mt_bench"} == set(MT_BENCH[:3])
    assert {sample.max_new_tokens for sample in captured.samples} == {1024}


def test_mt_bench_alone_has_its_eight_categories(tmp_path):
    captured = asked(tmp_path, BENCH)
    assert {sample.category for sample in captured.samples} == set(MT_BENCH)
    assert len(captured.samples) == 2 * len(BENCH)


def test_turns_are_samples_with_their_place_and_one_cluster(tmp_path):
    first, second = asked(tmp_path, BENCH[:1]).samples
    assert (first.turn, second.turn) == (1, 2)
    assert first.sample_id == "question/writing/81/turn-1"
    assert first.conversation == second.conversation == "question/writing/81"
    assert first.cluster == second.cluster != ""
    assert second.messages == ({"role": "user", "content": "second"},)


def test_model_answers_for_a_judge_are_said_and_not_scored(tmp_path):
    captured = asked(tmp_path, [{**BENCH[0], "reference": ["an essay", "a haiku"]}])
    assert "1 rows have a reference without a metric" in captured.notes[0].text
    assert captured.spec["asks_accuracy"] is False


def test_share_gpt_asks_the_human_turns_and_leaves_out_who_asks_nothing(tmp_path):
    rows = [
        {"id": "a", "conversations": [{"from": "gpt", "value": "x"}]},
        {
            "id": "b",
            "conversations": [
                {"from": "system", "value": "Be short."},
                {"from": "gpt", "value": "Ready."},
                {"from": "human", "value": "one"},
                {"from": "gpt", "value": "ONE"},
                {"from": "human", "value": "two"},
            ],
        },
        {"id": "b", "conversations": [{"from": "user", "value": "again"}]},
    ]
    captured = asked(tmp_path, rows, "sharegpt.json")
    first, second, third = captured.samples
    assert [each["content"] for each in first.messages] == ["Be short.", "one"]
    assert [each["content"] for each in second.messages] == ["two"]
    assert third.sample_id == "sharegpt/sharegpt/b#3"
    assert any("1 rows of sharegpt.json ask nothing" in note.text for note in captured.notes)


def test_openai_batch_files_ask_their_bodies(tmp_path):
    rows = [
        {
            "custom_id": "r1",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "m",
                "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
                "max_tokens": 9,
            },
        },
        {"custom_id": "r2", "url": "/v1/completions", "body": {"prompt": "Once", "stop": ["."]}},
    ]
    first, second = asked(tmp_path, rows, "batch.jsonl", apply_chat_template=lambda messages: "chat").samples
    assert (first.prompt, first.max_new_tokens) == ("chat", 9)
    assert (second.prompt, second.chat, second.stop) == ("Once", False, (".",))


@pytest.mark.parametrize(
    ("metric", "answer", "references", "value"),
    [
        ("exact", " Paris\n", ("London", "Paris"), 1.0),
        ("exact", "paris", ("Paris",), 0.0),
        ("contains", "It is Paris.", ("London", "Paris"), 1.0),
        ("contains", "It is Rome.", ("Paris",), 0.0),
        ("regex", "the answer is 42.", ("[a-c]{9}", r"\b42\b"), 1.0),
        ("regex", "the answer is 142.", (r"\b42\b",), 0.0),
        # two of three words on both sides; "the" doesn't count for qa_f1
        ("qa_f1", "the red box", ("blue", "red box here"), 2 * 1 * (2 / 3) / (1 + 2 / 3)),
        ("qa_f1", "red", ("blue",), 0.0),
        ("rougeL", "the cat sat", ("x", "the cat stood"), 2 / 3),
        ("rougeL", "a b", ("x y",), 0.0),
        # 7 of 8 characters, in whole per cent
        ("code_sim", "# a comment\nreturn y\n", ("zzz", "return x"), 0.88),
        ("code_sim", "a", ("b",), 0.0),
    ],
)
def test_each_metric_is_from_0_to_1_and_takes_the_best_reference(metric, answer, references, value):
    assert metrics.value_of(metric, answer, references) == pytest.approx(value, abs=1e-5)


def records_of(captured, text):
    return [
        SampleRecord(cell="c", sample_id=each.sample_id, prompt_hash=each.prompt_hash, text=text, error=error)
        for each in captured.samples
        for error in ([None] if text is not None else ["boom"])
    ]


def test_only_rows_with_a_reference_are_scored(tmp_path):
    rows = [{"prompt": "a", "metric": "contains", "reference": "yes"}, {"prompt": "b"}]
    captured = asked(tmp_path, rows, "x.jsonl")
    by_id = {each.sample_id: each for each in captured.samples}
    (only,) = score(captured.spec, by_id, records_of(captured, "oh yes"))
    assert (only.sample_id, only.metric, only.value, only.primary) == ("x/x/1", "contains", 1.0, True)
    (failed,) = score(captured.spec, by_id, records_of(captured, None))
    assert (failed.value, failed.error) == (None, "not generated: boom")
    assert any("1 of 2 rows have a reference" in note.text for note in captured.notes)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (
            "(a|aa)+$",
            r"'\(a\|aa\)\+\$' takes longer than 0.3 seconds on this answer: write it with less nesting",
        ),
        ("(?R)", r"'\(\?R\)' takes too much memory: write it with less nesting"),
        # a run folder of others, or another version of the library
        ("(", r"'\(' must be a regular expression \(missing \) at position 1\): correct it"),
    ],
)
def test_a_pattern_that_fails_is_an_error_of_its_answer_alone(tmp_path, monkeypatch, pattern, reason):
    monkeypatch.setattr(patterns, "PATTERN_SECONDS", 0.3)
    monkeypatch.setattr(patterns, "MEMORY_BYTES", 200 << 20)
    rows = [{"prompt": name, "metric": "regex", "reference": "a+"} for name in "abc"]
    captured = asked(tmp_path, rows, "x.jsonl")
    by_id = {each.sample_id: each for each in captured.samples}
    records = records_of(captured, "a" * 400 + "b")
    by_id["x/x/2"] = dataclasses.replace(by_id["x/x/2"], references=(pattern,))
    scores = score(captured.spec, by_id, records)
    assert [each.value for each in scores] == [1.0, None, 1.0]
    assert re.match(f"reference {reason}", str(scores[1].error))
    assert "\n" not in str(scores[1].error)
    assert patterns._process is None


def test_what_is_not_read_of_a_public_file_is_said(tmp_path):
    def said(row):
        notes = asked(tmp_path, [row], "x.jsonl").notes
        return next((note.text.partition(": ")[2] for note in notes if "not read" in note.text), None)

    assert said({"question_id": 1, "turns": ["a"], "model": "m", "category": "c"}) == "model."
    assert said({"question_id": 1, "turns": ["a"], "reference": ["", None]}) == "reference."
    talk = [{"from": "human", "value": "hi"}]
    assert said({"id": "a", "conversations": talk, "category": "c", "stop": "x"}) == "category, stop."
    body = {"model": "m", "messages": [{"role": "user", "content": "hi", "name": "Ann"}], "temperature": 1}
    batch = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": body, "metric": "exact"}
    assert said(batch) == "metric, body.model, body.temperature, body.messages.name."
    assert said({"messages": [{"role": "user", "content": "hi", "weight": 0}], "note": 1}) == (
        "note, messages.weight."
    )
    assert said({"question_id": 1, "turns": ["a"], "stop": "\n", "max_new_tokens": 3}) is None


def test_a_stop_text_of_a_public_file_is_kept(tmp_path):
    (sample,) = asked(tmp_path, [{"question_id": 1, "turns": ["a"], "stop": "\n"}]).samples
    assert sample.stop == ("\n",)
