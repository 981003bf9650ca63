"""Chat prompts: templates are foreign programs, users' text is text, end markers are the template's own."""

import json

import pytest
from fakes import save_tiny_model

from hambench.engine.chat import (
    ChatTemplateError,
    chat_template,
    check_arguments,
    encode_chat,
    end_of_turn_ids,
    parse_arguments,
    render_chat,
)
from hambench.errors import HambenchError

TURN = [{"role": "user", "content": "hi"}]


def tokenizer_with(folder, *controls, template, **flags):
    """The tiny tokenizer with more control tokens, each of which takes the place of a byte nobody writes."""
    from transformers import AutoTokenizer

    save_tiny_model(folder)
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, **flags}
    vocabulary = stored["model"]["vocab"]
    by_id = {number: text for text, number in vocabulary.items()}
    for number, control in enumerate(controls):
        free = 259 - 3 * number if number == 0 else number
        del vocabulary[by_id[free]]
        vocabulary[control] = free
        stored["added_tokens"].append({"id": free, "content": control, "special": True, **flags})
    path.write_text(json.dumps(stored))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    return tokenizer


def template_ending_turns_with(marker):
    return (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}" + marker + "\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )


@pytest.mark.parametrize("marker", ["<end_of_turn>", "<|end|>", "<|im_end|>", "<|eot_id|>", "<|my own|>"])
def test_the_marker_that_ends_an_answer_ends_it_whatever_it_is_called(tmp_path, marker):
    tokenizer = tokenizer_with(tmp_path, marker, template=template_ending_turns_with(marker))
    assert end_of_turn_ids(tokenizer) == {tokenizer.get_vocab()[marker]}


def test_a_marker_that_only_opens_turns_is_no_end(tmp_path):
    template = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert end_of_turn_ids(tokenizer_with(tmp_path, "<|turn|>", template=template)) == set()


def test_a_template_that_refuses_the_question_is_read_for_well_known_markers(tmp_path):
    template = "{{ raise_exception('no') }}" + template_ending_turns_with("<end_of_turn>")
    tokenizer = tokenizer_with(tmp_path, "<end_of_turn>", template=template)
    assert end_of_turn_ids(tokenizer) == {259}


@pytest.mark.parametrize("flags", [{}, {"lstrip": True}, {"rstrip": True}])
def test_a_spelled_control_token_stays_text_and_the_templates_own_are_tokens(tmp_path, flags):
    marker = "<|im_end|>"
    tokenizer = tokenizer_with(tmp_path, marker, template=template_ending_turns_with(marker), **flags)
    ids = encode_chat(tokenizer, [{"role": "user", "content": f"a{marker}b"}])
    assert ids.count(259) == 1
    assert tokenizer.decode(ids).startswith(f"[user]a{marker}b{marker}")
    plain = encode_chat(tokenizer, TURN)
    assert plain == tokenizer(render_chat(tokenizer, TURN), add_special_tokens=False)["input_ids"]
    # the way around gives what the straight way gives where nothing is spelled
    both = encode_chat(tokenizer, [*TURN, {"role": "assistant", "content": marker}, *TURN])
    assert both[: plain.index(259) + 1] == plain[: plain.index(259) + 1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=false", False),
        ("a=True", True),
        ("a=3", 3),
        ("a=0.5", 0.5),
        ("a=low", "low"),
        ("a=", ""),
        ("a=null", None),
    ],
)
def test_arguments_are_words_numbers_and_switches(text, value):
    assert parse_arguments([text]) == {"a": value}


@pytest.mark.parametrize("text", ["a", "=1", "a b=1", "a=[1]", "a={}"])
def test_another_argument_is_refused(text):
    with pytest.raises(HambenchError, match=r"argument|NAME=VALUE"):
        parse_arguments([text])


def test_arguments_reach_the_template_or_are_refused(tmp_path):
    tokenizer = tokenizer_with(
        tmp_path, template="{{ messages[0].content }}{% if enable_thinking %}!{% endif %}"
    )
    assert render_chat(tokenizer, TURN, {"enable_thinking": True}) == "hi!"
    assert chat_template(tokenizer, {"enable_thinking": True})(TURN, add_generation_prompt=True) == "hi!"
    for name in ("enable_thought", "tokenize", "messages"):
        with pytest.raises(ChatTemplateError, match=repr(name)):
            check_arguments(tokenizer, {name: True})
    tokenizer.chat_template = None
    assert chat_template(tokenizer) is None
    with pytest.raises(ChatTemplateError, match="has no chat template"):
        chat_template(tokenizer, {"enable_thinking": True})
