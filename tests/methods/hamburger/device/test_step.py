"""Macro-steps on the device against the plain session: the same ids, counts, slots and probabilities."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from fake_launches import Queued, Replayed
from fakes import tiny_target
from fakes_hamburger import TINY_ARCHITECTURE, save_tiny_hamburger, tiny_checkpoint

from hambench.decoding import SamplingParams, answered
from hambench.engine.cuda.early_exit import GRAPH_LOOPS
from hambench.engine.cuda.fused_llama import FusedLlama
from hambench.engine.cuda.graphs import log_once
from hambench.engine.loop import generate
from hambench.errors import ContextOverflowError, HambenchError
from hambench.methods.hamburger import HamburgerConfig
from hambench.methods.hamburger.config import LOOPS, ONE_TOKEN_CONTROL
from hambench.methods.hamburger.device.session import DeviceSession
from hambench.methods.hamburger.device.step import fused_step_obstacle
from hambench.methods.hamburger.model import HamburgerModel
from hambench.methods.hamburger.session import HamburgerSession
from hambench.methods.speculative import SpeculativeConfig
from hambench.methods.vanilla import VanillaConfig

PROMPT, OTHER = [5, 6, 7, 80, 9], [200, 3, 3, 17, 90, 4, 41]
ARCHITECTURES = {
    "published": TINY_ARCHITECTURE,
    "last token, norm": dataclasses.replace(TINY_ARCHITECTURE, merge_residual="last", micro_norm=True),
    "fewer features, three steps, one layer": dataclasses.replace(
        TINY_ARCHITECTURE, feature_layers=(1, 3), max_micro_steps=3, num_micro_layers=1
    ),
    "token 1 from an inner layer": dataclasses.replace(TINY_ARCHITECTURE, feature_layers=(0, 2)),
}
EAGER = "stepwise"


@pytest.fixture(scope="module")
def plain_llama():
    return tiny_target().llama


def on_device(llama, launches=None, checkpoint=None):
    fused = FusedLlama(llama, impl="reference", launches=launches)
    return HamburgerModel(fused, checkpoint or tiny_checkpoint())


def sessions(plain, device, prompt=PROMPT, *, confidence=0.4, convention="train", loop="run-ahead"):
    shared = (prompt, SamplingParams(max_new_tokens=80))
    settings = {"confidence": confidence, "position_convention": convention}
    return (
        HamburgerSession(plain, *shared, **settings),
        DeviceSession(device, *shared, **settings, loop=loop),
    )


@torch.inference_mode()
def assert_same_steps(one, other, num_steps=12):
    lengths = []
    for number in range(num_steps):
        want, got = ((answered(s.step()) if number else answered(s.prefill())) for s in (one, other))
        assert got.tokens == want.tokens, f"macro-step {number}"
        assert got.micro_forwards == want.micro_forwards
        # float32 in another order of additions, through a sigmoid
        assert got.continue_probs == pytest.approx(want.continue_probs, abs=1e-5)
        assert other.kv == one.kv
        lengths.append(len(got.tokens))
    return lengths


@pytest.mark.parametrize("loop", [EAGER, *GRAPH_LOOPS])
@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_a_device_macro_step_is_the_plain_one(plain_llama, architecture, loop):
    checkpoint = tiny_checkpoint(architecture)
    model = on_device(plain_llama, None if loop == EAGER else Replayed(), checkpoint)
    pair = sessions(HamburgerModel(plain_llama, checkpoint), model, loop=loop)
    assert len(set(assert_same_steps(*pair))) > 1, "the case must hold macro-steps of several lengths"


@pytest.mark.parametrize("loop", GRAPH_LOOPS)
@pytest.mark.parametrize("confidence", [0.0, 0.45, ONE_TOKEN_CONTROL])
def test_macro_steps_on_a_late_device_are_the_plain_ones(plain_llama, confidence, loop):
    model = on_device(plain_llama, Queued())
    pair = sessions(HamburgerModel(plain_llama, tiny_checkpoint()), model, confidence=confidence, loop=loop)
    assert_same_steps(*pair)


@pytest.mark.parametrize("convention", ["train", "hf"])
def test_generated_slots_sit_where_the_convention_says(plain_llama, convention):
    model = on_device(plain_llama, Replayed())
    plain = HamburgerModel(plain_llama, tiny_checkpoint())
    assert_same_steps(*sessions(plain, model, convention=convention))


@pytest.mark.parametrize("loop", GRAPH_LOOPS)
def test_two_sessions_advance_in_turns_without_disturbing_each_other(plain_llama, loop):
    model, plain = on_device(plain_llama, Queued()), HamburgerModel(plain_llama, tiny_checkpoint())
    first = sessions(plain, model, PROMPT, confidence=0.4, loop=loop)
    second = sessions(plain, model, OTHER, confidence=0.2, loop=loop)
    with torch.inference_mode():
        for number in range(8):
            for want, got in (first, second):
                steps = [
                    (answered(s.step()) if number else answered(s.prefill())).tokens for s in (want, got)
                ]
                assert steps[0] == steps[1]


@pytest.mark.parametrize("loop", GRAPH_LOOPS)
def test_a_session_on_the_storage_of_a_finished_one_captures_nothing_and_starts_afresh(plain_llama, loop):
    launches = Queued()
    model, plain = on_device(plain_llama, launches), HamburgerModel(plain_llama, tiny_checkpoint())
    pair = sessions(plain, model, PROMPT, confidence=0.0, loop=loop)
    assert_same_steps(*pair, num_steps=4)
    prepared = launches.num_captured
    del pair
    # a device does what it was given in order: the part too many comes before what the next session sets
    launches.flush()
    assert_same_steps(*sessions(plain, model, OTHER, confidence=0.45, loop=loop))
    assert launches.num_captured == prepared


def test_nothing_is_captured_after_the_session_is_open(plain_llama):
    launches = Replayed()
    model = on_device(plain_llama, launches)
    _, session = sessions(HamburgerModel(plain_llama, tiny_checkpoint()), model)
    prepared = launches.num_captured
    with torch.inference_mode():
        answered(session.prefill())
        for _ in range(6):
            answered(session.step())
    # the prompt's five rows are a forward of their own
    assert launches.num_captured - prepared <= 1


def test_forced_lengths_are_what_is_emitted_and_may_change_from_step_to_step(plain_llama):
    model = on_device(plain_llama, Queued())
    _, session = sessions(HamburgerModel(plain_llama, tiny_checkpoint()), model)
    with torch.inference_mode():
        answered(session.prefill())
        for length in (1, 4, 2, 3, 3, 1):
            model.base.launches.flush()
            session.macro_step.force(length)
            assert len(answered(session.step()).tokens) == length
    with pytest.raises(ValueError, match=r"num_tokens must be 1\.\.4, got 5"):
        session.macro_step.force(5)


def test_other_tokens_may_take_the_place_of_the_last_ones(plain_llama):
    plain = HamburgerModel(plain_llama, tiny_checkpoint())
    pair = sessions(plain, on_device(plain_llama, Replayed()))
    with torch.inference_mode():
        given = [(11, 12, 13, 14)[: len(answered(s.prefill()).tokens)] for s in pair]
        found = []
        for session, tokens in zip(pair, given, strict=True):
            session.replace_last(tokens)
            found.append((answered(session.step()).tokens, answered(session.step()).tokens))
            with pytest.raises(ValueError, match="at most as many as were emitted, got 5"):
                session.replace_last([1] * 5)
    assert found[0] == found[1]


@pytest.mark.parametrize("loop", [EAGER, *GRAPH_LOOPS])
@torch.inference_mode()
def test_fewer_tokens_may_take_the_place_of_the_last_ones(plain_llama, loop):
    other = tiny_target(seed=3).llama
    other.embedding = plain_llama.embedding
    plain = HamburgerModel(plain_llama, tiny_checkpoint(), fused_base=other)
    base = FusedLlama(plain_llama, impl="reference", launches=None if loop == EAGER else Replayed())
    device = HamburgerModel(base, tiny_checkpoint(), fused_base=base.with_same_backend(other))
    pair = sessions(plain, device, confidence=0.0, loop=loop)
    assert [len(answered(session.prefill()).tokens) for session in pair] == [4, 4]
    for tokens in ((11, 12), (13,), (14, 15, 16), (17, 18, 19, 20)):
        for session in pair:
            session.replace_last(tokens)
            for bad in ((), (1,) * (len(tokens) + 1)):
                with pytest.raises(
                    ValueError, match=rf"tokens must be 1\.\.{len(tokens)}, .* got {len(bad)}"
                ):
                    session.replace_last(bad)
        want, got = (answered(session.step()) for session in pair)
        assert got.tokens == want.tokens, tokens
        assert got.continue_probs == pytest.approx(want.continue_probs, abs=1e-5)


def test_slots_of_several_tokens_may_go_through_another_base(plain_llama):
    other = tiny_target(seed=3).llama
    other.embedding = plain_llama.embedding
    plain = HamburgerModel(plain_llama, tiny_checkpoint(), fused_base=other)
    launches = Queued()
    base = FusedLlama(plain_llama, impl="reference", launches=launches)
    model = HamburgerModel(base, tiny_checkpoint(), fused_base=base.with_same_backend(other))
    assert len(set(assert_same_steps(*sessions(plain, model)))) > 2


def test_a_full_cache_is_refused_before_anything_is_launched(plain_llama):
    model = on_device(plain_llama)
    params = SamplingParams(max_new_tokens=1)
    session = DeviceSession(
        model, PROMPT, params, confidence=0.4, position_convention="train", loop="run-ahead"
    )
    with torch.inference_mode():
        answered(session.prefill())
        answered(session.step())
        slots = session.kv.slots
        with pytest.raises(ContextOverflowError):
            answered(session.step())
    assert session.kv.slots == slots == len(PROMPT) + 1


def test_sampling_is_refused_here(plain_llama):
    params = SamplingParams(max_new_tokens=4, temperature=1.0)
    with pytest.raises(ValueError, match="params must be greedy, got temperature 1"):
        DeviceSession(
            on_device(plain_llama),
            PROMPT,
            params,
            confidence=0.4,
            position_convention="train",
            loop="run-ahead",
        )


# the method around it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_tiny_hamburger(tmp_path_factory.mktemp("hamburger")))


def fused_target(launches=None):
    target = tiny_target()
    target.llama = FusedLlama(target.llama, impl="reference", launches=launches)
    return target


@pytest.mark.parametrize("loop", LOOPS)
def test_the_engine_counts_the_same_with_eos_inside_a_macro_step_and_at_the_limit(folder, loop):
    plain = HamburgerConfig(confidence=0.0, checkpoint=folder).build(tiny_target())
    device = HamburgerConfig(confidence=0.0, checkpoint=folder, loop=loop).build(fused_target(Replayed()))
    params = SamplingParams(max_new_tokens=18)
    free = generate(plain, PROMPT, params)
    eos = free.token_ids[9]
    for eos_ids in (set(), {eos}):
        want, got = (generate(method, PROMPT, params, eos_ids=eos_ids) for method in (plain, device))
        assert got.finish == want.finish == ("eos" if eos_ids else "length")
        for a, b in zip(want.steps, got.steps, strict=True):
            same = ("tokens", "micro_forwards", "kv_slots", "kv_bytes", "discarded")
            assert [getattr(a, name) for name in same] == [getattr(b, name) for name in same]
    assert want.steps[-1].discarded > 0, "the case must end inside a macro-step"


def test_greedy_answers_run_on_the_device_and_sampled_ones_on_the_plain_path(folder):
    method = HamburgerConfig(checkpoint=folder).build(fused_target())
    assert isinstance(method.start(PROMPT, SamplingParams(max_new_tokens=4)), DeviceSession)
    sampled = method.start(PROMPT, SamplingParams(max_new_tokens=4, temperature=1.0))
    assert isinstance(sampled, HamburgerSession)


def test_a_checkpoint_with_its_own_base_runs_it_on_the_kernels_too(tmp_path):
    checkpoint = tiny_checkpoint()
    base = {f"base.{name}": tensor for name, tensor in _weights(seed=5).items()}
    folder = save_tiny_hamburger(tmp_path, base_weights="full", tensors={**checkpoint.tensors, **base})
    methods = [HamburgerConfig(checkpoint=str(folder)).build(t) for t in (tiny_target(), fused_target())]
    assert isinstance(methods[1].model.base, FusedLlama)
    params = SamplingParams(max_new_tokens=16)
    assert generate(methods[0], PROMPT, params).token_ids == generate(methods[1], PROMPT, params).token_ids


def test_what_the_kernels_cannot_take_is_led_by_the_host_and_says_so_once(tmp_path, caplog):
    wide = dataclasses.replace(TINY_ARCHITECTURE, max_micro_steps=6)
    folder = save_tiny_hamburger(tmp_path, architecture=wide)
    method = HamburgerConfig(checkpoint=str(folder)).build(fused_target())
    log_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="hambench.engine.cuda.graphs"):
        kinds = {type(method.start(PROMPT, SamplingParams(max_new_tokens=4))) for _ in range(2)}
    assert kinds == {HamburgerSession}
    assert [record.getMessage() for record in caplog.records] == [
        "HAMburger's macro-steps are led by the host: 9 rows of features and tokens, more than the 8 keys of "
        "micro_attention; the base runs on the fused kernels, the micro-steps on torch's operations"
    ]


def test_a_base_off_the_kernels_has_no_device_macro_step(plain_llama):
    assert fused_step_obstacle(HamburgerModel(plain_llama, tiny_checkpoint())) == (
        "its base does not run on the fused kernels"
    )
    assert fused_step_obstacle(on_device(plain_llama)) is None


def test_the_knob_offers_the_loops_of_the_graph_regime():
    assert LOOPS == GRAPH_LOOPS
    with pytest.raises(
        HambenchError, match="loop must be one of run-ahead, predicated, conditional, got 'while'"
    ):
        HamburgerConfig.from_knobs({"loop": "while"})


@pytest.mark.parametrize("launches", [None, Replayed], ids=["eager", "replayed"])
@pytest.mark.parametrize("method", ["vanilla", "separate", "shared"])
def test_vanilla_and_speculation_keep_their_tokens_and_counts_on_the_kernels(method, launches):
    config = VanillaConfig() if method == "vanilla" else SpeculativeConfig(num_draft_tokens=3, kv=method)
    params = SamplingParams(max_new_tokens=20)
    targets = (tiny_target(), fused_target(launches and launches()))
    want, got = (generate(config.build(target), PROMPT, params) for target in targets)
    assert got.token_ids == want.token_ids
    for a, b in zip(want.steps, got.steps, strict=True):
        assert (a.drafted, a.accepted, a.kv_slots) == (b.drafted, b.accepted, b.kv_slots)


def _weights(seed):
    from fakes import TINY_SHAPE, random_weights

    return random_weights(TINY_SHAPE, seed)
