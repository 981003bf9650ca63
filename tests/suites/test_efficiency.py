"""Speed-only prompts: exact lengths, fixed answers, nothing to score."""

import pytest

from hambench.errors import UnknownNameError
from hambench.records import SampleRecord
from hambench.suites import CaptureRequest, capture, score
from hambench.suites.efficiency import EFFICIENCY, OUTPUT_TOKENS, exact_prompt


def words_and_signs(text):
    """Counts like a tokenizer: three characters a token, a word never shares one with its neighbour."""
    return sum(-(-len(word) // 3) for word in text.split()) + text.count("\n")


@pytest.mark.parametrize("length", [8, 64, 257, 1024, 8192])
def test_prompts_have_exactly_the_length_asked_for(length):
    assert words_and_signs(exact_prompt(length, words_and_signs)) == length


def test_without_a_tokenizer_prompts_of_exact_length_are_missing_with_the_reason():
    captured = capture(CaptureRequest("efficiency", edition="offline"))
    assert {sample.task for sample in captured.samples} == {
        name for name in EFFICIENCY if name.startswith("prompt-")
    }
    assert all("tokenizer" in reason for reason in captured.missing.values())


def test_lengths_that_leave_no_room_to_answer_are_left_out():
    captured = capture(
        CaptureRequest("efficiency", edition="offline", count_tokens=words_and_signs, context_length=2048)
    )
    contexts = {sample.task for sample in captured.samples if sample.category == "context"}
    assert contexts == {"context-256", "context-512", "context-1024"}
    assert "exceed the model's context of 2048" in captured.missing["context-2048"]


def test_outputs_are_of_one_length_and_nothing_is_scored():
    captured = capture(CaptureRequest("efficiency", edition="offline"))
    assert captured.speed_only
    assert {(sample.stop, sample.max_new_tokens) for sample in captured.samples} == {((), OUTPUT_TOKENS)}
    sample = captured.samples[0]
    record = SampleRecord(cell="v", sample_id=sample.sample_id, prompt_hash="", text="x")
    assert score(captured.spec, {sample.sample_id: sample}, [record]) == []


def test_the_papers_prompts_come_from_the_official_rows(shared_data):
    captured = capture(CaptureRequest("efficiency", data=shared_data))
    by_task = {sample.task: sample.prompt for sample in captured.samples}
    assert by_task["prompt-mathematics"] == by_task["prompt-multilingual-mathematics"]
    assert by_task["prompt-code"].startswith("from typing import List")


def test_an_unknown_prompt_says_what_was_meant():
    with pytest.raises(UnknownNameError, match="did you mean context-256"):
        capture(CaptureRequest("efficiency", tasks=("context-255",)))
