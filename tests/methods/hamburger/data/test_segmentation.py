import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hambench.errors import DataError
from hambench.methods.hamburger.data.segment import (
    Segmented,
    read_conversations,
    read_segments,
    statistics,
    write_segments,
)
from hambench.methods.hamburger.data.segmentation import Strategy

NAMES = ("decreasing", "decreasing_v2", "sliding", "small_group")
VALUES = st.lists(st.one_of(st.floats(0, 6), st.sampled_from([0.0, 0.05, 0.3, 0.787, 4.139])), min_size=1)
STRATEGIES = st.builds(
    Strategy,
    name=st.sampled_from(NAMES),
    max_length=st.integers(1, 6),
    ratio=st.sampled_from([0.0, 0.3, 1.0]),
)


def starts_of(lengths):
    return {sum(lengths[:i]) for i in range(len(lengths))}


@given(VALUES, STRATEGIES)
def test_lengths_sum_to_the_response_and_none_exceeds_the_maximum(values, strategy):
    lengths = strategy.cut(values)
    assert sum(lengths) == len(values)
    assert all(1 <= length <= strategy.max_length for length in lengths)


@given(VALUES, STRATEGIES)
def test_a_segment_starts_exactly_where_the_rule_says(values, strategy):
    """The rule, asked afresh for each token from the segment it would join."""
    lengths = strategy.cut(values)
    starts = starts_of(lengths)
    begin = 0
    for at in range(1, len(values)):
        segment = values[begin:at]
        full = len(segment) == strategy.max_length
        joins = {
            "decreasing": values[at] <= strategy.ratio * segment[0],
            "decreasing_v2": values[at] < 0.05 or values[at] < strategy.ratio * max(segment),
            "sliding": values[at] < 4.139,
            "small_group": values[at] <= 0.787 and segment[-1] <= 0.787,
        }[strategy.name]
        assert (at in starts) == (full or not joins)
        if at in starts:
            begin = at


@pytest.mark.parametrize(
    ("name", "values", "lengths"),
    [
        ("decreasing", [2.0, 0.5, 0.5, 0.7, 0.1], [3, 2]),
        ("decreasing_v2", [2.0, 0.5, 0.04, 0.7, 0.01, 0.01, 0.01, 0.01], [3, 4, 1]),
        ("sliding", [5.0, 1.0, 4.2, 0.1, 0.1, 0.1, 0.1], [2, 4, 1]),
        ("small_group", [2.0, 0.1, 0.1, 0.9, 0.1], [1, 2, 1, 1]),
    ],
)
def test_worked_examples(name, values, lengths):
    assert Strategy(name=name).cut(values) == lengths


def test_an_empty_response_is_refused():
    with pytest.raises(DataError, match="at least one token"):
        Strategy().cut([])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"name": "rising"}, "name must be"), ({"max_length": 0}, "max_length"), ({"ratio": -1.0}, "ratio")],
)
def test_a_strategy_refuses_what_makes_no_sense(change, message):
    with pytest.raises(ValueError, match=message):
        Strategy(**change)


def test_statistics_count_segments_and_positions():
    counted = statistics([[1, 4], [2, 1]])
    assert (counted.responses, counted.tokens, counted.segments, counted.tokens_per_segment) == (2, 8, 4, 2.0)
    assert counted.histogram == {1: 2, 2: 1, 4: 1}
    assert counted.share_by_position == {1: 0.5, 2: 0.25, 3: 0.125, 4: 0.125}


def test_segments_survive_the_file(tmp_path):
    rows = [Segmented(ids=(1, 2, 3, 4), prompt_tokens=1, segments=(2, 1))]
    write_segments(tmp_path / "s.jsonl", rows)
    assert read_segments(tmp_path / "s.jsonl", max_length=4) == rows


def test_a_line_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_bytes(b'{"ids": [1, 2], "prompt_tokens": 1, "segments": [1]}\n{"ids": [1, 2], "x": "\xff"}\n')
    with pytest.raises(DataError, match=r"s\.jsonl:2: not a segmented response .*utf-8"):
        read_segments(path, max_length=4)
    with pytest.raises(DataError, match=r"s\.jsonl:1: want messages"):
        list(read_conversations(path, None, eos_id=None))
    path.write_bytes(b'{"prompt_ids": [1], "response_ids": [2]}\n\xff\n')
    with pytest.raises(DataError, match=r"s\.jsonl:2: want messages.*utf-8"):
        list(read_conversations(path, None, eos_id=None))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ids": [1, 2, 3], "prompt_tokens": 1, "segments": [1]}, "sum to 1, the response has 2"),
        ({"ids": [1, 2, 3, 4, 5, 6], "prompt_tokens": 1, "segments": [5]}, "must be 1 to 4"),
        ({"ids": [1], "prompt_tokens": 1, "segments": []}, "response is empty"),
        ({"ids": [1, 2], "prompt_tokens": 0, "segments": [2]}, "prompt is empty"),
        ({"ids": [1, 2]}, "not a segmented response"),
    ],
)
def test_a_segment_file_that_does_not_fit_names_the_line(tmp_path, row, message):
    good = {"ids": [1, 2], "prompt_tokens": 1, "segments": [1]}
    (tmp_path / "s.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    with pytest.raises(DataError, match=f"s.jsonl:2: .*{message}"):
        read_segments(tmp_path / "s.jsonl", max_length=4)


def test_conversations_come_in_three_forms(tmp_path):
    from fakes import EOS, ByteTokenizer

    class Tokenizer(ByteTokenizer):
        chat_template = "one"

        def apply_chat_template(self, messages, **options):
            return "".join(f"{m['role']}:{m['content']};" for m in messages)

    rows = [
        {"prompt": "ab", "response": "c"},
        {"prompt_ids": [1, 2], "response_ids": [3]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read = list(read_conversations(tmp_path / "d.jsonl", Tokenizer(), eos_id=EOS))
    assert read == [([97, 98, 99, EOS], 2), ([1, 2, 3], 2), ([*b"user:x;y", EOS], 7)]


def test_a_prompt_of_a_conversation_begins_once_and_never_ends(tmp_path):
    from fakes import EOS, ByteTokenizer

    class Appending(ByteTokenizer):
        """Begins every text and ends it, as some tokenizers' post-processors do."""

        bos_token, bos_token_id = "<bos>", 256

        def __call__(self, text, add_special_tokens=True):
            ids = [256] * text.startswith("<bos>") + list(text.removeprefix("<bos>").encode())
            return {"input_ids": [256, *ids, EOS] if add_special_tokens else ids}

    rows = [{"prompt": "<bos>ab", "response": "c"}, {"prompt": "ab", "response": "c"}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read = list(read_conversations(tmp_path / "d.jsonl", Appending(), eos_id=EOS))
    assert read == [([256, 97, 98, 99, EOS], 3)] * 2
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "a \ud83d", "response": "b"}))
    with pytest.raises(DataError, match=r"d\.jsonl:1: .*half a surrogate pair"):
        list(read_conversations(tmp_path / "d.jsonl", Appending(), eos_id=EOS))


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": "a", "response": 3}',
        '{"prompt": "a", "response": ""}',
        '{"prompt_ids": [], "response_ids": [1]}',
        '{"text": "a"}',
        "nonsense",
    ],
)
def test_a_conversation_that_can_not_be_used_names_its_line(tmp_path, line):
    from fakes import ByteTokenizer

    (tmp_path / "d.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=r"d\.jsonl:1"):
        list(read_conversations(tmp_path / "d.jsonl", ByteTokenizer(), eos_id=None))
