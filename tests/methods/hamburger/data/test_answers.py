"""The base's own answers to prompts: which prompts are asked when time is short, and how answers are stored."""

import json
from types import SimpleNamespace

import pytest

from hambench.methods.hamburger.data import prompts, self_distill
from hambench.methods.hamburger.data.pipeline import ANSWERS_NAME
from hambench.methods.hamburger.data.prompts import Prompt
from hambench.methods.hamburger.data.self_distill import SelfDistillation, answer_prompts
from hambench.methods.hamburger.training.budget import Clock, RunOptions
from hambench.methods.hamburger.training.recipes import SMALL

EOS = 0
TOKENIZER = SimpleNamespace(
    chat_template="{{ messages }}",
    apply_chat_template=lambda messages, tokenize: f"user: {messages[0]['content']} end",
    decode=lambda ids, skip_special_tokens: f"a question about {ids}",
)


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Prompts as they are asked, and options of each call; answers end in the reverse order."""
    calls = []

    def generate(model, ids, **options):
        calls.append((ids, options))
        yield from ((i, [i + 1, EOS]) for i in reversed(range(len(ids))))

    monkeypatch.setattr(self_distill, "tokenizer_of", lambda _: (TOKENIZER, frozenset({EOS})))
    monkeypatch.setattr(self_distill, "generate", generate)
    monkeypatch.setattr(self_distill, "encode_text", lambda text, *_, **__: list(text.encode()))
    monkeypatch.setattr(self_distill, "prompt_ids", lambda _, prompt: list(prompt.text.encode()))
    monkeypatch.setattr(
        prompts,
        "build_prompts",
        lambda count, *, seed: [Prompt(f"built {i}", "puzzle", chat=False) for i in range(count)],
    )
    return calls


def answer(trainer, path):
    settings = SelfDistillation(num_prompts=100, num_user_turns=20)
    answer_prompts(trainer, None, settings, path, lambda _: None)
    return [json.loads(line) for line in path.read_text().splitlines()]


def trainer_at(tmp_path, seconds=0.0):
    """What answering asks of a run of ten minutes that has used some seconds."""
    clock = Clock(10.0)
    clock.resume(seconds)
    options = RunOptions(out=tmp_path)
    return SimpleNamespace(model_name="tiny", folder=tmp_path, clock=clock, recipe=SMALL, options=options)


def test_all_kinds_of_prompts_are_among_the_first(asked, tmp_path):
    answer(trainer_at(tmp_path), tmp_path / ANSWERS_NAME)
    texts = [bytes(ids).decode() for ids in asked[1][0]]
    assert len(texts) == 100
    turns = [text.startswith("a question") for text in texts]
    assert sum(turns) == 20
    assert 4 <= sum(turns[:50]) <= 16, "a run whose time ends at half of its prompts has had turns too"


def test_answers_are_stored_in_the_order_of_their_prompts_and_not_as_they_end(asked, tmp_path):
    rows = answer(trainer_at(tmp_path), tmp_path / ANSWERS_NAME)
    assert [row["response_ids"] for row in rows] == [[i + 1, EOS] for i in range(100)]
    assert [row["prompt_ids"] for row in rows] == asked[1][0]


def test_user_turns_take_no_more_than_a_quarter_of_the_time_for_answers(asked, tmp_path):
    # half of the time for data is for answers
    share = SMALL.data_share / 2
    for used, turns_may, answers_may in ((0.2, True, True), (0.3, False, True), (1.1, False, False)):
        asked.clear()
        answer(trainer_at(tmp_path, 600 * share * used), tmp_path / ANSWERS_NAME)
        (_, turns), (_, answers) = asked
        assert (turns["may_begin"](), answers["may_begin"]()) == (turns_may, answers_may)
