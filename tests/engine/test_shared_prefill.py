"""A prompt that is read once for several sessions: copies have the bits of reading, and nobody's copy is another's."""

import pytest
import torch
from fakes import TINY_SHAPE, random_weights, tiny_target
from fakes_hamburger import save_tiny_hamburger

from hambench.decoding import SamplingParams
from hambench.engine.kvcache import KVCache
from hambench.engine.llama import Llama
from hambench.engine.loop import generate
from hambench.engine.requests.forwards import Prefill
from hambench.engine.requests.shared_prefill import ReadPrompts
from hambench.methods.hamburger import HamburgerConfig
from hambench.methods.kv_press import KVPressConfig
from hambench.methods.prompt_lookup import PromptLookupConfig
from hambench.methods.speculative import SpeculativeConfig
from hambench.methods.vanilla import VanillaConfig

IDS = torch.arange(3, 40)


@pytest.fixture
def llama():
    return Llama(TINY_SHAPE, random_weights(TINY_SHAPE, 0), torch.bfloat16)


def read(model, ids=IDS, *, layers=(), spare=8):
    return Prefill(model, ids, model.new_cache(len(ids) + spare), feature_layers=layers)


def assert_same_bits(request, out, expected, reference):
    for name in ("logits", "hidden", "features"):
        assert torch.equal(getattr(out, name), getattr(reference, name)), name
    assert request.cache.slots == expected.cache.slots
    for name in ("keys", "values"):
        used = slice(0, expected.cache.slots)
        assert torch.equal(
            getattr(request.cache, name)[:, :, used], getattr(expected.cache, name)[:, :, used]
        )


@torch.inference_mode()
@pytest.mark.parametrize("layers", [(), (1, 3), (0,)])
def test_a_copy_has_the_bits_of_reading(llama, layers):
    prompts, plain = ReadPrompts(), read(llama, layers=layers)
    expected = plain.answer()
    first, second = read(llama, layers=(0, 1, 3)), read(llama, layers=layers, spare=90)
    prompts.answer(first)
    assert (prompts.num_read, prompts.num_copied) == (1, 0)
    assert_same_bits(second, prompts.answer(second), plain, expected)
    assert (prompts.num_read, prompts.num_copied) == (1, 1)


def test_reading_and_copying_say_how_many_slots_a_prompt_fills(llama, monkeypatch):
    expected = []
    monkeypatch.setattr(KVCache, "expect", lambda cache, slots: expected.append(slots))
    prompts = ReadPrompts()
    with torch.inference_mode():
        for _ in range(2):
            prompts.answer(read(llama))
    assert (prompts.num_read, prompts.num_copied, expected) == (1, 1, [len(IDS)] * 2)


@torch.inference_mode()
def test_only_the_same_model_prompt_and_threads_get_a_copy(llama, monkeypatch):
    prompts = ReadPrompts()
    prompts.answer(read(llama))
    other = Llama(TINY_SHAPE, random_weights(TINY_SHAPE, 0), torch.bfloat16)
    for request in (read(llama, IDS + 1), read(llama, IDS[:-1]), read(other)):
        prompts.answer(request)
    assert (prompts.num_read, prompts.num_copied) == (4, 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    prompts.answer(read(llama, IDS[:-1]))
    assert (prompts.num_read, prompts.num_copied) == (5, 0)
    # each model's newest prompt is kept
    prompts.answer(read(llama, IDS[:-1]))
    prompts.forget()
    prompts.answer(read(llama, IDS[:-1]))
    assert (prompts.num_read, prompts.num_copied) == (6, 1)


@torch.inference_mode()
def test_layers_that_a_later_reader_wants_are_read_by_the_first_one_from_then_on(llama):
    prompts = ReadPrompts()
    for request in (read(llama), read(llama, layers=(1, 2))):
        out = prompts.answer(request)
        assert out.features.shape[0] == len(request.feature_layers)
    assert (prompts.num_read, prompts.num_copied) == (2, 0)
    new = IDS + 5
    for request in (read(llama, new), read(llama, new, layers=(1, 2)), read(llama, new, layers=(2,))):
        plain = Prefill(llama, new, llama.new_cache(60), feature_layers=request.feature_layers)
        expected = plain.answer()
        assert_same_bits(request, prompts.answer(request), plain, expected)
    assert (prompts.num_read, prompts.num_copied) == (3, 2)


@torch.inference_mode()
def test_what_a_session_does_to_its_cache_does_not_reach_the_copies(llama):
    prompts, plain = ReadPrompts(), read(llama)
    expected = plain.answer()
    for _ in range(3):
        request = read(llama)
        out = prompts.answer(request)
        assert_same_bits(request, out, plain, expected)
        request.cache.keys.zero_()
        request.cache.values.zero_()
        for tensor in (out.logits, out.hidden):
            tensor.zero_()
    assert (prompts.num_read, prompts.num_copied) == (1, 2)


@torch.inference_mode()
def test_a_cache_in_use_is_read_into(llama):
    prompts, request = ReadPrompts(), read(llama, spare=60)
    prompts.answer(request)
    prompts.answer(Prefill(llama, IDS, request.cache))
    assert request.cache.slots == 2 * len(IDS)
    assert (prompts.num_read, prompts.num_copied) == (1, 0)


def test_every_methods_answer_is_the_same_with_and_without_copies(tmp_path):
    """All read the prompt in turn, each is the first reader once, and only what was read whole is timed."""
    folder = str(save_tiny_hamburger(tmp_path))
    configs = [
        VanillaConfig(),
        SpeculativeConfig(num_draft_tokens=2),
        SpeculativeConfig(num_draft_tokens=4),
        SpeculativeConfig(num_draft_tokens=3, kv="shared"),
        PromptLookupConfig(),
        KVPressConfig(ratio=0.5),
        HamburgerConfig(confidence=0.4, checkpoint=folder),
        HamburgerConfig(confidence=1.1, checkpoint=folder),
    ]
    target = tiny_target(dtype=torch.bfloat16)
    methods = [config.build(target) for config in configs]
    params, prompts = SamplingParams(max_new_tokens=20), ReadPrompts()
    timed = dict.fromkeys(range(len(methods)), 0)
    for turn in range(len(methods)):
        ids = [3 + (turn + place * place) % 90 for place in range(30 + turn)]
        for number in [*range(turn, len(methods)), *range(turn)]:
            plain = generate(methods[number], ids, params)
            trace = generate(methods[number], ids, params, prompts=prompts)
            assert trace.token_ids == plain.token_ids, configs[number]
            assert [step.kv_slots for step in trace.steps] == [step.kv_slots for step in plain.steps]
            assert plain.ttft_s is not None
            assert all(step.seconds is not None for step in trace.steps[1:])
            timed[number] += trace.ttft_s is not None
    assert min(timed.values()) >= 1
    # the target once per prompt, the draft once per prompt, and features once more before anybody knew of them
    assert prompts.num_read == 2 * len(methods) + 1


def test_keeping_what_was_read_is_nobodys_time_to_first_token():
    seconds = iter(range(1000))

    def clock():
        return next(seconds)

    method = VanillaConfig().build(tiny_target())
    params = SamplingParams(max_new_tokens=2)
    alone = generate(method, [3, 4, 5], params, clock=clock)
    # one tick between the loop's own two readings; a reader's clock is asked three times more, once for keeping alone
    shared = generate(method, [3, 4, 5], params, prompts=ReadPrompts(clock), clock=clock)
    assert (alone.ttft_s, shared.ttft_s) == (1, 3)
