"""An int8 cache under each method: its bytes, and that verified methods decode what plain decoding over it decodes."""

import pytest
import torch
from fakes import TINY_SHAPE, tiny_target
from native_fixtures import need_compiler

from hambench.analysis.baselines import baseline_cell, baseline_of
from hambench.decoding import SamplingParams
from hambench.engine.loop import generate
from hambench.errors import HambenchError
from hambench.methods.common.facts import KV_DTYPES
from hambench.methods.common.sequence import new_cache
from hambench.methods.kv_press import KVPressConfig
from hambench.methods.prompt_lookup import PromptLookupConfig
from hambench.methods.speculative import SpeculativeConfig
from hambench.methods.suffix import SuffixConfig
from hambench.methods.vanilla import VanillaConfig
from hambench.records import Cell
from hambench.runner.backend import run_by

PROMPT = [5, 9, 200, 31, 5, 9, 200, 31, 5, 9, 17, 3] * 3
SHARE = (TINY_SHAPE.head_dim + 2) / (4 * TINY_SHAPE.head_dim)
"""Of the bytes in float32."""
VERIFIED = [
    SpeculativeConfig(num_draft_tokens=4, kv_dtype="int8"),
    SpeculativeConfig(num_draft_tokens=4, kv="shared", kv_dtype="int8"),
    PromptLookupConfig(kv_dtype="int8"),
    SuffixConfig(kv_dtype="int8"),
]


@pytest.fixture(scope="module", params=["reference", "native"])
def target(request):
    if request.param == "native":
        need_compiler()
    return run_by(tiny_target(), kernels=request.param)


def decode(config, target, **params):
    return generate(config.build(target), PROMPT, SamplingParams(max_new_tokens=40, **params))


def test_bytes_of_an_int8_cache_are_its_codes_and_scales(target):
    plain, rounded = (decode(VanillaConfig(kv_dtype=dtype), target) for dtype in ("model", "int8"))
    assert [a.kv_slots for a in plain.steps] == [b.kv_slots for b in rounded.steps]
    assert all(b.kv_bytes == a.kv_bytes * SHARE for a, b in zip(plain.steps, rounded.steps, strict=True))


@pytest.mark.parametrize("config", VERIFIED, ids=lambda config: config.label)
def test_a_verified_method_gives_the_tokens_of_plain_decoding_over_the_same_cache(config, target):
    assert decode(config, target).token_ids == decode(VanillaConfig(kv_dtype="int8"), target).token_ids
    assert not config.is_lossless


def test_pressing_and_rounding_compose(target):
    trace = decode(KVPressConfig(press="knorm", ratio=0.5, kv_dtype="int8"), target)
    plain = decode(VanillaConfig(), target)
    assert trace.steps[0].kv_bytes == plain.steps[0].kv_bytes * SHARE / 2


def test_rounding_reaches_the_logits(target):
    """A knob that did nothing would show here."""
    caches = [new_cache(target.llama, 40, dtype) for dtype in KV_DTYPES]
    plain, rounded = (target.llama.forward(torch.tensor(PROMPT), cache).logits for cache in caches)
    assert not torch.equal(plain, rounded)
    torch.testing.assert_close(plain, rounded, atol=0.5, rtol=0.1)


def test_a_rounded_vanilla_is_a_setting_and_never_the_baseline():
    rounded, plain = (
        Cell(label=config.label, method="vanilla", knobs=config.knobs(), model="m", dtype="float32")
        for config in (VanillaConfig(kv_dtype="int8"), VanillaConfig())
    )
    assert rounded.label == "vanilla[kv_dtype=int8]"
    assert baseline_cell([rounded, plain]) == plain
    assert baseline_of(rounded, [rounded, plain]) == plain
    assert baseline_cell([rounded]) is None


def test_the_model_s_engine_must_have_the_cache():
    class Adapter:
        reference = None

    target = tiny_target()
    target.llama = Adapter()
    target.llama.shape = TINY_SHAPE
    target.llama.device = torch.device("cpu")
    with pytest.raises(HambenchError, match="kv_dtype=int8 needs the engine's own layers"):
        VanillaConfig(kv_dtype="int8").build(target).start([1], SamplingParams(max_new_tokens=1))


@pytest.mark.parametrize(
    "config", [VanillaConfig, SpeculativeConfig, PromptLookupConfig, SuffixConfig, KVPressConfig]
)
def test_an_unknown_type_is_refused_by_name(config):
    with pytest.raises(HambenchError, match="kv_dtype must be one of model, int8, got 'fp4'"):
        config.from_knobs({"kv_dtype": "fp4"})
