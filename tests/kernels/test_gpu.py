"""What only a GPU can show: graphs, real sizes, and the same bits every time."""

from __future__ import annotations

import pytest
import torch
from fakes import random_weights
from fakes_hamburger import tiny_checkpoint
from kernel_checks import assert_close, draw, draw_weight, flag

from hambench.decoding import SamplingParams, answered
from hambench.engine.cuda.early_exit import GRAPH_LOOPS
from hambench.engine.cuda.fused_llama import FusedLlama
from hambench.engine.cuda.graphs import GraphLauncher
from hambench.engine.int8 import quantize_int8
from hambench.engine.llama import Llama
from hambench.engine.shape import LlamaShape
from hambench.kernels.decode_attention import decode_attention
from hambench.kernels.gemv_residual import gemv_residual
from hambench.kernels.lm_head_argmax import lm_head_argmax
from hambench.kernels.norm_gateup_silu import norm_gateup_silu
from hambench.kernels.norm_gemv import norm_gemv, reference
from hambench.kernels.results import HeadOutput
from hambench.methods.hamburger.architecture import Architecture
from hambench.methods.hamburger.device.session import DeviceSession
from hambench.methods.hamburger.model import HamburgerModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# Llama-3.2-1B's and SmolLM2-135M's projections
SIZES = [(3072, 2048), (8192, 2048), (2048, 8192), (960, 576), (576, 1536)]


@pytest.mark.parametrize(("num_outputs", "num_inputs"), SIZES)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.int8])
def test_rows_are_independent_at_real_sizes(num_outputs, num_inputs, kind, device):
    weight, scale = draw_weight(num_outputs, num_inputs, kind, device)
    norm = draw(num_inputs, dtype=torch.bfloat16, device=device)
    x = draw(8, num_inputs, dtype=torch.bfloat16, device=device)
    want = reference(x, weight, norm, 1e-5, scale, None)
    for rows in (1, 2, 4, 5, 8):
        got = norm_gemv(x[:rows], weight, norm_weight=norm, eps=1e-5, scale=scale, impl="fused")
        assert_close(got, want[:rows])
        for i in range(rows):
            one = norm_gemv(x[i : i + 1], weight, norm_weight=norm, eps=1e-5, scale=scale, impl="fused")
            assert torch.equal(got[i : i + 1], one), f"row {i} of {rows}"


def test_a_captured_step_replays_to_the_same_bits_and_skips_when_done(device):
    hidden, vocabulary = 576, 49152
    x, norm = (
        draw(1, hidden, dtype=torch.bfloat16, device=device),
        torch.ones(hidden, device=device).bfloat16(),
    )
    gate, _ = draw_weight(1536, hidden, torch.bfloat16, device)
    up, _ = draw_weight(1536, hidden, torch.bfloat16, device)
    down, _ = draw_weight(hidden, 1536, torch.bfloat16, device)
    head, _ = draw_weight(vocabulary, hidden, torch.bfloat16, device)
    done = flag(0, device)
    inner = torch.empty(1, 1536, dtype=torch.bfloat16, device=device)
    stream = torch.empty_like(x)
    out = HeadOutput.empty(1, device, log_sum_exp=True)

    def step() -> None:
        norm_gateup_silu(x, gate, up, norm_weight=norm, eps=1e-5, out=inner, done=done)
        gemv_residual(inner, down, x, out=stream, done=done)
        lm_head_argmax(stream, head, norm_weight=norm, out=out, done=done)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    first = [tensor.clone() for tensor in (stream, *out)]
    for _ in range(1000):
        graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(first, (stream, *out), strict=True))
    x.copy_(draw(1, hidden, dtype=torch.bfloat16, device=device))
    graph.replay()
    assert not torch.equal(first[0], stream), "replays read the buffers as they are then"
    done.fill_(1)
    kept = stream.clone()
    x.zero_()
    graph.replay()
    assert torch.equal(kept, stream)


