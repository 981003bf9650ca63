"""transformers' generate as a peer: counts, threads and limits (the laws all methods keep are in test_conformance)."""

import gc
import threading

import pytest
import torch
from fakes import TINY_SHAPE, save_tiny_model, swap_tokens

from hambench.analysis.metrics import (
    acceptance_rate,
    kv_bytes,
    mean_acceptance_length,
    tokens_per_target_forward,
)
from hambench.decoding import SamplingParams, answered
from hambench.engine.loop import generate
from hambench.errors import HambenchError
from hambench.methods.peers.paused_generate import PausedGenerate
from hambench.methods.peers.transformers_generate import TransformersConfig
from hambench.methods.peers.transformers_models import int8_copy, load_model
from hambench.models.target import load

PROMPT = [1, 2, 3, 1, 2, 3, 1, 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"), TINY_SHAPE)


@pytest.fixture(scope="module")
def loaded(folder):
    return load(str(folder), dtype="float32", device="cpu")


def decode(config, target, limit=32):
    return generate(config.build(target), PROMPT, SamplingParams(max_new_tokens=limit))


def test_a_plain_step_is_one_forward_and_one_token(loaded):
    trace = decode(TransformersConfig(), loaded)
    assert [(step.target_forwards, len(step.tokens), step.drafted) for step in trace.steps] == [
        (1, 1, 0)
    ] * 32
    assert [step.kv_slots for step in trace.steps] == list(range(8, 40))


@pytest.mark.parametrize("mode", ["assistant", "prompt_lookup"])
def test_every_drafted_token_is_accounted_for(loaded, mode):
    trace = decode(TransformersConfig(mode=mode, num_draft_tokens=3), loaded)
    assert any(step.accepted for step in trace.steps)
    for step in trace.steps:
        assert len(step.tokens) == step.accepted + 1
        assert 0 <= step.accepted <= step.drafted <= 3
    m = tokens_per_target_forward([trace])
    assert m == pytest.approx(sum(len(step.tokens) for step in trace.steps[1:]) / (len(trace.steps) - 1))


def test_an_assistant_drafts_exactly_k_tokens_while_there_is_room(loaded):
    trace = decode(TransformersConfig(mode="assistant", num_draft_tokens=3), loaded)
    assert {step.drafted for step in trace.steps[:-1]} == {3}
    assert all(step.draft_forwards >= step.drafted for step in trace.steps[1:-1])


def test_an_adaptive_schedule_changes_the_drafts_and_not_the_tokens(loaded):
    constant = decode(TransformersConfig(mode="assistant", num_draft_tokens=3), loaded)
    heuristic = decode(TransformersConfig(mode="assistant", num_draft_tokens=3, schedule="heuristic"), loaded)
    dynamic = decode(TransformersConfig(mode="assistant", num_draft_tokens=8, schedule="dynamic"), loaded)
    assert constant.token_ids == heuristic.token_ids == dynamic.token_ids
    # the int8 copy agrees with the target: its drafts grow by two per round
    assert max(step.drafted for step in heuristic.steps) > 3
    # random weights are never confident: a draft ends early
    assert min(step.drafted for step in dynamic.steps[:-1]) < 8


def test_an_answer_does_not_begin_where_another_answers_schedule_ended(loaded):
    method = TransformersConfig(mode="assistant", num_draft_tokens=3, schedule="heuristic").build(loaded)
    first, again = (generate(method, PROMPT, SamplingParams(max_new_tokens=24)) for _ in range(2))
    assert [step.drafted for step in first.steps] == [step.drafted for step in again.steps]


def test_a_schedule_without_an_assistant_is_refused():
    with pytest.raises(ValueError, match="schedule=dynamic needs mode=assistant"):
        TransformersConfig(schedule="dynamic")
    with pytest.raises(ValueError, match="schedule must be one of constant, heuristic, dynamic"):
        TransformersConfig(mode="assistant", schedule="fast")


def test_an_assistants_cache_is_unknown_and_never_zero(loaded):
    trace = decode(TransformersConfig(mode="assistant"), loaded)
    assert {step.kv_bytes for step in trace.steps} == {None}
    assert kv_bytes([trace]) is None
    assert acceptance_rate([trace]) is not None
    assert mean_acceptance_length([trace]) > 1


def test_the_int8_assistant_is_smaller_and_leaves_its_original_alone(loaded, folder):
    model = load_model(str(folder), torch.float32, torch.device("cpu"))
    ids = torch.tensor([PROMPT])
    before = model(ids).logits
    copy = int8_copy(model)
    assert torch.equal(model(ids).logits, before)
    difference = (copy(ids).logits - before).abs().max()
    assert 0 < difference < before.abs().max() / 10


def test_a_session_that_is_dropped_ends_its_thread(loaded):
    method = TransformersConfig().build(loaded)
    session = method.start(PROMPT, SamplingParams(max_new_tokens=100))
    answered(session.prefill())
    answered(session.step())
    assert _generation_threads() == 1
    del session
    gc.collect()
    assert _generation_threads() == 0


def test_an_error_in_generate_reaches_the_one_who_waits():
    class Model:
        device = "cpu"

        def register_forward_pre_hook(self, *_, **__):
            return self

        register_forward_hook = register_forward_pre_hook

        def remove(self):
            pass

    def fails(_streamer):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        PausedGenerate(fails, model=Model(), assistant=None, seed=None).advance()


def test_sampling_leaves_torchs_own_random_state_alone(loaded):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    generate(
        TransformersConfig().build(loaded), PROMPT, SamplingParams(max_new_tokens=8, temperature=1.0, seed=3)
    )
    assert torch.equal(torch.get_rng_state(), state)


def test_an_assistant_with_other_tokens_is_refused(loaded, tmp_path):
    other = save_tiny_model(tmp_path / "other", TINY_SHAPE)
    swap_tokens(other)
    with pytest.raises(HambenchError, match="another tokenizer than"):
        TransformersConfig(mode="assistant", assistant=str(other)).build(loaded)


@pytest.mark.parametrize("num_rows", [260, 300])
def test_an_assistant_that_is_padded_otherwise_drafts_what_the_target_would(loaded, tmp_path, num_rows):
    import dataclasses

    other = save_tiny_model(tmp_path / "other", dataclasses.replace(TINY_SHAPE, vocab_size=num_rows))
    config = TransformersConfig(mode="assistant", assistant=str(other))
    assert decode(config, loaded).token_ids == decode(TransformersConfig(), loaded).token_ids


@pytest.mark.parametrize("knobs", [{"mode": "beam"}, {"num_draft_tokens": 0}, {"max_ngram": 0}])
def test_a_bad_knob_is_named(knobs):
    with pytest.raises(HambenchError, match=r"mode|num_draft_tokens|max_ngram"):
        TransformersConfig.from_knobs(knobs)


def _generation_threads():
    return sum(thread.name == "hambench-paused-generate" for thread in threading.enumerate())
