"""Packed rows through bases of every family, next to transformers' own forward of each sequence alone."""

import pytest
import torch
from fakes import TINY_SHAPE
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from hambench.bench.training import forward_operations, layer_weights
from hambench.methods.hamburger.base import add_low_rank, gate_low_rank
from hambench.methods.hamburger.training.packed_base import SHORT_ROWS, packed_layers
from hambench.methods.hamburger.training.teacher import hidden_layers

SIZES = {
    "vocab_size": TINY_SHAPE.vocab_size,
    "hidden_size": TINY_SHAPE.hidden_size,
    "intermediate_size": TINY_SHAPE.intermediate_size,
    "num_hidden_layers": TINY_SHAPE.num_layers,
    "num_attention_heads": TINY_SHAPE.num_heads,
    "num_key_value_heads": TINY_SHAPE.num_kv_heads,
    "head_dim": TINY_SHAPE.head_dim,
    "initializer_range": 0.2,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2, biases": Qwen2Config(**{k: v for k, v in SIZES.items() if k != "head_dim"}),
    "qwen3, head norms": Qwen3Config(**SIZES),
}
LENGTHS = [5, 1, 9]
CHANGED = torch.tensor([1, 4, 5, 8, 13])
RANK = 2


def adapted_base(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    adapted = add_low_rank(model, RANK)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            # these begin as ones and zeros, under which a forgotten one would not show
            if "norm" in name or "bias" in name or ".lora_B." in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return adapted


def inputs_of(lengths):
    torch.manual_seed(1)
    rows = torch.randn(sum(lengths), TINY_SHAPE.hidden_size, requires_grad=True)
    # merged slots skip positions
    positions = torch.cat([torch.randint(1, 4, (length,)).cumsum(0) for length in lengths])
    return rows, positions


@pytest.mark.parametrize("is_gated", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_packed_base_of_any_family_is_transformers_own(name, is_gated):
    adapted = adapted_base(CONFIGS[name])
    gate, layers = gate_low_rank(adapted), (0, 2, 3)
    rows, positions = inputs_of(LENGTHS)
    is_changed = torch.zeros(len(rows), dtype=torch.bool)
    is_changed[CHANGED] = True
    trained = [p for p in adapted.parameters() if p.requires_grad]

    def gradients(streams):
        loss = sum((stream * torch.linspace(-1, 1, stream.shape[-1])).sum() for stream in streams)
        return torch.autograd.grad(loss, [rows, *trained])

    packed = packed_layers(
        adapted, layers, rows, lengths=LENGTHS, positions=positions, changed=CHANGED if is_gated else None
    )
    parts = []
    for own, places, chosen in zip(
        *(torch.split(each, LENGTHS) for each in (rows, positions, is_changed)), strict=True
    ):
        with gate.only(chosen[None] if is_gated else torch.ones(1, len(own))):
            parts.append(
                hidden_layers(
                    adapted,
                    layers,
                    inputs_embeds=own[None],
                    attention_mask=torch.ones(1, len(own)),
                    position_ids=places[None],
                )
            )
    expected = [torch.cat([stream[0] for stream in streams]) for streams in zip(*parts, strict=True)]
    assert min(stream.std() for stream in expected) > 0.1
    torch.testing.assert_close(packed, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients(packed), gradients(expected), rtol=1e-3, atol=1e-3)


def products(work):
    """Operations of the forward's products by kind."""
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    return counts.get("aten.mm", 0) + counts.get("aten.addmm", 0), counts.get("aten.bmm", 0)


def test_a_packed_forward_multiplies_changed_rows_by_low_rank_changes_and_stops_after_the_last_layer():
    adapted = adapted_base(CONFIGS["llama"])
    rows, positions = inputs_of(LENGTHS)

    def run(changed):
        return products(
            lambda: packed_layers(adapted, (1,), rows, lengths=LENGTHS, positions=positions, changed=changed)
        )[0]

    shape = TINY_SHAPE
    base = len(rows) * forward_operations(shape) * 2 / shape.num_layers
    assert base == len(rows) * 2 * 2 * layer_weights(shape)
    hidden, inner = shape.hidden_size, shape.intermediate_size
    heads, kv_heads = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sides = (hidden + heads) + 2 * (hidden + kv_heads) + (heads + hidden) + 3 * (hidden + inner)
    for changed, num_changed in ((None, len(rows)), (CHANGED, len(CHANGED)), (CHANGED[:0], 0)):
        assert run(changed) == base + num_changed * 2 * 2 * RANK * sides
    with adapted.disable_adapter():
        assert run(CHANGED) == base


def test_up_to_256_rows_that_need_a_gradient_are_attended_to_by_plain_products():
    adapted = adapted_base(CONFIGS["llama"])

    def run(length):
        rows, positions = inputs_of([length])
        return products(lambda: packed_layers(adapted, (0,), rows, lengths=[length], positions=positions))[1]

    assert run(SHORT_ROWS) == 2 * 2 * SHORT_ROWS**2 * TINY_SHAPE.num_heads * TINY_SHAPE.head_dim
    assert run(SHORT_ROWS + 1) == 0
    with torch.no_grad():
        assert run(SHORT_ROWS) == 0
