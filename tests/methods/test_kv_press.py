"""Eviction: which slots stay, what they cost, and that decoding over them is what transformers does with them."""

import pytest
import torch
from fakes import TINY_SHAPE, save_tiny_model, tiny_target
from native_fixtures import need_compiler
from transformers import AutoModelForCausalLM, DynamicCache

from hambench.decoding import SamplingParams, answered
from hambench.engine.loop import generate
from hambench.errors import HambenchError
from hambench.methods.common import kv_scores
from hambench.methods.kv_press import PRESSES, KVPressConfig
from hambench.methods.vanilla import VanillaConfig
from hambench.runner.backend import run_by

PROMPT = [(7 * i + 3) % TINY_SHAPE.vocab_size for i in range(150)]
presses = pytest.mark.parametrize("press", PRESSES)


@pytest.fixture(scope="module", params=["reference", "native"])
def target(request):
    if request.param == "native":
        need_compiler()
    return run_by(tiny_target(), kernels=request.param)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    folder = save_tiny_model(tmp_path_factory.mktemp("tiny"), TINY_SHAPE)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def decode(config, target, prompt=PROMPT, max_new_tokens=40, **params):
    params = SamplingParams(max_new_tokens=max_new_tokens, **params)
    return generate(config.build(target), prompt, params)


@presses
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_ratio_zero_is_vanilla(press, target, temperature):
    plain = decode(VanillaConfig(), target, temperature=temperature, seed=4)
    pressed = decode(
        KVPressConfig(press=press, ratio=0.0, decode_every=8), target, temperature=temperature, seed=4
    )
    assert pressed.token_ids == plain.token_ids
    assert [step.kv_bytes for step in pressed.steps] == [step.kv_bytes for step in plain.steps]
    assert KVPressConfig(ratio=0.0).is_lossless
    assert KVPressConfig(ratio=0.0).is_control
    assert not KVPressConfig(ratio=0.25).is_lossless


@presses
@pytest.mark.parametrize(("ratio", "kept"), [(0.25, 112), (0.5, 75), (0.75, 37), (0.9, 15)])
def test_bytes_are_those_of_the_slots_that_stay(press, target, ratio, kept):
    trace = decode(KVPressConfig(press=press, ratio=ratio), target)
    plain = decode(VanillaConfig(), target)
    assert [step.kv_slots for step in trace.steps] == [kept + i for i in range(40)]
    per_slot = plain.steps[0].kv_bytes // 150
    assert [step.kv_bytes for step in trace.steps] == [(kept + i) * per_slot for i in range(40)]
    # the whole prompt was in the cache before
    assert trace.steps[0].peak_kv_bytes == 150 * per_slot
    assert trace.token_ids[0] == plain.token_ids[0]


def test_an_answer_is_pressed_again_each_time_it_has_so_many_new_slots(target):
    trace = decode(KVPressConfig(press="knorm", ratio=0.5, decode_every=16), target)
    slots = [step.kv_slots for step in trace.steps]
    assert slots[:17] == list(range(75, 92))
    # 166 slots had been written: half of them stay, and the step adds its own
    assert slots[17] == 83 + 1
    assert trace.steps[17].peak_kv_bytes == trace.steps[16].kv_bytes
    assert max(slots) < 75 + 40


def test_the_storage_really_shrinks(target):
    session = (
        KVPressConfig(press="knorm", ratio=0.9).build(target).start(PROMPT, SamplingParams(max_new_tokens=10))
    )
    before = session._sequence.cache.storage_bytes
    answered(session.prefill())
    assert session._sequence.cache.storage_bytes == before // 160 * (15 + 10)


@presses
def test_decoding_over_the_kept_slots_is_transformers_over_the_same_slots(press, target, twin):
    """The keys that stay keep their rotation, and new tokens the positions that they would have had."""
    session = (
        KVPressConfig(press=press, ratio=0.5).build(target).start(PROMPT, SamplingParams(max_new_tokens=12))
    )
    tokens = list(answered(session.prefill()).tokens)
    cache = session._sequence.cache
    theirs = DynamicCache()
    for layer, (keys, values) in enumerate(zip(*cache.in_use, strict=True)):
        theirs.update(keys[None].clone(), values[None].clone(), layer)
    for place in range(11):
        position = len(PROMPT) + place
        with torch.no_grad():
            logits = twin(
                torch.tensor([tokens[-1:]]),
                past_key_values=theirs,
                position_ids=torch.tensor([[position]]),
                cache_position=torch.tensor([75 + place]),
            ).logits
        tokens.append(int(logits[0, -1].argmax()))
        assert answered(session.step()).tokens == (tokens[-1],)
    assert cache.next_position == len(PROMPT) + 11


def test_an_eviction_changes_what_is_read(target):
    """Presses that keep other slots decode otherwise: a rule that did nothing would show here."""
    answers = {
        press: tuple(decode(KVPressConfig(press=press, ratio=0.9), target).token_ids) for press in PRESSES
    }
    assert len(set(answers.values())) == len(PRESSES)
    assert tuple(decode(VanillaConfig(), target).token_ids) not in answers.values()


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65])
@presses
def test_prompts_shorter_than_a_window_are_pressed_too(press, target, length):
    trace = decode(
        KVPressConfig(press=press, ratio=0.5, decode_every=1), target, PROMPT[:length], max_new_tokens=8
    )
    assert trace.steps[0].kv_slots == kv_scores.num_kept(length, 0.5)
    assert len(trace.token_ids) == 8


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"ratio": 1.0}, "ratio must be at least 0 and below 1"),
        ({"ratio": -0.1}, "ratio must be"),
        ({"press": "h2o"}, "press must be one of streaming, knorm, keydiff, snapkv, random, got 'h2o'"),
        ({"decode_every": -1}, "decode_every must be >= 0, got -1"),
    ],
)
def test_wrong_knobs_are_refused_by_name(knobs, message):
    with pytest.raises(HambenchError, match=message):
        KVPressConfig.from_knobs(knobs)
