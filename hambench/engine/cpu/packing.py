"""Packs a Llama's weights for the native kernels, and says whether that can be done."""

from __future__ import annotations

from hambench.engine.int8 import Int8Gated, Int8Linear
from hambench.engine.linear import GatedLinear, Linear
from hambench.engine.llama import DecoderLayer, DecoderStack, Llama
from hambench.engine.shape import LlamaShape, rope_frequencies
from hambench.kernels.cpu.library import Library
from hambench.kernels.cpu.model import LayerWeights, NativeModel
from hambench.kernels.cpu.operands import LinearWeight
from hambench.kernels.cpu.shape import NativeShape, shape_obstacle


def llama_obstacle(llama: Llama, library: Library) -> str | None:
    """Why the native kernels can't run this model, ``None`` if they can."""
    return shape_obstacle(native_shape(llama.shape), llama.dtype, llama.device, library)


def pack_llama(llama: Llama, library: Library) -> NativeModel:
    """A whole model; :func:`llama_obstacle` finds nothing. The embedding is shared, the rest is copied."""
    return NativeModel(
        library,
        native_shape(llama.shape),
        stack_layers(llama.stack),
        frequencies=rope_frequencies(llama.shape),
        final_norm=llama.norm.weight,
        head=linear_weight(llama.head),
        embedding=llama.embedding.contiguous(),
        cache_type=llama.dtype,
    )


def linear_weight(linear: Linear) -> LinearWeight:
    """A linear layer's weight as the kernels take it; int8 codes stay as they are."""
    bias = None if linear.bias is None else linear.bias.contiguous()
    if isinstance(linear, Int8Linear):
        return LinearWeight(linear.codes.contiguous(), linear.scales.contiguous(), bias)
    return LinearWeight(linear.weight.contiguous(), None, bias)


def stack_layers(stack: DecoderStack) -> list[LayerWeights]:
    """The layers of a stack without embedding and head."""
    return [_layer(layer) for layer in stack.layers]


def native_shape(shape: LlamaShape) -> NativeShape:
    """The sizes that the kernels ask for."""
    return NativeShape(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        rms_norm_eps=shape.rms_norm_eps,
    )


def _layer(layer: DecoderLayer) -> LayerWeights:
    return LayerWeights(
        qkv=linear_weight(layer.qkv),
        out=linear_weight(layer.out),
        gate_up=_gated_weight(layer.gate_up),
        down=linear_weight(layer.down),
        input_norm=layer.input_norm.weight,
        mlp_norm=layer.mlp_norm.weight,
        q_norm=None if layer.q_norm is None else layer.q_norm.weight,
        k_norm=None if layer.k_norm is None else layer.k_norm.weight,
    )


def _gated_weight(gated: GatedLinear) -> LinearWeight:
    if isinstance(gated, Int8Gated):
        return linear_weight(gated.joined)
    return LinearWeight(gated.weight.contiguous())
