"""The laws that every method keeps (see hambench/decoding.py). A new method adds one row to METHODS."""

import dataclasses

import pytest
import torch
from fakes import TINY_SHAPE, random_weights, save_tiny_model, tiny_target
from fakes_hamburger import save_tiny_hamburger
from native_fixtures import need_compiler

from hambench.decoding import SamplingParams, Step, answered
from hambench.engine.cpu.native_llama import NativeLlama
from hambench.engine.llama import DecoderStack, Llama
from hambench.engine.loop import generate
from hambench.engine.requests.batch import Ask, Batch, SequenceFailed
from hambench.engine.warmup import warm_up
from hambench.errors import ContextOverflowError, HambenchError, NotFiniteError
from hambench.kernels.cpu.macro_step import NativeGrafts
from hambench.kernels.cpu.model import NativeModel
from hambench.methods.hamburger import HamburgerConfig, weights_folder
from hambench.methods.kv_press import KVPressConfig
from hambench.methods.peers.transformers_generate import MODEL_KEY, TransformersConfig
from hambench.methods.peers.transformers_models import load_model
from hambench.methods.prompt_lookup import PromptLookupConfig
from hambench.methods.speculative import SpeculativeConfig
from hambench.methods.suffix import SuffixConfig
from hambench.methods.vanilla import VanillaConfig
from hambench.runner.backend import run_by
from hambench.runner.budget import calibrate

METHODS = [
    VanillaConfig(),
    *(SpeculativeConfig(num_draft_tokens=k, kv=kv) for k in (1, 2, 4) for kv in ("separate", "shared")),
    PromptLookupConfig(),
    SuffixConfig(),
    *(HamburgerConfig(confidence=confidence) for confidence in (0.0, 0.45, 1.1)),
    HamburgerConfig(confidence=0.45, verify=True),
    KVPressConfig(press="snapkv", ratio=0.5, decode_every=2, kv_dtype="int8"),
    *(TransformersConfig(mode=mode) for mode in ("dynamic", "static", "assistant", "prompt_lookup")),
]
VARIANTS = [
    SpeculativeConfig(num_draft_tokens=6, confidence=0.02),
    SpeculativeConfig(num_draft_tokens=6, draft_stop="each", gamma=0.02, kv="shared", verification="block"),
    SpeculativeConfig(num_draft_tokens=6, draft_stop="goodput"),
    SpeculativeConfig(accept="relative", confidence=0.5, exact_first=3),
    PromptLookupConfig(confidence=0.5),
    PromptLookupConfig(num_draft_tokens=1, max_ngram=1),
    SuffixConfig(confidence=1.0, factor=4.0),
    SuffixConfig(num_draft_tokens=3, factor=4.0, min_probability=0.0),
    HamburgerConfig(confidence=0.0, verify=True),
    VanillaConfig(kv_dtype="int8"),
    KVPressConfig(ratio=0.0),
    KVPressConfig(press="knorm", ratio=0.75, decode_every=8),
]
"""Further settings; one engine is enough for them (the native one where there is a compiler, see tests/conftest.py)."""
PROMPTS = [[5], [1, 2, 3, 1, 2, 3, 1, 2], list(range(40, 90)), [7] * 30]

methods = pytest.mark.parametrize(
    "config",
    [*METHODS, *(pytest.param(config, marks=pytest.mark.one_engine) for config in VARIANTS)],
    ids=lambda config: config.label,
)
prompts = pytest.mark.parametrize("prompt", PROMPTS, ids=["one", "repeating", "long", "constant"])


@pytest.fixture(scope="module", params=["reference", "native"])
def target(request):
    """The tiny target on each engine."""
    if request.param == "native":
        need_compiler()
    return run_by(tiny_target(), kernels=request.param)


@pytest.fixture(scope="module", autouse=True)
def _peer_model(target, tmp_path_factory):
    # the toy target has no folder to load from: its transformers twin is made here, from the same weights
    folder = save_tiny_model(tmp_path_factory.mktemp("tiny"), TINY_SHAPE)
    target.shared(MODEL_KEY, lambda: load_model(str(folder), target.dtype, target.device))


