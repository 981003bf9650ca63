"""The macro-step on the kernels themselves, interpreted on a CPU: the tokens and counts of the plain session."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
from fakes import random_weights
from fakes_hamburger import import_golden, shape_of, tiny_checkpoint

from hambench.decoding import SamplingParams, answered
from hambench.engine.cuda.fused_llama import FusedLlama
from hambench.engine.llama import Llama
from hambench.engine.shape import LlamaShape
from hambench.errors import NotFiniteError
from hambench.kernels import tuning
from hambench.kernels.tuning import Tile
from hambench.methods.hamburger.architecture import Architecture
from hambench.methods.hamburger.device.session import DeviceSession
from hambench.methods.hamburger.model import HamburgerModel
from hambench.methods.hamburger.session import HamburgerSession

# programs are few: the interpreter takes milliseconds for each
SHAPE = LlamaShape(
    vocab_size=41,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    max_positions=512,
    tie_embeddings=False,
)
PUBLISHED = Architecture(feature_layers=(0, 1), num_micro_layers=2, merge_heads=2)
VARIANTS = {
    "published": PUBLISHED,
    "norm, last token, token 1 from an inner layer": dataclasses.replace(
        PUBLISHED, feature_layers=(0,), num_micro_layers=1, micro_norm=True, merge_residual="last"
    ),
}


@pytest.fixture(autouse=True)
def few_programs():
    with tuning.trial(Tile(8, 1), []):
        yield


def steps_of(session, number):
    with torch.inference_mode():
        return [answered(session.prefill()), *(answered(session.step()) for _ in range(number - 1))]


@pytest.mark.parametrize("architecture", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_kernels_macro_step_is_the_plain_one(architecture, device):
    llama = Llama(SHAPE, random_weights(SHAPE, seed=4), torch.float32, device)
    checkpoint = tiny_checkpoint(architecture, SHAPE, seed=2)
    plain = HamburgerModel(llama, checkpoint)
    fused = HamburgerModel(FusedLlama(llama, impl="fused"), checkpoint)
    shared = ([5, 6, 7, 30, 9, 11, 12, 3, 2], SamplingParams(max_new_tokens=40))
    settings = {"confidence": 0.45, "position_convention": "train"}
    want = steps_of(HamburgerSession(plain, *shared, **settings), 4)
    got = steps_of(DeviceSession(fused, *shared, **settings, loop="run-ahead"), 4)
    assert [step.tokens for step in got] == [step.tokens for step in want]
    assert len({len(step.tokens) for step in want}) > 1, "the case must hold macro-steps of several lengths"
    for a, b in zip(want, got, strict=True):
        assert b.continue_probs == pytest.approx(a.continue_probs, abs=1e-4)


@pytest.mark.parametrize("place", ["prompt", "macro-step", "stop head"])
def test_logits_that_are_no_numbers_end_the_answer_on_the_device_too(place, device):
    weights = random_weights(SHAPE, seed=4)
    if place == "prompt":
        weights["model.norm.weight"][0] = torch.nan
    checkpoint = tiny_checkpoint(PUBLISHED, SHAPE, seed=2)
    if place == "stop head":
        name = next(name for name in checkpoint.tensors if name.startswith("stop_head") and "bias" in name)
        checkpoint.tensors[name][0] = torch.nan
    llama = FusedLlama(Llama(SHAPE, weights, torch.float32, device), impl="fused")
    model, params = HamburgerModel(llama, checkpoint), SamplingParams(max_new_tokens=20)
    session = DeviceSession(
        model, [5, 6, 7], params, confidence=0.0, position_convention="train", loop="run-ahead"
    )
    if place == "macro-step":
        steps_of(session, 1)
        with torch.inference_mode():
            llama.norm.weight[0] = torch.nan
    with pytest.raises(NotFiniteError, match="not finite"), torch.inference_mode():
        answered(session.step()) if place == "macro-step" else answered(session.prefill())


@pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("HAMBENCH_INTERPRET_GOLDEN") != "1",
    reason="takes minutes under the interpreter; HAMBENCH_INTERPRET_GOLDEN=1 runs it there",
)
def test_the_first_golden_macro_steps_on_the_kernels(shared_data, tmp_path, device):
    expected, checkpoint, base = import_golden(shared_data / "hamburger_golden", tmp_path)
    llama = FusedLlama(Llama(shape_of(base), checkpoint.group("base"), device=device), impl="fused")
    case = next(c for c in expected["decode_hf_positions"] if len(c["prompt"]) > 8)
    session = DeviceSession(
        HamburgerModel(llama, checkpoint),
        case["prompt"],
        SamplingParams(max_new_tokens=80),
        confidence=case["confidence"],
        position_convention="hf",
        loop="run-ahead",
    )
    found = [list(step.tokens) for step in steps_of(session, 3)]
    assert found == case["groups"][:3]
