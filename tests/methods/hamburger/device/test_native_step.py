"""Macro-steps in native calls against the plain session: the same ids, counts, slots and probabilities."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from fakes import TINY_SHAPE, random_weights, tiny_target
from fakes_hamburger import TINY_ARCHITECTURE, import_golden, save_tiny_hamburger, shape_of, tiny_checkpoint
from native_fixtures import compiler, library, library_under_test, several_threads  # noqa: F401

from hambench.decoding import SamplingParams, answered
from hambench.engine.cpu.native_llama import NativeLlama
from hambench.engine.cuda.graphs import log_once
from hambench.engine.llama import Llama
from hambench.engine.loop import generate
from hambench.errors import ContextOverflowError, NotFiniteError
from hambench.methods.hamburger import HamburgerConfig
from hambench.methods.hamburger.config import ONE_TOKEN_CONTROL
from hambench.methods.hamburger.device.native_step import NativeStep, native_step_obstacle
from hambench.methods.hamburger.device.session import DeviceSession
from hambench.methods.hamburger.model import HamburgerModel
from hambench.methods.hamburger.session import HamburgerSession
from hambench.methods.hamburger.verified import VerifiedSession
from hambench.methods.vanilla import VanillaConfig
from hambench.models.target import load
from hambench.runner.backend import run_by

pytestmark = pytest.mark.usefixtures("compiler")

PROMPT = [5, 6, 7, 80, 9]
ARCHITECTURES = {
    "published": TINY_ARCHITECTURE,
    "last token, norm": dataclasses.replace(TINY_ARCHITECTURE, merge_residual="last", micro_norm=True),
    "fewer features, three steps, one layer": dataclasses.replace(
        TINY_ARCHITECTURE, feature_layers=(1, 3), max_micro_steps=3, num_micro_layers=1
    ),
    "token 1 from an inner layer": dataclasses.replace(TINY_ARCHITECTURE, feature_layers=(0, 2)),
}
SETS = ("avx512", "avx2", "portable")


@pytest.fixture(scope="module")
def plain_llama():
    return tiny_target().llama


@pytest.fixture(params=SETS)
def instruction_set(request):
    if request.param not in library_under_test().instruction_sets():
        pytest.skip(f"this machine has no {request.param}")
    return request.param


def native_of(llama, instruction_set=None):
    return NativeLlama(llama, library_under_test(), instruction_set=instruction_set)


def sessions(plain, native, prompt=PROMPT, *, confidence=0.4, convention="train", limit=80):
    shared = (prompt, SamplingParams(max_new_tokens=limit))
    settings = {"confidence": confidence, "position_convention": convention}
    return HamburgerSession(plain, *shared, **settings), DeviceSession(
        native, *shared, **settings, loop="run-ahead"
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
        assert got.peak_kv_bytes == want.peak_kv_bytes
        assert other.kv == one.kv
        lengths.append(len(got.tokens))
    return lengths


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_native_macro_step_is_the_plain_one(
    plain_llama, architecture, threads, instruction_set, request, monkeypatch
):
    if threads > 1:
        request.getfixturevalue("several_threads")
    monkeypatch.setattr(NativeLlama, "threads", threads)
    checkpoint = tiny_checkpoint(architecture)
    native = HamburgerModel(native_of(plain_llama, instruction_set), checkpoint)
    pair = sessions(HamburgerModel(plain_llama, checkpoint), native)
    assert isinstance(pair[1].macro_step, NativeStep)
    assert len(set(assert_same_steps(*pair))) > 1, "the case must hold macro-steps of several lengths"


@pytest.mark.parametrize("convention", ["train", "hf"])
@pytest.mark.parametrize("confidence", [0.0, 0.45, 1.0, 1.1])
def test_confidences_and_position_conventions_agree(plain_llama, convention, confidence):
    checkpoint = tiny_checkpoint()
    native = HamburgerModel(native_of(plain_llama), checkpoint)
    settings = {"confidence": confidence, "convention": convention}
    assert_same_steps(*sessions(HamburgerModel(plain_llama, checkpoint), native, **settings))


def test_slots_of_several_tokens_go_through_their_own_base(plain_llama):
    other = Llama(TINY_SHAPE, random_weights(TINY_SHAPE, seed=5), torch.float32)
    other.embedding = plain_llama.embedding
    checkpoint = tiny_checkpoint()
    plain = HamburgerModel(plain_llama, checkpoint, fused_base=other)
    native = HamburgerModel(native_of(plain_llama), checkpoint, fused_base=native_of(other))
    lengths = [
        length
        for confidence in (0.4, 0.5, 0.6)
        for length in assert_same_steps(*sessions(plain, native, confidence=confidence))
    ]
    assert min(lengths) == 1 < max(lengths), "both bases must be used"


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
@pytest.mark.parametrize("threads", [1, 3])
@torch.inference_mode()
def test_macro_steps_of_several_sequences_in_one_call_have_the_bits_of_single_ones(
    plain_llama, architecture, threads, instruction_set, monkeypatch
):
    """Ragged: macro-steps of other lengths, some ask nothing, and more sequences than one call takes."""
    monkeypatch.setattr(NativeLlama, "threads", threads)
    model = HamburgerModel(native_of(plain_llama, instruction_set), tiny_checkpoint(architecture))
    prompts = [[5 + i, 6, 7 + 3 * i, *range(20, 20 + 9 * (i % 3))] for i in range(20)]
    confidences = [(0.3, 0.45, 0.55, 1.1)[i % 4] for i in range(20)]

    def opened():
        return [
            sessions(model, model, prompt, confidence=confidence)[1]
            for prompt, confidence in zip(prompts, confidences, strict=True)
        ]

    alone = [[answered(s.prefill()), *(answered(s.step()) for _ in range(6))] for s in opened()]
    shared = opened()
    together = [[answered(s.prefill())] for s in shared]
    for _ in range(6):
        # one round: each session's own request, answered in one go
        asked = [session.step() for session in shared]
        requests = [next(each) for each in asked]
        assert len({request.together for request in requests}) == 1
        answers = type(requests[0]).answer_together(requests)
        for steps, each, answer in zip(together, asked, answers, strict=True):
            with pytest.raises(StopIteration) as end:
                each.send(answer)
            steps.append(end.value.value)
    assert together == alone
    assert len({len(step.tokens) for steps in alone for step in steps}) > 1


@torch.inference_mode()
def test_a_sequence_whose_logits_are_no_numbers_fails_alone_among_macro_steps(plain_llama):
    model = HamburgerModel(native_of(plain_llama), tiny_checkpoint())
    shared = [sessions(model, model, [5, 6, 7 + i])[1] for i in range(3)]
    alone = [sessions(model, model, [5, 6, 7 + i])[1] for i in range(3)]
    for session in (*shared, *alone):
        answered(session.prefill())
    shared[1]._cache.values[:, :, 0] = torch.nan
    requests = [next(session.step()) for session in shared]
    first, broken, last = type(requests[0]).answer_together(requests)
    assert isinstance(broken, NotFiniteError)
    assert [first.tokens, last.tokens] == [answered(alone[i].step()).tokens for i in (0, 2)]


@torch.inference_mode()
def test_tokens_can_be_replaced_and_lengths_forced(plain_llama):
    checkpoint = tiny_checkpoint()
    native = HamburgerModel(native_of(plain_llama), checkpoint)
    plain, session = sessions(HamburgerModel(plain_llama, checkpoint), native)
    want, got = answered(plain.prefill()), answered(session.prefill())
    assert got.tokens == want.tokens
    replaced = [3 + place for place in range(len(want.tokens))]
    for each in (plain, session):
        each.replace_last(replaced)
        with pytest.raises(ValueError, match="at most as many as were emitted"):
            each.replace_last([*replaced, 1])
    assert answered(session.step()).tokens == answered(plain.step()).tokens
    for length in (1, 3, 4):
        session.macro_step.force(length)
        assert len(answered(session.step()).tokens) == length
    with pytest.raises(ValueError, match=r"num_tokens must be 1\.\.4, got 5"):
        session.macro_step.force(5)


@torch.inference_mode()
def test_a_full_cache_is_refused(plain_llama):
    native = HamburgerModel(native_of(plain_llama), tiny_checkpoint())
    _, session = sessions(native, native, limit=2, confidence=1.1)
    answered(session.prefill())
    answered(session.step())
    answered(session.step())
    with pytest.raises(ContextOverflowError):
        answered(session.step())


@torch.inference_mode()
def test_numbers_that_are_none_end_the_answer():
    broken = random_weights(TINY_SHAPE)
    broken["lm_head.weight"][7, 3] = torch.nan
    good = Llama(TINY_SHAPE, random_weights(TINY_SHAPE), torch.float32)
    bad = native_of(Llama(TINY_SHAPE, broken, torch.float32))
    checkpoint = tiny_checkpoint()
    shared = (PROMPT, SamplingParams(max_new_tokens=20))
    settings = {"confidence": 0.0, "position_convention": "train", "loop": "run-ahead"}
    with pytest.raises(NotFiniteError):
        answered(DeviceSession(HamburgerModel(bad, checkpoint), *shared, **settings).prefill())
    stopless = tiny_checkpoint()
    stopless.tensors["stop_head.layers.2.bias"][0] = torch.nan
    with pytest.raises(NotFiniteError, match="stop head"):
        answered(DeviceSession(HamburgerModel(native_of(good), stopless), *shared, **settings).prefill())


@torch.inference_mode()
def test_the_one_token_control_equals_vanilla_bit_for_bit_in_bfloat16(tmp_path):
    target = tiny_target(dtype=torch.bfloat16)
    folder = save_tiny_hamburger(tmp_path / target.name)
    native = run_by(target, kernels="native")
    method = HamburgerConfig(confidence=ONE_TOKEN_CONTROL, checkpoint=str(folder)).build(native)
    params = SamplingParams(max_new_tokens=60)
    expected = generate(VanillaConfig().build(native), PROMPT, params).token_ids
    assert generate(method, PROMPT, params).token_ids == expected


@torch.inference_mode()
def test_peak_bytes_in_bfloat16_count_the_float32_cache_that_native_micro_steps_keep():
    llama = tiny_target(dtype=torch.bfloat16).llama
    model = HamburgerModel(native_of(llama), tiny_checkpoint())
    settings = {"confidence": 0.0, "position_convention": "train", "loop": "run-ahead"}
    session = DeviceSession(model, PROMPT, SamplingParams(max_new_tokens=20), **settings)
    step = answered(session.prefill())
    rows = TINY_ARCHITECTURE.num_features + step.micro_forwards
    row_elements = 2 * TINY_ARCHITECTURE.num_micro_layers * TINY_SHAPE.num_kv_heads * TINY_SHAPE.head_dim
    assert step.micro_forwards > 0
    assert step.peak_kv_bytes == session.kv.bytes + 4 * rows * row_elements


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
@pytest.mark.parametrize("confidence", [0.0, 0.45])
@torch.inference_mode()
def test_native_drafts_of_a_verified_answer_are_the_plain_ones(
    plain_llama, architecture, confidence, monkeypatch
):
    """Each draft is one native call, up to the last token of an answer, before which there is nothing to draft."""
    checkpoint, params = tiny_checkpoint(architecture), SamplingParams(max_new_tokens=24)

    def steps(llama):
        target = dataclasses.replace(tiny_target(), llama=llama)
        session = VerifiedSession(
            target, HamburgerModel(llama, checkpoint), PROMPT, params, confidence=confidence
        )
        taken = [answered(session.prefill())]
        while sum(len(step.tokens) for step in taken) < params.max_new_tokens:
            taken.append(dataclasses.replace(answered(session.step()), draft_seconds=None))
        return taken

    expected = steps(plain_llama)
    monkeypatch.setattr(HamburgerModel, "micro_step", None)
    assert steps(native_of(plain_llama)) == expected
    assert len({step.drafted for step in expected}) > 1


@torch.inference_mode()
def test_a_stop_head_that_gives_no_number_ends_a_verified_answer_on_native_kernels_too(plain_llama):
    stopless = tiny_checkpoint()
    stopless.tensors["stop_head.layers.2.bias"][0] = torch.nan
    model = HamburgerModel(native_of(plain_llama), stopless)
    target = dataclasses.replace(tiny_target(), llama=model.base)
    session = VerifiedSession(target, model, PROMPT, SamplingParams(max_new_tokens=8), confidence=0.4)
    answered(session.prefill())
    with pytest.raises(NotFiniteError, match="stop head"):
        answered(session.step())


@torch.inference_mode()
def test_the_slots_that_a_macro_step_begins_behind_are_those_it_is_told(plain_llama):
    native = HamburgerModel(native_of(plain_llama), tiny_checkpoint())
    _, session = sessions(native, native)
    answered(session.prefill())
    session._cache.keys.zero_()
    session._cache.values.zero_()
    keys = session._cache.keys.clone()
    features = torch.zeros(TINY_ARCHITECTURE.num_features, TINY_SHAPE.hidden_size)
    session.macro_step.begin(
        features, torch.tensor([3]), torch.zeros(1), slots=20, position=20, confidence=0.4
    )
    session.macro_step.first()
    session.macro_step.next()
    changed = (session._cache.keys != keys).any(dim=-1).any(dim=0).any(dim=0)
    assert changed.nonzero().flatten().tolist() == [20]


@torch.inference_mode()
def test_sampled_macro_steps_say_once_that_two_engines_run_them(tmp_path, caplog):
    folder = save_tiny_hamburger(tmp_path)
    method = HamburgerConfig(checkpoint=str(folder)).build(run_by(tiny_target(), kernels="native"))
    log_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="hambench.engine.cuda.graphs"):
        for params in (SamplingParams(max_new_tokens=4, temperature=1.0),) * 2:
            assert isinstance(method.start(PROMPT, params), HamburgerSession)
        greedy = method.start(PROMPT, SamplingParams(max_new_tokens=4))
    assert isinstance(greedy, DeviceSession)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "tokens are sampled" in said
    assert said.endswith("the base runs on the native kernels, the micro-steps on torch's operations")


@pytest.mark.parametrize("layers", [(-1, 2), (2, 1), (0, 99), ()])
def test_feature_layers_that_the_base_lacks_are_refused(plain_llama, layers, monkeypatch):
    native = HamburgerModel(native_of(plain_llama), tiny_checkpoint())
    native.architecture = dataclasses.replace(native.architecture)
    object.__setattr__(native.architecture, "feature_layers", layers)
    with pytest.raises(ValueError, match="feature_layers must"):
        NativeStep(native, native.base.new_cache(8), asks=True)


def test_an_obstacle_has_a_reason(plain_llama):
    assert "native kernels" in native_step_obstacle(HamburgerModel(plain_llama, tiny_checkpoint()))
    assert native_step_obstacle(HamburgerModel(native_of(plain_llama), tiny_checkpoint())) is None


def test_every_golden_group_and_slot_count_is_identical(shared_data, tmp_path, instruction_set):
    expected, checkpoint, base = import_golden(shared_data / "hamburger_golden", tmp_path)
    plain = Llama(shape_of(base), checkpoint.group("base"))
    model = HamburgerModel(native_of(plain, instruction_set), checkpoint)
    for case in expected["decode_hf_positions"]:
        session = DeviceSession(
            model,
            case["prompt"],
            SamplingParams(max_new_tokens=80),
            confidence=case["confidence"],
            position_convention="hf",
            loop="run-ahead",
        )
        with torch.inference_mode():
            steps = [answered(session.prefill()), *(answered(session.step()) for _ in case["groups"][1:])]
        assert [list(step.tokens) for step in steps] == case["groups"]
        assert session.kv.slots == case["kv_len"]


@pytest.mark.model
def test_the_shipped_weights_decode_the_same_tokens():
    target = load("smollm2-135m", dtype="float32")
    chat = [{"role": "user", "content": "Write a Python function that reverses a linked list."}]
    prompt = target.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    methods = [HamburgerConfig(confidence=0.5).build(t) for t in (target, run_by(target, kernels="native"))]
    want, got = (generate(m, prompt, SamplingParams(max_new_tokens=24)) for m in methods)
    assert got.token_ids == want.token_ids
    assert [len(step.tokens) for step in got.steps] == [len(step.tokens) for step in want.steps]
