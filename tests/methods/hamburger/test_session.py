import dataclasses

import pytest
import torch
from fakes import TINY_SHAPE, tiny_target
from fakes_hamburger import TINY_ARCHITECTURE, hf_twin, save_tiny_hamburger, tiny_checkpoint, tiny_grafts

from hambench.decoding import SamplingParams, answered
from hambench.engine.loop import generate
from hambench.errors import HambenchError, ModelError
from hambench.methods.hamburger import HamburgerConfig
from hambench.methods.hamburger.architecture import BaseReference
from hambench.methods.hamburger.checkpoint import sizes_of
from hambench.methods.hamburger.config import ONE_TOKEN_CONTROL
from hambench.methods.hamburger.model import HamburgerModel
from hambench.methods.hamburger.session import HamburgerSession
from hambench.methods.hamburger.training.merged_forward import collate, teacher_forced
from hambench.methods.vanilla import VanillaConfig
from hambench.models.target import load

PROMPT = [5, 6, 7, 80, 9]
ARCHITECTURES = {
    "published": TINY_ARCHITECTURE,
    "last token, norm": dataclasses.replace(TINY_ARCHITECTURE, merge_residual="last", micro_norm=True),
    "fewer features, three steps": dataclasses.replace(
        TINY_ARCHITECTURE, feature_layers=(1, 3), max_micro_steps=3, num_micro_layers=1
    ),
    "token 1 from an inner layer": dataclasses.replace(TINY_ARCHITECTURE, feature_layers=(0, 2)),
}


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory):
    return str(save_tiny_hamburger(tmp_path_factory.mktemp("hamburger")))


def decode(model, *, confidence, num_steps=12, convention="train", **params):
    session = HamburgerSession(
        model,
        PROMPT,
        SamplingParams(max_new_tokens=4 * num_steps, **params),
        confidence=confidence,
        position_convention=convention,
    )
    with torch.inference_mode():
        steps = [answered(session.prefill())] + [answered(session.step()) for _ in range(num_steps - 1)]
    return steps, session


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_decoding_equals_the_teacher_forced_forward(architecture):
    model = HamburgerModel(tiny_target().llama, tiny_checkpoint(architecture))
    steps, _ = decode(model, confidence=0.4)
    groups = [list(step.tokens) for step in steps]
    assert len({len(group) for group in groups}) > 1, "the case must hold macro-steps of several lengths"
    ids = PROMPT + [token for group in groups for token in group]
    batch = collate([(ids, len(PROMPT), [len(group) for group in groups])], architecture.max_micro_steps)
    twin = hf_twin()
    with torch.no_grad():
        hidden, stop_logits = teacher_forced(twin, tiny_grafts(architecture), batch)
        logits = twin.lm_head(hidden)
    for row, step in enumerate(steps):
        assert logits[row, : len(step.tokens)].argmax(-1).tolist() == list(step.tokens)
        continued = torch.sigmoid(-stop_logits[row, : len(step.continue_probs)]).tolist()
        assert continued == pytest.approx(step.continue_probs, abs=1e-4)


def test_the_two_position_conventions_place_generated_slots_one_apart():
    model = HamburgerModel(tiny_target().llama, tiny_checkpoint())
    seen = {}
    original = model.base.forward

    def spy(*args, positions=None, **kwargs):
        if positions is not None:
            seen.setdefault(convention, []).append(int(positions[0]))
        return original(*args, positions=positions, **kwargs)

    model.base.forward = spy
    lengths = {}
    for convention in ("train", "hf"):
        steps, _ = decode(model, confidence=0.4, num_steps=3, convention=convention)
        lengths[convention] = [len(step.tokens) for step in steps]
    for convention, shift in (("train", -1), ("hf", 0)):
        first, second, _ = lengths[convention]
        assert seen[convention] == [len(PROMPT) + first + shift, len(PROMPT) + first + second + shift]


def test_a_macro_step_adds_one_slot_however_many_tokens_it_emits():
    steps, session = decode(HamburgerModel(tiny_target().llama, tiny_checkpoint()), confidence=0.3)
    assert sum(len(step.tokens) for step in steps) > len(steps)
    assert session.kv.slots == len(PROMPT) + len(steps) - 1