@pytest.fixture(scope="module", autouse=True)
def _hamburger_weights(target, tmp_path_factory):
    shipped = tmp_path_factory.mktemp("checkpoints")
    save_tiny_hamburger(shipped / target.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights_folder, "SHIPPED", shipped)
        yield


def decode(config, target, prompt, **kwargs):
    params = SamplingParams(max_new_tokens=kwargs.pop("max_new_tokens", 40), **kwargs)
    return generate(config.build(target), prompt, params)


@methods
@prompts
def test_greedy_decoding_is_deterministic(config, target, prompt):
    assert decode(config, target, prompt).token_ids == decode(config, target, prompt).token_ids


@methods
@prompts
def test_a_lossless_method_gives_exactly_vanillas_tokens(config, target, prompt):
    method = config.build(target)
    if not method.lossless:
        pytest.skip(f"{method.name} declares itself lossy: equality with vanilla is not its law")
    assert decode(config, target, prompt).token_ids == decode(VanillaConfig(), target, prompt).token_ids


@methods
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_session_asks_for_every_forward_and_runs_none_itself(config, target, temperature, monkeypatch):
    """What a session ran by itself could not be shared by a batch; a peer has an engine of its own."""
    answering = False

    def guard(owner, name):
        original = getattr(owner, name)

        def guarded(*args, **kwargs):
            assert answering, f"{config.label} calls {owner.__name__}.{name} itself: let it yield a request"
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, guarded)

    params = SamplingParams(max_new_tokens=40, temperature=temperature, seed=3)
    session = config.build(target).start(PROMPTS[1], params)
    for owner, name in ((DecoderStack, "forward"), (NativeModel, "_run"), (NativeGrafts, "_run")):
        guard(owner, name)
    num_requests = 0
    for number in range(6):
        asked = session.step() if number else session.prefill()
        if isinstance(asked, Step):
            assert isinstance(config, TransformersConfig)
            return
        request, step = next(asked, None), None
        while request is not None:
            num_requests += 1
            answering = True
            answer = request.answer()
            answering = False
            try:
                request = asked.send(answer)
            except StopIteration as end:
                request, step = None, end.value
        assert isinstance(step, Step)
    assert num_requests >= 6


class WholeAnswers:
    """Decodes prompts in a batch, the next one as soon as there is room, and keeps each one's steps."""

    def __init__(self, method, params, prompts, *, size):
        self.steps = {index: [] for index in range(len(prompts))}
        batch, waiting = Batch(method, size), list(range(len(prompts)))
        while waiting or batch.num_sequences:
            while waiting and batch.has_room:
                index = waiting.pop(0)
                batch.add(index, Ask(prompt_ids=prompts[index], params=params[index]))
            for event in batch.round():
                if isinstance(event, SequenceFailed):
                    raise event.error
                self.steps[event.key].append(event.step)


def counts(steps, *, exact):
    """What must be equal: all but times and the batch; on torch the last digits of P(continue) may differ."""
    left_out = {
        "seconds": 0.0,
        "draft_seconds": None,
        "share_s": None,
        "in_round": None,
        "round_kv_bytes": None,
    }
    equal = [dataclasses.replace(step, **left_out) for step in steps]
    if exact:
        return equal
    rounded = [tuple(round(p, 4) for p in step.continue_probs) for step in equal]
    return [dataclasses.replace(step, continue_probs=p) for step, p in zip(equal, rounded, strict=True)]


@methods
@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_batch_gives_what_single_runs_give(config, target, temperature, size):
    """The law that makes figures of batches comparable: same tokens, same counts, whoever else is in the batch."""
    method = config.build(target)
    # ragged: prompts of other lengths, answers of other lengths, more of them than have room
    prompts = [*PROMPTS, [4, 8, 15, 16, 23, 42], PROMPTS[1]]
    params = [
        SamplingParams(max_new_tokens=limit, temperature=temperature, seed=limit)
        for limit in (40, 7, 23, 1, 40, 12)
    ]
    if isinstance(config, TransformersConfig):
        with pytest.raises(HambenchError, match="an engine of its own, whose forwards a batch can't share"):
            WholeAnswers(method, params, prompts, size=size)
        return
    together = WholeAnswers(method, params, prompts, size=size)
    exact = isinstance(target.llama, NativeLlama) and temperature == 0
    for index, (prompt, own) in enumerate(zip(prompts, params, strict=True)):
        alone = generate(method, prompt, own)
        assert counts(together.steps[index], exact=exact) == counts(alone.steps, exact=exact)