@pytest.mark.parametrize("context", [1, 64, 127, 128, 1000, 4090])
def test_attention_at_a_real_size_is_independent_of_the_rows_beside(context, device):
    heads, kv_heads, head_dim, capacity, rows = 32, 8, 64, 4096, 5
    angles = torch.rand(capacity, head_dim // 2, device=device) * 6.28
    shared = {"cos": angles.cos(), "sin": angles.sin(), "num_heads": heads, "impl": "fused"}
    caches = [
        torch.zeros(kv_heads, capacity, head_dim, dtype=torch.bfloat16, device=device) for _ in range(2)
    ]
    for cache in caches:
        cache[:, :context] = torch.randn(kv_heads, context, head_dim, device=device)
    qkv = draw(rows, (heads + 2 * kv_heads) * head_dim, dtype=torch.bfloat16, device=device)
    positions = torch.arange(context, context + rows, device=device)
    together = decode_attention(
        qkv, *(c.clone() for c in caches), slots=flag(context, device), positions=positions, **shared
    )
    for i in range(rows):
        one = decode_attention(
            qkv[i : i + 1], *caches, slots=flag(context + i, device), positions=positions[i : i + 1], **shared
        )
        assert torch.equal(one, together[i : i + 1]), f"row {i}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_graphed_model_decodes_as_without_graphs_and_verifies_to_the_same_bits(dtype, device):
    shape = LlamaShape(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_layers=3,
        num_heads=8,
        num_kv_heads=2,
        head_dim=32,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        max_positions=1024,
        tie_embeddings=False,
    )
    plain = Llama(shape, random_weights(shape, seed=5), dtype, device)
    eager, graphed = (
        FusedLlama(plain, impl="fused"),
        FusedLlama(plain, impl="fused", launches=GraphLauncher()),
    )
    prompt = torch.arange(1, 140, device=device)
    caches = [model.new_cache(300) for model in (plain, eager, graphed)]
    logits = [m.prefill(prompt, c).logits for m, c in zip((plain, eager, graphed), caches, strict=True)]
    tokens = []
    for _ in range(40):
        token = logits[2][-1:].argmax(-1)
        tokens.append(token)
        logits = [m.forward(token, c).logits for m, c in zip((plain, eager, graphed), caches, strict=True)]
        assert torch.equal(logits[1], logits[2]), "a graph changes no bit"
        # three layers of roundings, each at most as large as kernel_checks allows
        assert (logits[0] - logits[2]).norm() <= 0.05 * logits[0].norm()
    cache = graphed.new_cache(300)
    graphed.prefill(prompt, cache)
    rows = torch.cat(tokens[:5])
    verified = graphed.forward(rows, cache, num_logits=None).logits
    cache.truncate(prompt.shape[0])
    for i in range(5):
        assert torch.equal(graphed.forward(rows[i : i + 1], cache).logits[0], verified[i]), f"row {i}"


@pytest.mark.parametrize("loop", GRAPH_LOOPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_graphed_macro_step_decodes_as_one_launched_as_it_comes(dtype, loop, device):
    shape = LlamaShape(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_layers=4,
        num_heads=8,
        num_kv_heads=2,
        head_dim=32,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        max_positions=1024,
        tie_embeddings=False,
    )
    llama = Llama(shape, random_weights(shape, seed=5), dtype, device)
    architecture = Architecture(feature_layers=(0, 1, 2, 3), num_micro_layers=2, merge_heads=8)
    checkpoint = tiny_checkpoint(architecture, shape, seed=1)
    prompt, other = list(range(1, 140)), list(range(300, 400))
    models = [
        HamburgerModel(FusedLlama(llama, impl="fused", launches=launches), checkpoint)
        for launches in (None, GraphLauncher())
    ]
    sessions = [
        [
            DeviceSession(
                model,
                ids,
                SamplingParams(max_new_tokens=300),
                confidence=0.45,
                position_convention="train",
                loop=loop,
            )
            for ids in (prompt, other)
        ]
        for model in models
    ]
    lengths = []
    with torch.inference_mode():
        for number in range(60):
            for eager, graphed in zip(*sessions, strict=True):
                want, got = (
                    (answered(s.step()) if number else answered(s.prefill())) for s in (eager, graphed)
                )
                # the same kernels on the same bits: nothing may differ, and the two sessions take turns
                assert got == want, f"macro-step {number}"
                lengths.append(len(got.tokens))
    assert len(set(lengths)) > 1


def test_a_graphed_draft_chain_and_verification_give_vanillas_tokens(device):
    shape = LlamaShape(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_layers=3,
        num_heads=8,
        num_kv_heads=2,
        head_dim=32,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        max_positions=1024,
        tie_embeddings=False,
    )
    plain = Llama(shape, random_weights(shape, seed=5), torch.bfloat16, device)
    model = FusedLlama(plain, impl="fused", launches=GraphLauncher())
    draft = quantize_int8(model)
    prompt = list(range(1, 140))
    caches = [model.new_cache(300) for _ in range(2)] + [draft.new_cache(300)]
    for owner, cache in zip((model, model, draft), caches, strict=True):
        owner.prefill(torch.tensor(prompt, device=device), cache)
    vanilla, tokens = [7], [7]
    for _ in range(40):
        vanilla += model.greedy(vanilla[-1:], caches[0])
    while len(tokens) < 40:
        unseen = [*prompt, *tokens][caches[2].slots :]
        drafted = draft.decode_greedily(unseen, caches[2], 4)
        found = model.greedy([tokens[-1], *drafted], caches[1], num_tokens=5)
        kept = next((i for i in range(4) if drafted[i] != found[i]), 4)
        tokens += found[: kept + 1]
        caches[1].truncate(len(prompt) + len(tokens) - 1)
        caches[2].truncate(min(caches[2].slots, len(prompt) + len(tokens) - 1))
    # row-invariant kernels: lossless in bfloat16 too
    assert tokens[:40] == vanilla[:40]