def test_a_higher_confidence_never_lengthens_the_first_macro_step():
    model = HamburgerModel(tiny_target().llama, tiny_checkpoint())
    lengths = [len(decode(model, confidence=c, num_steps=1)[0][0].tokens) for c in (0, 0.2, 0.5, 0.8, 1, 1.1)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == 4
    assert lengths[-1] == 1


def test_the_step_stops_at_the_first_token_whose_continue_probability_falls_short():
    steps, _ = decode(HamburgerModel(tiny_target().llama, tiny_checkpoint()), confidence=0.45)
    for step in steps:
        reached = len(step.tokens)
        assert all(p >= 0.45 for p in step.continue_probs[: reached - 1])
        assert reached == 4 or step.continue_probs[reached - 1] < 0.45
        assert step.micro_forwards == reached - 1


def test_the_one_token_control_asks_neither_stop_head_nor_micro_decoder():
    steps, _ = decode(HamburgerModel(tiny_target().llama, tiny_checkpoint()), confidence=ONE_TOKEN_CONTROL)
    assert all(len(s.tokens) == 1 and s.micro_forwards == 0 and s.continue_probs == () for s in steps)


def test_the_one_token_control_of_an_unchanged_base_is_vanilla(checkpoint_folder):
    target, params = tiny_target(), SamplingParams(max_new_tokens=24)
    control = HamburgerConfig(confidence=ONE_TOKEN_CONTROL, checkpoint=checkpoint_folder).build(target)
    tokens = [
        [token for step in generate(method, PROMPT, params).steps for token in step.tokens]
        for method in (control, VanillaConfig().build(target))
    ]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("base_weights", ["lora", "fused_lora"])
def test_the_one_token_control_has_the_base_that_slots_of_one_token_go_through(
    base_weights, tiny_model, tmp_path
):
    """A base changed in every pass decodes otherwise at one token a step too: the control shows what that changes."""
    target = load(str(tiny_model), dtype="float32")
    shape, name = target.llama.shape, "model.layers.1.mlp.down_proj"
    noise = torch.Generator().manual_seed(0)
    tensors = {
        **tiny_checkpoint().tensors,
        f"lora.{name}.A": torch.randn(4, shape.intermediate_size, generator=noise),
        f"lora.{name}.B": torch.randn(shape.hidden_size, 4, generator=noise),
    }
    base = BaseReference(name="tiny", fingerprint=None, sizes=sizes_of(shape))
    folder = str(save_tiny_hamburger(tmp_path, base=base, base_weights=base_weights, tensors=tensors))
    control = HamburgerConfig(confidence=ONE_TOKEN_CONTROL, checkpoint=folder).build(target)
    changed = dataclasses.replace(target, llama=control.model.base_for(1), _shared={})

    def tokens_of(method):
        return generate(method, PROMPT, SamplingParams(max_new_tokens=24)).token_ids

    control_ids, vanilla_ids = tokens_of(control), tokens_of(VanillaConfig().build(target))
    assert control_ids == tokens_of(VanillaConfig().build(changed))
    assert (control_ids == vanilla_ids) == (base_weights == "fused_lora")


def test_sampling_follows_the_seed():
    model = HamburgerModel(tiny_target().llama, tiny_checkpoint())
    runs = [
        [s.tokens for s in decode(model, confidence=0.4, temperature=1.0, seed=seed)[0]] for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_nothing_past_the_limit_or_past_eos_is_counted(checkpoint_folder):
    method = HamburgerConfig(confidence=0.0, checkpoint=checkpoint_folder).build(tiny_target())
    trace = generate(method, PROMPT, SamplingParams(max_new_tokens=6))
    assert [len(step.tokens) for step in trace.steps] == [4, 2]
    eos = trace.steps[0].tokens[1]
    ended = generate(method, PROMPT, SamplingParams(max_new_tokens=6), eos_ids={eos})
    assert ended.steps[-1].tokens[-1] == eos
    assert len(ended.steps) == 1


def test_confidences_share_one_copy_of_the_weights(checkpoint_folder):
    target = tiny_target()
    methods = [HamburgerConfig(confidence=c, checkpoint=checkpoint_folder).build(target) for c in (0.5, 0.9)]
    assert methods[0].model is methods[1].model
    assert methods[0].extra_weight_bytes == methods[0].model.graft_bytes > 0


def test_a_checkpoint_for_another_shape_is_refused_by_name(tmp_path):
    other = dataclasses.replace(TINY_SHAPE, num_layers=5)
    save_tiny_hamburger(tmp_path, shape=other)
    with pytest.raises(ModelError, match="num_layers is 5 there, 4"):
        HamburgerConfig(checkpoint=str(tmp_path)).build(tiny_target())


@pytest.mark.parametrize("confidence", [-0.1, float("nan")])
def test_a_confidence_below_zero_is_refused(confidence):
    with pytest.raises(HambenchError, match="confidence must be >= 0"):
        HamburgerConfig.from_knobs({"confidence": confidence})


def test_a_model_without_shipped_weights_says_how_to_get_some():
    with pytest.raises(ModelError, match=r"none are shipped for tiny-random.*hamburger train"):
        HamburgerConfig().build(tiny_target())


def test_the_sweep_ends_with_the_one_token_control():
    assert [config.confidence for config in HamburgerConfig.sweep()] == [0.5, 0.6, 0.7, 0.8, 0.9, 1.1]
