"""What a server that applies the chat template itself is sent, and rounds put together from single tokens."""

import pytest

from hambench.engine.chat import ChatTemplateError
from hambench.method_facts import AnswerTotals
from hambench.methods.peers.endpoint_prompt import messages_of
from hambench.methods.peers.llama_cpp_rounds import Rounds
from hambench.serving.events import Chunk


class Template:
    chat_template = "x"

    def __init__(self, default="", refuses=(), thinks=""):
        self.default, self.refuses, self.thinks = default, refuses, thinks

    def apply_chat_template(self, messages, *, add_generation_prompt=True, **_):
        if any(each["role"] in self.refuses for each in messages):
            raise ChatTemplateError("no")
        said = "" if messages[0]["role"] == "system" else self.default
        said += "".join(f"<{each['role']}>{each['content'].strip()}</{each['role']}>\n" for each in messages)
        return (
            f"{said}<assistant>{self.thinks}"
            if add_generation_prompt
            else said.removesuffix("</assistant>\n")
        )


def say(*contents, first="user"):
    roles = ["system", "user"] if first == "system" else ["user", "assistant"]
    order = (
        roles + ["user", "assistant"] * len(contents)
        if first == "user"
        else ["system", *["user", "assistant"] * 9]
    )
    return [{"role": role, "content": text} for role, text in zip(order, contents, strict=False)]


@pytest.mark.parametrize("default", ["", "<system>Be helpful.</system>\n"])
@pytest.mark.parametrize(
    "messages",
    [
        say("Why?"),
        say("one", "ONE", "two"),
        say("one", "ONE", "two", "TWO\n\nlines", "three"),
        say("Be kind.", "Hello", first="system"),
        say("Be kind.", "one", "ONE", "two", first="system"),
    ],
)
def test_the_messages_of_a_templated_prompt_are_found_again(messages, default):
    tokenizer = Template(default)
    assert messages_of(tokenizer.apply_chat_template(messages), tokenizer) == messages


@pytest.mark.parametrize("thinks", ["", "<think></think>"])
@pytest.mark.parametrize("default", ["", "<system>Be helpful.</system>\n"])
@pytest.mark.parametrize(
    "messages",
    [
        say("Why?", "Because"),
        say("one", "ONE", "two", "TWO\n\ndef f(x):"),
        say("Be kind.", "Hello", 'Summary: "', first="system"),
        say("Be kind.", "one", "ONE", "two", "def f(x):\n    ", first="system"),
    ],
)
def test_an_answer_that_the_prompt_begins_is_the_last_message(messages, default, thinks):
    """The whole prompt, markup included, was once sent as one message of the user."""
    tokenizer = Template(default, thinks=thinks)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    found = messages_of(prompt, tokenizer)
    # the template strips what a message ends with
    assert found == [{**each, "content": each["content"].strip()} for each in messages]
    assert tokenizer.apply_chat_template(found, add_generation_prompt=False) == prompt


@pytest.mark.parametrize(
    "text",
    [
        "<user>Why?</user>\n",
        "<user>Why?</user>\n<assistant>",
        "<user>Why?</user>\n<assistant> spaced, which the template would not write",
        "Why?</user>\n<assistant>Because",
        "<user>Why?<assistant>Because",
    ],
)
def test_a_text_that_only_looks_like_a_begun_answer_is_one_message(text):
    assert messages_of(text, Template(thinks="<think></think>")) == [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    "tokenizer", [Template(), Template(refuses=("system", "assistant")), Template("x"), None]
)
def test_a_text_of_no_template_is_one_message(tokenizer):
    assert messages_of("plain text", tokenizer) == [{"role": "user", "content": "plain text"}]


def test_a_template_without_system_messages_still_parts_turns():
    tokenizer = Template(refuses=("system",))
    assert messages_of(tokenizer.apply_chat_template(say("a", "b", "c")), tokenizer) == say("a", "b", "c")


def chunk(drafted, accepted):
    return Chunk(totals=AnswerTotals(drafted=drafted, accepted=accepted))


def test_tokens_of_a_round_are_one_step_with_its_counts():
    rounds, steps = Rounds(), []
    # a plain token, a round of four drafted and two accepted, a round that accepts none
    for token, counts in ((1, (0, 0)), (2, (4, 2)), (3, (4, 2)), (4, (4, 2)), (5, (8, 2)), (6, (8, 2))):
        rounds.add((token,), chunk(*counts))
        if ids := rounds.taken(ended=False):
            steps.append((ids, rounds.counts["drafted"], rounds.counts["accepted"]))
    assert steps == [((1,), 0, 0), ((2, 3, 4), 4, 2), ((5,), 4, 0), ((6,), 0, 0)]


def test_an_answer_that_ends_within_a_round_gives_what_there_is():
    rounds = Rounds()
    rounds.add((7,), chunk(4, 3))
    assert rounds.taken(ended=False) == ()
    rounds.add((8,), chunk(4, 3))
    assert rounds.taken(ended=True) == (7, 8)
    assert rounds.counts["accepted"] == 2