@pytest.mark.parametrize(
    "config",
    [config for config in [*METHODS, *VARIANTS] if not isinstance(config, TransformersConfig)],
    ids=lambda config: config.label,
)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_batch_on_the_native_engine_has_the_bits_of_single_runs_in_bfloat16(
    config, temperature, bfloat16_target
):
    """P(continue) is a number of the arithmetic that a record keeps: it must be equal, not near."""
    method = config.build(bfloat16_target)
    prompts, params = (
        PROMPTS,
        [SamplingParams(max_new_tokens=limit, temperature=temperature, seed=7) for limit in (30, 25, 31, 9)],
    )
    together = WholeAnswers(method, params, prompts, size=3)
    for index, (prompt, own) in enumerate(zip(prompts, params, strict=True)):
        alone = generate(method, prompt, own)
        assert counts(together.steps[index], exact=True) == counts(alone.steps, exact=True)


@pytest.fixture(scope="module")
def bfloat16_target(_hamburger_weights):
    need_compiler()
    plain = tiny_target()
    plain.llama = Llama(TINY_SHAPE, random_weights(TINY_SHAPE), torch.bfloat16)
    return run_by(plain, kernels="native")


@methods
@pytest.mark.parametrize("limit", [1, 2, 3, 17])
def test_the_limit_is_respected_and_reached(config, target, limit):
    trace = decode(config, target, PROMPTS[1], max_new_tokens=limit)
    assert len(trace.token_ids) == limit
    assert trace.finish == "length"


@methods
def test_nothing_after_eos_is_counted(config, target):
    free = decode(config, target, PROMPTS[2]).token_ids
    eos = free[11]
    trace = generate(config.build(target), PROMPTS[2], SamplingParams(max_new_tokens=40), eos_ids={eos})
    assert trace.finish == "eos"
    assert trace.token_ids == free[: free.index(eos) + 1]


@methods
def test_counts_of_a_step_are_trimmed_with_its_tokens(config, target):
    """An end inside a burst, wherever it falls: what was not kept was not accepted."""
    free = decode(config, target, PROMPTS[1])
    for place in range(1, 20):
        eos = free.token_ids[place]
        if eos in free.token_ids[:place]:
            continue
        params = SamplingParams(max_new_tokens=40)
        ended = generate(config.build(target), PROMPTS[1], params, eos_ids={eos})
        limited = decode(config, target, PROMPTS[1], max_new_tokens=place + 1)
        for trace in (ended, limited):
            assert len(trace.token_ids) == place + 1
            assert all((step.accepted or 0) <= len(step.tokens) for step in trace.steps)
            assert all(len(step.continue_probs) <= len(step.tokens) for step in trace.steps)


@pytest.fixture(scope="module")
def broken_target(tmp_path_factory):
    """The tiny target whose final norm holds a NaN, and its transformers twin."""
    target = tiny_target()
    weights = random_weights(TINY_SHAPE)
    weights["model.norm.weight"][0] = torch.nan
    target.llama = Llama(TINY_SHAPE, weights, torch.float32)
    folder = save_tiny_model(tmp_path_factory.mktemp("broken"), TINY_SHAPE)
    twin = load_model(str(folder), target.dtype, target.device)
    with torch.no_grad():
        twin.model.norm.weight[0] = torch.nan
    target.shared(MODEL_KEY, lambda: twin)
    return target


@methods
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_logits_that_are_no_numbers_are_an_error_and_never_an_answer(config, broken_target, temperature):
    with pytest.raises(NotFiniteError, match="not finite"):
        decode(config, broken_target, PROMPTS[1], temperature=temperature)


