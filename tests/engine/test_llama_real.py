"""The lean forward pass against transformers on the embedded default model."""

import pytest
import torch
from transformers import AutoModelForCausalLM

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


def greedy(target, prompt, num_tokens):
    chat = [{"role": "user", "content": prompt}]
    ids = torch.tensor(
        target.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    )
    cache = target.llama.new_cache(len(ids) + num_tokens)
    out, tokens = target.llama.prefill(ids, cache), []
    for _ in range(num_tokens):
        tokens.append(int(out.logits[-1].argmax()))
        out = target.llama.forward(torch.tensor(tokens[-1:]), cache)
    return ids, torch.tensor(tokens)


def check(target, reference, prompt, num_tokens):
    ids, tokens = greedy(target, prompt, num_tokens)
    # one forward over what we generated gives transformers' choice after each prefix: if all are ours, then its own
    # greedy run is ours, each choice following from an equal beginning
    with torch.no_grad():
        logits = reference(torch.cat([ids, tokens])[None]).logits[0, len(ids) - 1 : -1]
    assert logits.argmax(-1).tolist() == tokens.tolist()


def test_the_first_greedy_tokens_are_those_of_transformers(target, reference):
    check(target, reference, PROMPTS[0], 12)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_two_hundred_greedy_tokens_are_those_of_transformers(target, reference, prompt):
    check(target, reference, prompt, 200)


def test_the_model_answers_and_ends_its_turn(target):
    _, tokens = greedy(target, PROMPTS[0], 12)
    end = target.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in target.eos_ids
    assert end in tokens.tolist()
    assert "Paris" in target.tokenizer.decode(tokens.tolist())


def test_the_record_says_that_this_is_not_the_original_checkpoint(target):
    assert "de-quantised" in target.identity.note
    assert "not the original checkpoint" in target.identity.note
