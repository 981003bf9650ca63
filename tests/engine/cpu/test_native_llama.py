"""The native engine against the reference forward, and row invariance bit for bit."""

import copy
import dataclasses
import os
import random
import select
import signal

import pytest
import torch
from fakes import TINY_SHAPE, random_weights

from hambench.engine import int8
from hambench.engine.cpu.native_llama import NativeLlama
from hambench.engine.int8 import Int8Linear, quantize_int8
from hambench.engine.llama import Llama
from hambench.errors import ContextOverflowError, ModelError, NotFiniteError

ODD = dataclasses.replace(
    TINY_SHAPE, vocab_size=97, hidden_size=40, intermediate_size=52, num_layers=2, head_dim=10
)
WIDE = dataclasses.replace(TINY_SHAPE, hidden_size=264, intermediate_size=390, num_layers=2)
"""Its weights have inputs of several groups, the last of which is not whole."""
SHAPES = {
    "llama": TINY_SHAPE,
    "tied": dataclasses.replace(TINY_SHAPE, tie_embeddings=True, num_layers=2),
    "multi-head": dataclasses.replace(TINY_SHAPE, num_kv_heads=4, num_layers=2),
    "multi-query, wide heads": dataclasses.replace(TINY_SHAPE, num_kv_heads=1, head_dim=80, num_layers=2),
    "qwen2 biases": dataclasses.replace(TINY_SHAPE, qkv_bias=True, num_layers=2),
    "qwen3 head norms": dataclasses.replace(TINY_SHAPE, qk_norm=True, head_dim=32, num_layers=2),
    "heads of 64": dataclasses.replace(TINY_SHAPE, head_dim=64, num_layers=2),
    "heads of 64, groups of three": dataclasses.replace(TINY_SHAPE, head_dim=64, num_heads=6, num_layers=2),
    "heads of 128": dataclasses.replace(TINY_SHAPE, head_dim=128, num_layers=2),
    "nothing divides 16": ODD,
    "nothing divides 16, head norms, one group of three": dataclasses.replace(
        ODD, qk_norm=True, qkv_bias=True, num_heads=6, num_kv_heads=2
    ),
    "llama3 rope": dataclasses.replace(
        TINY_SHAPE,
        num_layers=2,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
}
SETS = ("avx512", "avx2", "portable")
TOLERANCE = 2e-4
"""Of float32 logits of order 10, summed in another order."""
ROUNDED = 3e-3
"""How far rounding the rows of every product to 15 bits may take the same logits from those of whole rows."""


def weights_of(shape, seed=0):
    weights = random_weights(shape, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    widths = {"q": shape.num_heads, "k": shape.num_kv_heads, "v": shape.num_kv_heads}
    for layer in range(shape.num_layers):
        attention = f"model.layers.{layer}.self_attn"
        if shape.qkv_bias:
            for name, heads in widths.items():
                weights[f"{attention}.{name}_proj.bias"] = torch.zeros(heads * shape.head_dim)
        if shape.qk_norm:
            for name in "qk":
                weights[f"{attention}.{name}_norm.weight"] = torch.ones(shape.head_dim)
    for name, tensor in weights.items():
        # norms and biases begin as ones and zeros, under which a forgotten one would not show
        if "norm" in name or "bias" in name:
            tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
    return weights


def plain(shape, dtype=torch.float32):
    return Llama(shape, {name: tensor.to(dtype) for name, tensor in weights_of(shape).items()}, dtype)


def native_of(llama, library, instruction_set=None):
    return NativeLlama(llama, library, instruction_set=instruction_set)


def ids_of(count, vocab=97, seed=1):
    return torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=SETS)
def instruction_set(request, library):
    if request.param not in library.instruction_sets():
        pytest.skip(f"this machine has no {request.param}")
    return request.param


@pytest.fixture(scope="module")
def llama():
    return plain(TINY_SHAPE)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_hidden_and_features_equal_the_reference(name, instruction_set, library):
    llama = plain(SHAPES[name])
    native = native_of(llama, library, instruction_set)
    ids, last = ids_of(9), llama.shape.num_layers - 1
    expected_cache, cache = llama.new_cache(40), native.new_cache(40)
    for chunk in (ids[:4], ids[4:5], ids[5:]):
        expected = llama.forward(chunk, expected_cache, num_logits=None, feature_layers=(0, last))
        out = native.forward(chunk, cache, num_logits=None, feature_layers=(0, last))
        assert expected.logits.std() > 0.1  # equal because nearly zero would prove nothing
        for part in ("logits", "hidden", "features"):
            torch.testing.assert_close(getattr(out, part), getattr(expected, part), atol=TOLERANCE, rtol=1e-4)
    assert cache.slots == expected_cache.slots == 9
    for ours, theirs in ((cache.keys, expected_cache.keys), (cache.values, expected_cache.values)):
        torch.testing.assert_close(ours[:, :, :9], theirs[:, :, :9], atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "heads of 64", "heads of 128"])
