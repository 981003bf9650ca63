import pytest
from fakes import EOS, ByteTokenizer

from hambench.engine.text import answer_text, encode_prompt, step_texts
from hambench.errors import ContextOverflowError
from hambench.records import GenerationTrace, Sample, StepRecord

TOKENIZER = ByteTokenizer()


def sample(prompt, **kwargs):
    base = {"sample_id": "s/t/0", "suite": "s", "task": "t", "category": "c", "doc_id": 0, "stop": ()}
    return Sample(**{**base, "prompt": prompt, "max_new_tokens": 10, **kwargs})


def trace(*steps):
    records = tuple(StepRecord(tokens=tuple(step), seconds=0.1) for step in steps)
    return GenerationTrace(prompt_tokens=1, steps=records, finish="length")


def test_a_prompt_that_fits_is_untouched():
    assert encode_prompt(sample("abc"), TOKENIZER, context_length=13) == ([97, 98, 99], 0)


def test_a_prompt_that_does_not_fit_is_refused_unless_its_suite_has_a_rule():
    with pytest.raises(ContextOverflowError, match="a prompt of 4 tokens and max_new_tokens = 10 exceed"):
        encode_prompt(sample("abcd"), TOKENIZER, context_length=13)


def test_the_middle_cut_keeps_both_ends_and_counts_what_it_took():
    prompt = encode_prompt(sample("0123456789" * 3, truncation="middle"), TOKENIZER, context_length=20)
    assert bytes(prompt.ids) == b"0123456789"
    assert prompt.num_truncated == 20


def test_the_middle_cut_leaves_a_chat_turns_wrapping_whole():
    wrapped = sample(
        "<user>" + "x" * 50 + "Q</user>", truncation="middle", chat=True, keep_start=6, keep_end=7
    )
    prompt = encode_prompt(wrapped, TOKENIZER, context_length=33)
    assert bytes(prompt.ids) == b"<user>" + b"x" * 9 + b"Q</user>"
    assert len(prompt.ids) <= 23


def test_a_limit_as_long_as_the_context_leaves_no_room_for_a_cut():
    with pytest.raises(ContextOverflowError):
        encode_prompt(sample("abcd", truncation="middle"), TOKENIZER, context_length=10)


def test_the_answer_is_cut_before_the_first_stop_string_and_has_no_special_tokens():
    answer = trace(b"one STOP", (*b"two\n", EOS))
    assert answer_text(answer, TOKENIZER, ("\n", "STOP")) == "one "
    assert answer_text(answer, TOKENIZER, ()) == "one STOPtwo\n"


def test_pieces_of_steps_join_to_the_answer_and_split_characters_come_whole():
    euro = "€".encode()
    answer = trace(b"a", euro[:1], euro[1:], b"b")
    assert step_texts(answer, TOKENIZER) == ("a", "", "€", "b")


def test_bytes_that_never_become_a_character_are_shown_at_the_end():
    assert "".join(step_texts(trace(b"a", b"\xe2"), TOKENIZER)) == "a\ufffd"
