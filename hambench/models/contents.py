"""Checks that a checkpoint's tensors match its config: each has the right size, and each is read.

Ignoring a weight silently changes the arithmetic, e.g. the scales of a quantised matrix, a bias that the config does
not declare, an extra layer, or a matrix under another name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from hambench.engine.shape import LlamaShape
from hambench.errors import ModelError, listed

if TYPE_CHECKING:
    from torch import Tensor

PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that store weights directly, not as codes."""
_OF_THE_DECODER = ("model.", "lm_head.")
_COMPUTED = ("rotary_emb.inv_freq",)
"""Tensors that old checkpoints store although the config determines them."""
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def fit_to_weights(
    shape: LlamaShape, weights: Mapping[str, Tensor], where: str
) -> tuple[LlamaShape, dict[str, Tensor], str]:
    """Returns the shape according to the weights, the weights to read, and a note for the user.

    Like transformers, it uses a separate head even if the config ties it to the embedding.

    Args:
        shape: The shape according to the config.
        weights: Every tensor of the checkpoint by Hugging Face name.
        where: The folder, for messages.

    Raises:
        ModelError: If a tensor's size differs from the config, or a tensor is quantised, or a tensor of the decoder
            would not be read.
    """
    _refuse_odd_numbers(shape, weights, where)
    notes = []
    if shape.tie_embeddings and HEAD in weights:
        if EMBEDDING in weights and torch.equal(weights[HEAD], weights[EMBEDDING]):
            weights = {name: tensor for name, tensor in weights.items() if name != HEAD}
        else:
            shape = dataclasses.replace(shape, tie_embeddings=False)
            notes.append("config.json ties the head to the embedding, but the stored head is used")
    sizes = sizes_of(shape)
    for name, tensor in weights.items():
        if name not in sizes:
            continue
        if tensor.dtype not in PLAIN:
            raise ModelError(
                f"{where}: {name} is stored as {str(tensor.dtype).removeprefix('torch.')}, a quantised type: use the "
                "unquantised weights, or a de-quantised copy"
            )
        if tuple(tensor.shape) != sizes[name]:
            raise ModelError(
                f"{where}: {name} has the size {list(tensor.shape)}, but config.json says {list(sizes[name])}"
            )
    unread = [name for name in weights if name not in sizes and not name.endswith(_COMPUTED)]
    if vital := [name for name in unread if name.startswith(_OF_THE_DECODER)]:
        raise ModelError(
            f"{where} has weights that hambench would not read: {listed(sorted(vital))}; "
            "is config.json another model's?"
        )
    if unread:
        notes.append(f"unread weights: {listed(sorted(unread))}")
    return shape, {name: weights[name] for name in weights if name in sizes}, "; ".join(notes)


def _refuse_odd_numbers(shape: LlamaShape, weights: Mapping[str, Tensor], where: str) -> None:
    """Rejects impossible numbers in a config before they are used as sizes."""
    layers = {name.split(".")[2] for name in weights if name.startswith("model.layers.")}
    if not 0 < shape.num_layers <= len(layers):
        raise ModelError(
            f"{where}: config.json says {shape.num_layers} layers, but the weights have {len(layers)}"
        )
    if shape.num_kv_heads < 1 or shape.num_heads < 1 or shape.num_heads % shape.num_kv_heads:
        raise ModelError(
            f"{where}: config.json says {shape.num_heads} heads over {shape.num_kv_heads} key/value heads, which do "
            "not divide them"
        )
    if shape.head_dim < 2 or shape.head_dim % 2:
        raise ModelError(
            f"{where}: config.json says heads of {shape.head_dim} elements, not an even number >= 2"
        )
    if not isinstance(shape.max_positions, int) or shape.max_positions < 2:
        raise ModelError(
            f"{where}: max_position_embeddings must be an integer >= 2, got {shape.max_positions!r}"
        )
    for name in ("rms_norm_eps", "rope_theta"):
        value = getattr(shape, name)
        if not isinstance(value, int | float) or not (0 < value < math.inf):
            raise ModelError(f"{where}: {name} must be a positive number, got {value!r}")


def sizes_of(shape: LlamaShape) -> dict[str, tuple[int, ...]]:
    """Returns the size of every tensor of a model, by Hugging Face name."""
    hidden, ffn = shape.hidden_size, shape.intermediate_size
    query, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (query, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, query),
        "mlp.gate_proj.weight": (ffn, hidden),
        "mlp.up_proj.weight": (ffn, hidden),
        "mlp.down_proj.weight": (hidden, ffn),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    if shape.qkv_bias:
        layer |= {"self_attn.q_proj.bias": (query,)}
        layer |= {"self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,)}
    if shape.qk_norm:
        layer |= {"self_attn.q_norm.weight": (shape.head_dim,), "self_attn.k_norm.weight": (shape.head_dim,)}
    sizes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (shape.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not shape.tie_embeddings:
        sizes[HEAD] = (shape.vocab_size, hidden)
    for index in range(shape.num_layers):
        sizes |= {f"model.layers.{index}.{name}": size for name, size in layer.items()}
    return sizes