def test_bfloat16_weights_are_summed_in_float32(name, instruction_set, library):
    shape = SHAPES[name]
    llama = plain(shape, torch.bfloat16)
    exact = Llama(shape, {n: t.bfloat16() for n, t in weights_of(shape).items()}, torch.float32)
    native = native_of(llama, library, instruction_set)
    ids = ids_of(7)
    out = native.forward(ids, native.new_cache(8), num_logits=None)
    expected = exact.forward(ids, exact.new_cache(8), num_logits=None)
    reference = llama.forward(ids, llama.new_cache(8), num_logits=None)
    # keys and values are rounded to bfloat16 as they are stored, and nothing else is
    error = (out.logits - expected.logits).abs().max()
    assert error < 0.3 * (reference.logits - expected.logits).abs().max()
    assert error < 0.02 * expected.logits.abs().max()


def _rows(native, ids, sizes, capacity=400):
    """Logits of a sequence cut in forwards of the given sizes, and the cache it leaves."""
    cache = native.new_cache(capacity)
    cache.keys.zero_()
    cache.values.zero_()
    parts = [native.forward(part, cache, num_logits=None).logits for part in torch.split(ids, list(sizes))]
    return torch.cat(parts), cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "multi-query, wide heads",
        "heads of 64",
        "heads of 64, groups of three",
        "heads of 128",
        "nothing divides 16, head norms, one group of three",
    ],
)
def test_a_row_has_the_same_bits_whatever_rows_are_next_to_it(name, dtype, instruction_set, library):
    native = native_of(plain(SHAPES[name], dtype), library, instruction_set)
    # long enough for several chunks of attention, some of which begin inside a forward
    ids = ids_of(16 * 17 + 2)
    single, single_cache = _rows(native, ids, [1] * len(ids))
    for size in range(2, 18):
        sizes = [size] * (len(ids) // size) + ([len(ids) % size] if len(ids) % size else [])
        several, cache = _rows(native, ids, sizes)
        assert torch.equal(several, single), f"{size} rows"
        assert torch.equal(cache.keys, single_cache.keys)
        assert torch.equal(cache.values, single_cache.values)


def test_a_row_has_the_same_bits_on_any_number_of_threads(
    instruction_set, library, several_threads, monkeypatch
):
    native = native_of(plain(SHAPES["llama"], torch.bfloat16), library, instruction_set)
    ids, sizes = ids_of(300), [1, 5, 16, 7, 64, 1, 3, 60, 64, 64, 15]
    results = []
    for threads in (1, 2, 3, 4, 7):
        monkeypatch.setattr(NativeLlama, "threads", threads)
        before = library.pool_counts()
        results.append(_rows(native, ids, sizes)[0])
        after = library.pool_counts()
        assert after.last_size == threads
        assert after.together - before.together == (len(sizes) if threads > 1 else 0)
    assert all(torch.equal(result, results[0]) for result in results[1:])


def test_two_wide_instruction_sets_give_the_same_bits(library):
    if not {"avx512", "avx2"} <= set(library.instruction_sets()):
        pytest.skip("this machine does not have both AVX-512 and AVX2")
    for shape in (TINY_SHAPE, ODD, WIDE, SHAPES["heads of 64, groups of three"], SHAPES["heads of 128"]):
        for dtype in (torch.float32, torch.bfloat16):
            llama = plain(shape, dtype)
            natives = [native_of(llama, library, name) for name in ("avx512", "avx2")]
            # of int8 weights one set may multiply by VNNI and the other not
            for pair in (natives, [quantize_int8(native) for native in natives]):
                rows = [_rows(native, ids_of(150), [1, 9, 16, 64, 60])[0] for native in pair]
                assert torch.equal(*rows)


def test_greedy_tokens_are_the_argmaxes_and_ties_go_to_the_lowest_id(instruction_set, library):
    weights = weights_of(TINY_SHAPE)
    # every token has a twin with the very same row of the head
    weights["lm_head.weight"][130:260] = weights["lm_head.weight"][:130]
    llama = Llama(TINY_SHAPE, weights, torch.float32)
    native = native_of(llama, library, instruction_set)
    tokens = ids_of(12, 130).tolist()
    logits = native.forward(torch.tensor(tokens), native.new_cache(20), num_logits=None).logits
    chosen = native.greedy(tokens, cache := native.new_cache(20), num_tokens=12)
    assert chosen == [int((row == row.max()).nonzero()[0]) for row in logits]
    assert max(chosen) < 130
    assert cache.slots == 12
    assert native.greedy(tokens, native.new_cache(20), num_tokens=3) == chosen[-3:]


@pytest.mark.parametrize("num_first", [1, 2, 5])
def test_a_chain_equals_one_call_per_token(num_first, instruction_set, library, llama):
    native = native_of(llama, library, instruction_set)
    prompt, first = ids_of(130), ids_of(num_first, seed=3).tolist()
    for num_tokens in (1, 2, 6):
        chained, alone = native.new_cache(200), native.new_cache(200)
        for cache in (chained, alone):
            native.prefill(prompt, cache)
        expected, tokens = [], first
        for _ in range(num_tokens):
            tokens = native.greedy(tokens, alone)
            expected += tokens
        assert native.decode_greedily(first, chained, num_tokens) == expected
        assert chained.slots == alone.slots == 130 + num_first + num_tokens - 1
        assert torch.equal(chained.keys[:, :, : chained.slots], alone.keys[:, :, : alone.slots])


def test_slots_and_positions_may_differ(library, llama):
    native = native_of(llama, library)
    ids, positions = ids_of(20), torch.arange(20) * 3 + 5
    caches = llama.new_cache(20), native.new_cache(20)
    for part in (slice(0, 9), slice(9, 10), slice(10, 20)):
        expected, out = (
            model.forward(ids[part], cache, positions=positions[part], num_logits=None)
            for model, cache in zip((llama, native), caches, strict=True)
        )
        torch.testing.assert_close(out.logits, expected.logits, atol=TOLERANCE, rtol=1e-4)


def test_embeddings_go_in_like_ids(library, llama):
    native = native_of(llama, library)
    ids = ids_of(6)
    from_ids = native.forward(ids, native.new_cache(6), num_logits=None)
    from_rows = native.forward(native.embed(ids), native.new_cache(6), num_logits=None)
    assert torch.equal(from_ids.logits, from_rows.logits)


def test_rolling_back_forgets_what_was_written(library):
    native = native_of(plain(TINY_SHAPE, torch.bfloat16), library)
    ids = ids_of(40)
    cache = native.new_cache(200)
    native.forward(ids[:30], cache)
    native.greedy([1, 2, 3, 4, 5], cache, num_tokens=5)
    cache.truncate(30)
    again = native.forward(ids[30:], cache, num_logits=None).logits
    straight = native.new_cache(200)
    native.forward(ids[:30], straight)
    assert torch.equal(again, native.forward(ids[30:], straight, num_logits=None).logits)


def test_a_prompt_prefilled_by_torch_is_continued(library, llama):
    native = native_of(llama, library)
    ids = ids_of(150)
    cache, expected_cache = native.new_cache(200), llama.new_cache(200)
    first = native.prefill(ids[:140], cache, feature_layers=(1, 3))
    assert torch.equal(first.logits, llama.prefill(ids[:140], expected_cache, feature_layers=(1, 3)).logits)
    out = native.forward(ids[140:], cache, num_logits=None)
    expected = llama.forward(ids[140:], expected_cache, num_logits=None)
    torch.testing.assert_close(out.logits, expected.logits, atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("extra", [1, 70])
def test_more_rows_than_a_call_takes_have_the_bits_of_single_steps(dtype, extra, instruction_set, library):
    native = native_of(plain(SHAPES["llama"], dtype), library, instruction_set)
    ids = ids_of(native.native.max_rows + extra)
    out = native.forward(ids, cache := native.new_cache(200), num_logits=None, feature_layers=(0, 2))
    single_cache = native.new_cache(200)
    single = [native.forward(one[None], single_cache, feature_layers=(0, 2)) for one in ids]
    assert cache.slots == single_cache.slots == len(ids)
    assert torch.equal(out.logits, torch.cat([each.logits for each in single]))
    assert torch.equal(out.hidden, torch.cat([each.hidden for each in single]))
    assert torch.equal(out.features, torch.cat([each.features for each in single], dim=1))
    assert torch.equal(cache.keys[:, :, : len(ids)], single_cache.keys[:, :, : len(ids)])
    for wanted in (1, extra, extra + 2):
        again = native.forward(ids, native.new_cache(200), num_logits=wanted)
        assert torch.equal(again.logits, out.logits[-wanted:])


@pytest.mark.parametrize("extra", [1, 70])
def test_greedy_calls_of_many_rows_give_the_tokens_of_single_steps(extra, library):
    native = native_of(plain(SHAPES["llama"], torch.bfloat16), library)
    tokens = ids_of(native.native.max_rows + extra).tolist()
    single_cache = native.new_cache(200)
    expected = [native.greedy([token], single_cache)[0] for token in tokens]
    for wanted in (1, extra, extra + 2, len(tokens)):
        chosen = native.greedy(tokens, cache := native.new_cache(200), num_tokens=wanted)
        assert chosen == expected[-wanted:]
        assert torch.equal(cache.keys[:, :, : len(tokens)], single_cache.keys[:, :, : len(tokens)])
    for wrong in (0, len(tokens) + 1):
        with pytest.raises(ValueError, match=r"num_tokens must be in 1\.\."):
            native.greedy(tokens, native.new_cache(200), num_tokens=wrong)
    chained = native.decode_greedily(tokens, cache := native.new_cache(200), 4)
    assert chained == [expected[-1], *native.decode_greedily(chained[:1], single_cache, 3)]
    assert torch.equal(cache.keys[:, :, : cache.slots], single_cache.keys[:, :, : cache.slots])


def _rounded(rows):
    """Float32 rows as int8 weights meet them: 15 bits with one scale per group of 128 inputs."""
    groups = torch.split(rows, 128, dim=-1)
    largest = [group.abs().amax(-1, keepdim=True) for group in groups]
    codes = [
        (group * (torch.tensor(16383.0) / most)).round().double()
        for group, most in zip(groups, largest, strict=True)
    ]
    return torch.cat([c * (most / 16383).double() for c, most in zip(codes, largest, strict=True)], dim=-1)


@pytest.mark.parametrize(
    "shape", [SHAPES[name] for name in ("llama", "tied", "qwen2 biases", "nothing divides 16")] + [WIDE]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_int8_copy_multiplies_the_codes_it_was_given(shape, dtype, instruction_set, library, monkeypatch):
    llama = plain(shape, dtype)
    native = quantize_int8(native_of(llama, library, instruction_set))
    assert isinstance(native, NativeLlama)
    assert native.native.packed_bytes < 0.75 * native_of(llama, library).native.packed_bytes
    ids = ids_of(11)
    out = native.forward(ids, native.new_cache(20), num_logits=None)
    # the head's product of the row that went in, number by number
    head = quantize_int8(llama).head
    if dtype == torch.float32:
        exact = _rounded(out.hidden) @ head.codes.double().T * head.scales.double()
        torch.testing.assert_close(out.logits.double(), exact, atol=2e-5, rtol=1e-5)
    # float32 products of what the codes stand for; torch's own int8 product rounds to bfloat16 on the way
    monkeypatch.setattr(int8, "MOST_ROWS_UNPACKED", 0)
    whole = quantize_int8(llama)
    expected = whole.forward(ids, whole.new_cache(20), num_logits=None)
    tolerance = ROUNDED if dtype == torch.float32 else 0.05 * float(expected.logits.abs().max())
    torch.testing.assert_close(out.logits, expected.logits, atol=tolerance, rtol=1e-4)
    single = [native.forward(one[None], cache).logits for cache in [native.new_cache(20)] for one in ids]
    assert torch.equal(torch.cat(single), out.logits)


@pytest.mark.parametrize("name", [*SHAPES, "several groups"])
def test_each_layer_of_an_int8_copy_rounds_its_rows_and_nothing_else(
    name, instruction_set, library, monkeypatch
):
    def multiply(linear, rows):
        product = (_rounded(rows) @ linear.codes.double().T * linear.scales.double()).float()
        return product if linear.bias is None else product + linear.bias

    shape = SHAPES.get(name, WIDE)
    llama = plain(shape)
    native, reference = quantize_int8(native_of(llama, library, instruction_set)), quantize_int8(llama)
    monkeypatch.setattr(Int8Linear, "__call__", multiply)
    ids, all_layers = ids_of(20), tuple(range(shape.num_layers))
    cache = native.new_cache(20)
    out = native.forward(ids, cache, num_logits=None, feature_layers=all_layers)
    # each layer of each row begins where the native one did: a code that is nearly halfway between two may round the
    # other way, and what that changes in one layer is less than the tolerance, but grows from layer to layer
    inputs, errors = reference.embed(ids), []
    for index, outputs in enumerate(out.features):
        stack = copy.copy(reference.stack)
        stack.layers, stack.shape = [stack.layers[index]], dataclasses.replace(shape, num_layers=1)
        own = stack.new_cache(20)
        for slot in range(len(ids)):
            hidden, _ = stack.forward(inputs[slot, None], own)
            expected = reference.norm(hidden) if index == all_layers[-1] else hidden
            parts = (outputs[slot, None], cache.keys[index, :, slot], cache.values[index, :, slot])
            wanted = (expected, own.keys[0, :, slot], own.values[0, :, slot])
            for ours, theirs in zip(parts, wanted, strict=True):
                torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=1e-5)
            errors.append((parts[0] - expected).abs().max())
            own.keys[0, :, slot], own.values[0, :, slot] = parts[1:]
        inputs = outputs
    # no code of many a row is that near halfway; of a row that is rounded otherwise the error is 6e-5 and more
    assert torch.stack(errors).quantile(0.25) < 2e-6


def test_an_int8_row_has_the_same_bits_whatever_rows_are_next_to_it(instruction_set, library, monkeypatch):
    monkeypatch.setattr(NativeLlama, "threads", 3)
    native = quantize_int8(native_of(plain(WIDE, torch.bfloat16), library, instruction_set))
    ids = ids_of(16 * 10)
    single, single_cache = _rows(native, ids, [1] * len(ids))
    for sizes in ([*range(1, 17), 24], [64, 64, 32], [5] * 32):
        several, cache = _rows(native, ids, sizes)
        assert torch.equal(several, single)
        assert torch.equal(cache.values, single_cache.values)


def test_an_outlier_coarsens_its_own_group_of_inputs_only(instruction_set, library):
    # one input of the down product is a million times the others, and no output looks at it
    weights = {name: tensor for name, tensor in weights_of(WIDE).items()}
    layer = f"model.layers.{WIDE.num_layers - 1}.mlp"
    plain_logits, loud_logits = [], []
    ids = ids_of(3)
    for scale, logits in ((1.0, plain_logits), (1e6, loud_logits)):
        changed = {**weights, f"{layer}.down_proj.weight": weights[f"{layer}.down_proj.weight"].clone()}
        changed[f"{layer}.up_proj.weight"] = weights[f"{layer}.up_proj.weight"].clone()
        changed[f"{layer}.up_proj.weight"][0] *= scale
        changed[f"{layer}.down_proj.weight"][:, :128] = 0
        native = quantize_int8(native_of(Llama(WIDE, changed, torch.float32), library, instruction_set))
        logits.append(native.forward(ids, native.new_cache(4), num_logits=None).logits)
    assert torch.equal(plain_logits[0], loud_logits[0])


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_an_int8_copy_does_not_hide_damage(damage, instruction_set, library):
    weights = weights_of(WIDE)
    weights["model.norm.weight"][200] = damage
    native = quantize_int8(native_of(Llama(WIDE, weights, torch.float32), library, instruction_set))
    with pytest.raises(NotFiniteError):
        native.greedy([1, 2], native.new_cache(8))


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
@pytest.mark.parametrize("token", [0, 255, 259])
def test_logits_without_a_finite_maximum_end_an_answer(damage, token, instruction_set, library):
    weights = weights_of(TINY_SHAPE)
    # infinity times an input of either sign: one of two such tokens has it for its logit
    weights["lm_head.weight"][token, 3] = damage
    weights["lm_head.weight"][token - 1, 3] = -damage
    native = native_of(Llama(TINY_SHAPE, weights, torch.float32), library, instruction_set)
    for call in (
        lambda: native.greedy([1, 2], native.new_cache(8)),
        lambda: native.decode_greedily([1], native.new_cache(8), 3),
    ):
        with pytest.raises(NotFiniteError):
            call()


def test_a_token_that_can_never_come_is_no_damage(instruction_set, library, monkeypatch):
    monkeypatch.setattr(NativeLlama, "threads", 2)
    weights = weights_of(TINY_SHAPE)
    tokens = ids_of(6).tolist()
    sound = native_of(Llama(TINY_SHAPE, weights, torch.float32), library, instruction_set)
    out = sound.forward(torch.tensor(tokens), sound.new_cache(8), num_logits=None)
    # of minus infinity for the positive input, the logit is minus infinity, which no other comes below
    negative = out.hidden[-1].argmin()
    weights["lm_head.weight"][7] = 0
    weights["lm_head.weight"][7, negative] = float("inf")
    native = native_of(Llama(TINY_SHAPE, weights, torch.float32), library, instruction_set)
    assert native.greedy(tokens, native.new_cache(8)) == [int(out.logits[-1].argmax())]


def test_a_full_cache_is_refused_before_anything_is_written(library, llama):
    native = native_of(llama, library)
    cache = native.new_cache(4)
    native.greedy([1, 2, 3], cache)
    before = cache.keys.clone()
    for call in (
        lambda: native.greedy([1, 2], cache),
        lambda: native.decode_greedily([1], cache, 3),
        lambda: native.forward(torch.tensor([1, 2]), cache),
    ):
        with pytest.raises(ContextOverflowError):
            call()
    assert cache.slots == 3
    assert torch.equal(cache.keys, before)


@pytest.mark.parametrize("num_positions", [2, 4])
def test_positions_must_be_one_per_row(num_positions, library, llama):
    native = native_of(llama, library)
    cache = native.new_cache(8)
    with pytest.raises(ValueError, match=rf"positions must be one per row, \[3\], got \[{num_positions}\]"):
        native.forward(ids_of(3), cache, positions=torch.arange(num_positions))
    with pytest.raises(ValueError, match="num_logits must be >= 0"):
        native.forward(ids_of(3), cache, num_logits=-1)
    assert cache.slots == 0


def test_a_model_that_the_kernels_cannot_run_is_refused_with_the_reason(library, llama):
    half = Llama(TINY_SHAPE, random_weights(TINY_SHAPE), torch.float16)
    with pytest.raises(ModelError, match=r"float16.*--kernels reference"):
        NativeLlama(half, library)


def test_a_forked_child_makes_threads_of_its_own(library, several_threads, monkeypatch):
    monkeypatch.setattr(NativeLlama, "threads", 2)
    native = native_of(plain(TINY_SHAPE, torch.bfloat16), library)
    expected = native.decode_greedily([1], native.new_cache(16), 8)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # nothing of pytest's may run in the child
        try:
            before = library.pool_counts()
            same = native.decode_greedily([1], native.new_cache(16), 8) == expected
            counts = library.pool_counts()
            os.write(writer, f"{same} {before.calls} {counts.together} {counts.last_size}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        # a child that waits for the parent's threads would wait for ever
        readable, _, _ = select.select([reader], [], [], 60)
        answer = os.read(reader, 100).decode() if readable else "no answer in a minute"
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    # a pool of its own begins with no calls
    assert answer == "True 0 1 2"


def test_sequences_in_one_forward_equal_each_alone(library, several_threads, monkeypatch):
    from hambench.kernels.cpu.model import CachePart

    monkeypatch.setattr(NativeLlama, "threads", 3)
    native = native_of(plain(SHAPES["nothing divides 16"], torch.bfloat16), library)
    shuffle = random.Random(5)
    pasts, sizes = [0, 7, 130, 255], [3, 1, 6, 2]
    caches = [native.new_cache(300) for _ in pasts]
    alone = []
    inputs = [ids_of(size, seed=9 + size) for size in sizes]
    for cache, past, ids in zip(caches, pasts, inputs, strict=True):
        for start in range(0, past, 50):
            native.forward(ids_of(min(50, past - start), seed=start), cache)
        alone.append(native.forward(ids, cache, num_logits=None).logits)
        cache.truncate(past)
    order = shuffle.sample(range(4), 4)
    out = native.native.forward(
        torch.cat([inputs[i] for i in order]),
        [CachePart(caches[i].keys, caches[i].values, pasts[i], sizes[i]) for i in order],
        positions=[place for i in order for place in range(pasts[i], pasts[i] + sizes[i])],
        head_rows=range(sum(sizes)),
        instruction_set=native.instruction_set,
        threads=native.threads,
    )
    assert torch.equal(out.logits, torch.cat([alone[i] for i in order]))