@methods
def test_a_prompt_id_that_the_model_lacks_is_refused_before_any_work(config, target):
    with pytest.raises(HambenchError, match=r"prompt ids must be in 0\.\.259 for tiny-random, got 260"):
        config.build(target).start([1, 260], SamplingParams(max_new_tokens=4))


@methods
def test_a_tiny_temperature_is_greedy(config, target):
    greedy = decode(config, target, PROMPTS[1]).token_ids
    assert decode(config, target, PROMPTS[1], temperature=1e-40).token_ids == greedy


@pytest.mark.parametrize(
    "config",
    [
        SpeculativeConfig(num_draft_tokens=64),
        SpeculativeConfig(num_draft_tokens=200, kv="shared"),
        PromptLookupConfig(num_draft_tokens=100, max_ngram=1),
        SuffixConfig(num_draft_tokens=100, factor=50.0),
        TransformersConfig(mode="assistant", num_draft_tokens=64),
    ],
    ids=lambda config: config.label,
)
def test_drafts_longer_than_a_made_up_answer_are_warmed_up_and_calibrated(config, target):
    method_ = config.build(target)
    assert warm_up(method_, target.context_length).passes_s
    assert calibrate(method_, target.context_length).step_s > 0
    for limit in (1, 3, 70):
        trace = generate(method_, PROMPTS[1], SamplingParams(max_new_tokens=limit))
        assert trace.token_ids == decode(VanillaConfig(), target, PROMPTS[1], max_new_tokens=limit).token_ids


@methods
@prompts
def test_slots_never_exceed_what_was_read_and_never_shrink_between_steps(config, target, prompt):
    trace = decode(config, target, prompt)
    if getattr(config, "ratio", 0):
        pytest.skip(f"{config.label} evicts slots: tests/methods/test_kv_press.py has its law")
    emitted, slots = 0, 0
    for step in trace.steps:
        emitted += len(step.tokens) + step.discarded
        assert slots <= step.kv_slots <= len(prompt) + emitted
        slots = step.kv_slots
    assert slots >= len(prompt)


@methods
def test_bytes_grow_with_slots(config, target):
    trace = decode(config, target, PROMPTS[2])
    if any(step.kv_bytes is None for step in trace.steps):
        pytest.skip(f"{config.label} is a peer whose cache is out of sight: its records hold no bytes")
    assert all(step.kv_bytes > 0 for step in trace.steps)
    if not getattr(config, "decode_every", 0):
        assert trace.steps[-1].kv_bytes > trace.steps[0].kv_bytes


@methods
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_interleaved_sessions_equal_the_same_sessions_one_after_the_other(config, target, temperature):
    method = config.build(target)
    params = SamplingParams(max_new_tokens=60, temperature=temperature, seed=3)
    alone = [_steps(method.start(prompt, params), 6) for prompt in PROMPTS[1:3]]
    sessions = [method.start(prompt, params) for prompt in PROMPTS[1:3]]
    together = [[answered(session.prefill()).tokens] for session in sessions]
    for _ in range(6):
        for session, tokens in zip(sessions, together, strict=True):
            tokens.append(answered(session.step()).tokens)
    assert together == alone


@methods
def test_equal_seeds_give_equal_samples_and_other_seeds_differ(config, target):
    first, again, other = (
        decode(config, target, PROMPTS[2], temperature=1.0, seed=seed).token_ids for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@methods
def test_a_request_beyond_the_context_is_refused_before_any_work(config, target):
    with pytest.raises(ContextOverflowError, match="exceed the context of tiny-random"):
        config.build(target).start([1] * 500, SamplingParams(max_new_tokens=13))


@methods
def test_the_whole_context_can_be_used(config, target):
    trace = generate(config.build(target), [9] * 480, SamplingParams(max_new_tokens=32))
    assert len(trace.token_ids) == 32


@methods
def test_warmup_leaves_no_trace_in_the_answer(config, target):
    method = config.build(target)
    before = generate(method, PROMPTS[1], SamplingParams(max_new_tokens=20)).token_ids
    method.warmup()
    assert generate(method, PROMPTS[1], SamplingParams(max_new_tokens=20)).token_ids == before


def _steps(session, count):
    return [answered(session.prefill()).tokens] + [answered(session.step()).tokens for _ in range(count)]
