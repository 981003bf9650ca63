"""Sampled answers in the graph regime: graphs are captured before the clock runs, as greedy ones are."""

from __future__ import annotations

import dataclasses

import pytest
from fake_launches import Replayed
from fakes import tiny_target
from fakes_hamburger import save_tiny_hamburger

from hambench.decoding import SamplingParams, answered
from hambench.engine.cuda.fused_llama import FusedLlama
from hambench.engine.warmup import warm_up
from hambench.registry import method_config

METHODS = (
    ("vanilla", {}),
    ("speculative", {"num_draft_tokens": 3, "kv": "separate"}),
    ("speculative", {"num_draft_tokens": 3, "kv": "shared"}),
    ("prompt_lookup", {"num_draft_tokens": 3}),
    ("suffix", {"num_draft_tokens": 3}),
    ("speculative", {"num_draft_tokens": 3, "confidence": 0.01}),
    ("speculative", {"num_draft_tokens": 3, "kv": "shared", "draft_stop": "each", "gamma": 0.01}),
    ("speculative", {"num_draft_tokens": 3, "draft_stop": "goodput", "verification": "block"}),
    ("speculative", {"num_draft_tokens": 3, "accept": "relative", "confidence": 0.5}),
    ("prompt_lookup", {"num_draft_tokens": 3, "confidence": 0.5}),
    ("hamburger", {"confidence": 0.0, "verify": True}),
    ("hamburger", {"confidence": 0.0}),
    ("hamburger", {"confidence": 1.1}),
)


@pytest.mark.parametrize(("name", "knobs"), METHODS, ids=lambda value: str(value))
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_no_graph_is_captured_inside_a_step(name, knobs, temperature, tmp_path):
    target = tiny_target()
    launches = Replayed()
    fused = FusedLlama(target.llama, impl="reference", launches=launches)
    target = dataclasses.replace(target, llama=fused, _shared={})
    if name == "hamburger":
        knobs = {**knobs, "checkpoint": str(save_tiny_hamburger(tmp_path / "grafts"))}
    method = method_config(name).from_knobs(knobs).build(target)
    prompt = [1, 2, 3, 1, 2, 3, 1, 2]
    session = method.start(prompt, SamplingParams(max_new_tokens=20, temperature=temperature, seed=2))
    prepared = launches.num_captured
    answered(session.prefill())
    for _ in range(4):
        answered(session.step())
    assert launches.num_captured == prepared


def test_a_warm_up_decodes_as_the_answers_to_come():
    seen = []

    class Seeing:
        def __init__(self, method):
            self.method = method

        def warmup(self):
            pass

        def start(self, prompt_ids, params):
            seen.append((params.temperature, params.top_p))
            return self.method.start(prompt_ids, params)

    target = tiny_target()
    method = method_config("vanilla").from_knobs({}).build(target)
    warm_up(Seeing(method), target.context_length, temperature=0.7, top_p=0.9)
    assert set(seen) == {(0.7, 0.9)}
