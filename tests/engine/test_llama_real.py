"""The lean forward pass against transformers on the embedded default model."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from hambench.engine.requests.rows import Rows
from hambench.models.target import load, locate

pytestmark = pytest.mark.model
PROMPTS = (
    "What is the capital of France?",
    "Write a Python function that reverses a linked list.",
    "Explain in three sentences why the sky is blue.",
    "List five animals that live in the sea and say what each eats.",
    "Tell me a story about a lighthouse keeper and a storm.",
)


@pytest.fixture(scope="module")
def target():
    return load("smollm2-135m", dtype="float32")


@pytest.fixture(scope="module")
def reference():
    return AutoModelForCausalLM.from_pretrained(locate("smollm2-135m")[0], dtype=torch.float32).eval()


def greedy(target, prompts, num_tokens):
    """The ids of each prompt and of its greedy answer; answers to several prompts share their forwards."""
    asked, caches, outs = [], [], []
    for prompt in prompts:
        chat = [{"role": "user", "content": prompt}]
        ids = target.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        asked.append(torch.tensor(ids))
        caches.append(target.llama.new_cache(len(ids) + num_tokens))
        outs.append(target.llama.prefill(asked[-1], caches[-1]))
    answers = [[] for _ in prompts]
    for _ in range(num_tokens):
        for answer, out in zip(answers, outs, strict=True):
            answer.append(int(out.logits[-1].argmax()))
        last = [torch.tensor(answer[-1:]) for answer in answers]
        if len(prompts) == 1:
            outs = [target.llama.forward(last[0], caches[0])]
        else:
            outs = target.llama.forward_together([Rows(*each) for each in zip(last, caches, strict=True)])
    return list(zip(asked, map(torch.tensor, answers), strict=True))


@pytest.fixture(scope="module")
def answers(target):
    """The first prompt's answer decoded alone, those of the others together: that reads the weights once for all."""
    return [*greedy(target, PROMPTS[:1], 200), *greedy(target, PROMPTS[1:], 200)]


def check(reference, ids, tokens):
    # one forward over what we generated gives transformers' choice after each prefix: if all are ours, then its own
    # greedy run is ours, each choice following from an equal beginning
    with torch.no_grad():
        logits = reference(torch.cat([ids, tokens])[None]).logits[0, len(ids) - 1 : -1]
    assert logits.argmax(-1).tolist() == tokens.tolist()


def test_the_first_greedy_tokens_are_those_of_transformers(target, reference):
    ((ids, tokens),) = greedy(target, PROMPTS[:1], 12)
    assert len(tokens) == 12
    check(reference, ids, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_two_hundred_greedy_tokens_are_those_of_transformers(answers, reference, index):
    ids, tokens = answers[index]
    assert len(tokens) == 200
    check(reference, ids, tokens)


def test_the_model_answers_and_ends_its_turn(target):
    ((_, tokens),) = greedy(target, PROMPTS[:1], 12)
    end = target.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in target.eos_ids
    assert end in tokens.tolist()
    assert "Paris" in target.tokenizer.decode(tokens.tolist())


def test_the_record_says_that_this_is_not_the_original_checkpoint(target):
    assert "de-quantised" in target.identity.note
    assert "not the original checkpoint" in target.identity.note
