import pytest
from fakes import EOS, ByteTokenizer

from hambench.engine.text import (
    TextStream,
    answer_text,
    count_tokens,
    encode_prompt,
    encode_text,
    step_texts,
)
from hambench.errors import ContextOverflowError, HambenchError
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


class Appending(ByteTokenizer):
    """Begins every text and ends it, as some tokenizers' post-processors do."""

    bos_token, begins, ends = "<bos>", True, True

    def __call__(self, text, add_special_tokens=True):
        text.encode()
        ids = [256] * text.startswith(self.bos_token) + list(text.removeprefix(self.bos_token).encode())
        if add_special_tokens:
            ids = [256] * self.begins + ids + [EOS] * self.ends
        return {"input_ids": ids}


@pytest.mark.parametrize(
    ("text", "begins", "ids"),
    [
        ("hi", True, [256, 104, 105]),
        ("<bos>hi", True, [256, 104, 105]),
        ("hi", False, [104, 105]),
        ("", False, []),
    ],
)
def test_a_prompt_begins_once_and_never_ends(text, begins, ids):
    tokenizer = Appending()
    tokenizer.begins = begins
    assert encode_text(text, tokenizer) == ids


def test_an_end_token_that_the_text_has_itself_stays():
    tokenizer = Appending()
    tokenizer.ends = False
    tokenizer.__class__ = type("Own", (Appending,), {"__call__": lambda *_, **__: {"input_ids": [104, EOS]}})
    assert encode_text("h<eos>", tokenizer) == [104, EOS]


def test_text_that_is_no_unicode_is_one_line_and_can_still_be_counted():
    with pytest.raises(
        HambenchError, match=r"not Unicode text: half a surrogate pair, .ud83d, at character 1"
    ):
        encode_text("a\ud83d", Appending())
    assert count_tokens("a\ud83d", Appending()) == count_tokens("a?", Appending())


def test_a_burst_is_shown_up_to_the_character_that_is_still_coming():
    stream = TextStream(TOKENIZER)
    euro = list("€".encode())
    assert stream.add([97, 98, *euro[:2]]) == "ab"
    assert stream.add([*euro[2:], 99]) == "€c"
    assert stream.add(euro[:1]) == ""
    assert stream.rest() == "\ufffd"


def test_bytes_that_never_become_a_character_are_shown_once():
    stream = TextStream(TOKENIZER)
    pieces = [stream.add([byte]) for byte in (97, 0xFF, 0xFF, 98, 0xE2)] + [stream.rest()]
    assert "".join(pieces) == bytes((97, 0xFF, 0xFF, 98, 0xE2)).decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a\n\nb</think>\n\nParis\n\nmore", "Paris"),
        ("a</think>b</think> c", "c"),
        ("no thinking", "no thinking"),
    ],
)
def test_thinking_is_cut_before_stop_strings_are_looked_for(text, answer):
    record = trace(text.encode())
    assert answer_text(record, TOKENIZER, ["\n\n"], think_end="</think>") == answer


def test_an_end_of_thinking_that_is_a_special_token_is_found_by_its_id():
    tokenizer = ByteTokenizer()
    tokenizer.get_vocab = lambda: {"[/THINK]": 258}
    record = trace([97, 258, 32, 98])
    assert answer_text(record, tokenizer, (), think_end="[/THINK]") == "b"
