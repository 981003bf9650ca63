"""HAMburger as its own draft: lossless by verification, at the stop head's confidence."""

import dataclasses

import pytest
import torch
from fakes import tiny_target
from fakes_hamburger import save_tiny_hamburger
from native_fixtures import need_compiler
from sampling_laws import SMALL_SHAPE, chance, draw_pairs, pair_distribution, small_target

from hambench.decoding import SamplingParams
from hambench.engine.loop import generate
from hambench.methods.hamburger import Architecture, HamburgerConfig
from hambench.methods.hamburger.byte_rule import HamburgerBytes
from hambench.methods.vanilla import VanillaConfig
from hambench.models.sizes import SHAPES
from hambench.records import StepRecord
from hambench.roofline.byte_model import ByteModel
from hambench.runner.backend import run_by
from hambench.runner.sweep import Sweep

PROMPT = [1, 2, 3, 1, 2, 3, 1, 2]
PARAMS = SamplingParams(max_new_tokens=60)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(save_tiny_hamburger(tmp_path_factory.mktemp("hamburger") / "grafts"))


@pytest.fixture(scope="module")
def target():
    return tiny_target()


def decode(target, weights, confidence, params=PARAMS):
    config = HamburgerConfig(confidence=confidence, verify=True, checkpoint=weights)
    return generate(config.build(target), PROMPT, params)


def test_a_higher_confidence_drafts_less_and_changes_no_token(target, weights):
    expected = generate(VanillaConfig().build(target), PROMPT, PARAMS).token_ids
    drafted = []
    for confidence in (0.0, 0.3, 0.4, 1.1):
        trace = decode(target, weights, confidence)
        assert trace.token_ids == expected
        assert all(step.micro_forwards == step.drafted for step in trace.steps)
        assert all(step.target_forwards == 1 for step in trace.steps)
        drafted.append(sum(step.drafted for step in trace.steps))
    assert drafted == sorted(drafted, reverse=True)
    assert drafted[0] > drafted[2] > drafted[-1] == 0


def test_one_slot_holds_one_token(target, weights):
    trace = decode(target, weights, 0.0)
    assert trace.steps[-1].kv_slots == len(PROMPT) + len(trace.token_ids) - 1


def test_a_draft_that_the_target_agrees_with_is_kept(target, weights):
    """Grafts that say what the base says: the micro-step decoder's head is read off a session that drafts right."""
    config = HamburgerConfig(confidence=0.0, verify=True, checkpoint=weights)
    method = config.build(target)
    expected = generate(VanillaConfig().build(target), PROMPT, PARAMS).token_ids
    session = method.start(PROMPT, PARAMS)

    def right(self=session):
        yield from ()
        place = len(self._sequence.tokens) - len(PROMPT)
        return list(expected[place : place + min(3, self._sequence.num_left - 1)]), None

    session._draft = right
    from hambench.decoding import answered

    with torch.inference_mode():
        tokens = list(answered(session.prefill()).tokens)
        while len(tokens) < 40:
            step = answered(session.step())
            assert step.accepted == step.drafted == 3
            tokens += step.tokens
    assert tuple(tokens[:40]) == expected[:40]


def test_on_the_native_engine_the_tokens_are_vanillas_in_bfloat16_too(weights):
    need_compiler()
    target = run_by(tiny_target(dtype=torch.bfloat16), kernels="native")
    expected = generate(VanillaConfig().build(target), PROMPT, PARAMS).token_ids
    for confidence in (0.0, 0.45):
        assert decode(target, weights, confidence).token_ids == expected


def test_sampled_drafts_are_distributed_as_the_target(tmp_path):
    target = small_target()
    architecture = Architecture(feature_layers=(0, 1), num_micro_layers=1, merge_heads=4, max_micro_steps=3)
    folder = save_tiny_hamburger(tmp_path / "grafts", architecture=architecture, shape=SMALL_SHAPE)
    method = HamburgerConfig(confidence=0.4, verify=True, checkpoint=str(folder)).build(target)
    counts, steps = draw_pairs(lambda params: method.start([1, 7, 3], params), 1500)
    assert len({step.drafted for step in steps}) > 1
    assert sum(step.drafted - step.accepted for step in steps) > 150
    assert chance(counts, pair_distribution(target, [1, 7, 3])) > 1e-3


def test_a_verified_setting_is_lossless_and_a_curve_of_its_own(weights):
    verified = HamburgerConfig(verify=True)
    assert verified.is_lossless
    assert not HamburgerConfig().is_lossless
    assert (verified.variant, HamburgerConfig().variant) == ("verified", "")
    assert verified.label == "hamburger[c=0.5,verify=true]"
    # the control would draft nothing: it is vanilla
    assert all(not config.is_control for config in HamburgerConfig.sweep({"verify": True}))
    assert len(HamburgerConfig.sweep({"verify": True, "c": 1.1})) == 1
    sweep = Sweep(model="m", methods=("hamburger[verify=true]",), controls=True)
    assert not any(cell.knobs["confidence"] > 1 for cell in sweep.expand(ask_availability=False).cells)


def test_bytes_of_a_round_are_one_forward_and_the_micro_steps():
    sizes = ByteModel(shape=SHAPES["smollm2-135m"])
    rule = HamburgerBytes(sizes, num_micro_layers=2)
    own = {"num_micro_layers": 2, "max_micro_steps": 4}
    step = StepRecord(tokens=(1, 2), seconds=1.0, drafted=2, accepted=1, micro_forwards=2, kv_slots=10)
    read = HamburgerConfig(verify=True).bytes_read(step, step, sizes, own)
    micro = 2 * (rule.micro + sizes.head) + 3 * rule.stop
    assert read == sizes.step + 10 * sizes.kv_per_slot + micro
    whole = dataclasses.replace(step, drafted=3, micro_forwards=3)
    # after the longest draft the stop head is not asked again
    more = HamburgerConfig(verify=True).bytes_read(whole, step, sizes, own)
    assert more - read == rule.micro + sizes.head
