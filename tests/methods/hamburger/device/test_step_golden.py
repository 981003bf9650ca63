"""Device macro-steps against recorded ones: the public code's golden cases, and the weights that ship for SmolLM2."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from fake_launches import Replayed
from fakes_hamburger import import_golden, shape_of

from hambench.decoding import SamplingParams, answered
from hambench.engine.cuda.early_exit import GRAPH_LOOPS
from hambench.engine.cuda.fused_llama import FusedLlama
from hambench.engine.llama import Llama
from hambench.engine.loop import generate
from hambench.methods.hamburger import HamburgerConfig
from hambench.methods.hamburger.device.session import DeviceSession
from hambench.methods.hamburger.model import HamburgerModel
from hambench.methods.hamburger.session import HamburgerSession
from hambench.models.target import load


@pytest.fixture(scope="module")
def golden(shared_data, tmp_path_factory):
    return import_golden(shared_data / "hamburger_golden", tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("loop", GRAPH_LOOPS)
def test_every_golden_group_and_slot_count_is_identical(golden, loop):
    expected, checkpoint, base = golden
    plain = Llama(shape_of(base), checkpoint.group("base"))
    model = HamburgerModel(FusedLlama(plain, impl="reference", launches=Replayed()), checkpoint)
    beside = HamburgerModel(plain, checkpoint)
    for case in expected["decode_hf_positions"]:
        shared = (case["prompt"], SamplingParams(max_new_tokens=80))
        settings = {"confidence": case["confidence"], "position_convention": "hf"}
        session, other = (
            DeviceSession(model, *shared, **settings, loop=loop),
            HamburgerSession(beside, *shared, **settings),
        )
        with torch.inference_mode():
            steps, others = (
                [answered(s.prefill()), *(answered(s.step()) for _ in case["groups"][1:])]
                for s in (session, other)
            )
        assert [list(step.tokens) for step in steps] == case["groups"]
        assert session.kv.slots == case["kv_len"]
        for step, want in zip(steps, others, strict=True):
            assert step.continue_probs == pytest.approx(want.continue_probs, abs=1e-4)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("confidence", [0.5, 0.8])
def test_the_shipped_weights_decode_the_same_tokens_on_the_device(confidence):
    target = load("smollm2-135m", dtype="float32")
    fused = dataclasses.replace(target, llama=FusedLlama(target.llama, impl="reference"), _shared={})
    chat = [{"role": "user", "content": "Write a Python function that reverses a linked list."}]
    prompt = target.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    methods = [HamburgerConfig(confidence=confidence).build(t) for t in (target, fused)]
    assert isinstance(methods[1].start(prompt, SamplingParams(max_new_tokens=1)), DeviceSession)
    want, got = (generate(m, prompt, SamplingParams(max_new_tokens=24)) for m in methods)
    assert any(len(step.tokens) > 1 for step in want.steps), (
        "the case must hold macro-steps of several tokens"
    )
    for a, b in zip(want.steps, got.steps, strict=True):
        assert (a.tokens, a.kv_slots, a.discarded) == (b.tokens, b.kv_slots, b.discarded)
        assert b.continue_probs == pytest.approx(a.continue_probs, abs=1e-3)
