"""What a step has in use at its fullest: rejected drafts and micro-steps have slots too."""

from __future__ import annotations

import pytest
from fakes import tiny_target
from fakes_hamburger import save_tiny_hamburger

from hambench.decoding import SamplingParams, answered
from hambench.engine.loop import generate
from hambench.methods.common.acceptance import Accepted
from hambench.registry import method_config

PROMPT = [1, 2, 3, 1, 2, 3, 1, 2]


def steps_of(name, knobs):
    target = tiny_target()
    method = method_config(name).from_knobs(knobs).build(target)
    trace = generate(method, PROMPT, SamplingParams(max_new_tokens=24))
    return trace.steps[1:], target.llama.new_cache(1).bytes_per_slot


@pytest.mark.parametrize("kv", ["separate", "shared"])
def test_drafts_are_in_use_while_they_are_verified(kv):
    target = tiny_target()
    method = method_config("speculative").from_knobs({"num_draft_tokens": 3, "kv": kv}).build(target)
    session = method.start(PROMPT, SamplingParams(max_new_tokens=24))
    answered(session.prefill())
    # all drafts rejected: afterwards nothing is left of them
    session.accept = lambda wanted, drafted: Accepted(0, wanted[0])
    slot = target.llama.new_cache(1).bytes_per_slot
    for before in range(len(PROMPT), len(PROMPT) + 3):
        step = answered(session.step())
        # the pending token and three drafts in the target's cache, all but the newest draft in the draft's own
        slots = before + 4 + (before + 3 if kv == "separate" else 0)
        assert step.peak_kv_bytes == slots * slot
        assert step.peak_kv_bytes > session.kv.bytes


def test_proposals_from_the_prompt_are_in_use_while_they_are_verified():
    steps, slot = steps_of("prompt_lookup", {"num_draft_tokens": 4})
    assert any(step.drafted for step in steps)
    before = len(PROMPT)
    for step in steps:
        assert step.peak_kv_bytes == (before + 1 + step.drafted) * slot
        before = step.kv_slots


def test_the_micro_steps_cache_is_in_use_while_they_run(tmp_path):
    knobs = {"confidence": 0.0, "checkpoint": str(save_tiny_hamburger(tmp_path / "grafts"))}
    steps, _ = steps_of("hamburger", knobs)
    many = [step for step in steps if step.micro_forwards]
    assert many
    assert all(step.peak_kv_bytes > step.kv_bytes for step in many)


def test_a_method_without_such_slots_has_no_other_peak():
    steps, _ = steps_of("vanilla", {})
    assert {step.peak_kv_bytes for step in steps} == {None}
