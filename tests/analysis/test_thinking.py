import pytest

from hambench.analysis.cautions.thinking import advice, uncut_thinking
from hambench.records import SampleRecord


def record(text):
    return SampleRecord(cell="c", sample_id="s", prompt_hash="0", text=text)


@pytest.mark.parametrize(
    ("text", "marker"),
    [
        ("\n<think>a", "<think>"),
        ("a</think>b", "</think>"),
        ("<|channel|>analysis<|message|>a", "<|channel|>analysis"),
        ("I <think> so", None),
        ("", None),
        (None, None),
    ],
)
def test_thinking_begins_an_answer_or_has_an_end_in_it(text, marker):
    assert uncut_thinking([record(text)]) == (int(marker is not None), marker)


def test_the_advice_names_the_marker_that_most_answers_have():
    num, marker = uncut_thinking(map(record, ("<think>a", "b</think>", "<think>c", "d")))
    assert advice(num, 4, marker).startswith("3 of 4 answers hold thinking (<think>)")
