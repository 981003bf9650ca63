"""A decoder layer on the fused kernels, shared by the base model and HAMburger's micro-step decoder.

Letters in shapes: T rows, D hidden size, H query heads, KVH key/value heads, Dh head size.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from hambench.engine.int8 import Int8Gated, Int8Linear
from hambench.engine.linear import GatedLinear, Linear
from hambench.engine.llama import DecoderLayer
from hambench.engine.shape import LlamaShape
from hambench.errors import ModelError
from hambench.kernels.gemv_residual import gemv_residual
from hambench.kernels.norm_gateup_silu import norm_gateup_silu
from hambench.kernels.norm_gemv import norm_gemv

Impl = Literal["auto", "reference", "fused"]


@dataclasses.dataclass(frozen=True)
class Weight:
    """A matrix in the form that the kernels take."""

    matrix: torch.Tensor
    """``[out, in]``, dense or int8."""
    scale: torch.Tensor | None
    """Float32 ``[out]`` for an int8 matrix, else ``None``."""
    bias: torch.Tensor | None = None

    @classmethod
    def of(cls, linear: Linear | GatedLinear) -> Weight:
        """Returns a layer's weight, without a copy if it is stored dense or as int8."""
        if isinstance(linear, Int8Gated):
            linear = linear.joined
        if isinstance(linear, Int8Linear):
            return cls(linear.codes, linear.scales.float(), linear.bias)
        return cls(linear.weight, None, getattr(linear, "bias", None))

    def halves(self) -> tuple[Weight, Weight]:
        """Returns the gate and up halves of a stacked matrix."""
        first, second = self.matrix.chunk(2)
        scales = (None, None) if self.scale is None else self.scale.chunk(2)
        return Weight(first, scales[0]), Weight(second, scales[1])


@dataclasses.dataclass
class LayerBuffers:
    """Output buffers of a layer of T rows; layers that run one after another share them."""

    qkv: torch.Tensor
    """``[T, (H + 2 KVH) * Dh]``."""
    heads: torch.Tensor
    """``[T, H * Dh]``."""
    inner: torch.Tensor
    """``[T, intermediate size]``."""
    stream: torch.Tensor
    """``[T, D]``, the residual stream."""

    @classmethod
    def empty(
        cls, num_rows: int, shape: LlamaShape, dtype: torch.dtype, device: torch.device
    ) -> LayerBuffers:
        """Allocates the buffers."""
        queries = shape.num_heads * shape.head_dim
        widths = (
            queries + 2 * shape.num_kv_heads * shape.head_dim,
            queries,
            shape.intermediate_size,
            shape.hidden_size,
        )
        return cls(*(torch.empty(num_rows, width, dtype=dtype, device=device) for width in widths))

    def rows(self, first: int, end: int) -> LayerBuffers:
        """Returns views of the same buffers for rows ``first`` to ``end``."""
        return LayerBuffers(
            self.qkv[first:end], self.heads[first:end], self.inner[first:end], self.stream[first:end]
        )


class FusedLayer:
    """Weights of one decoder layer in the kernels' form, and the layer's halves before and after the attention.

    Args:
        layer: The layer; its weights are shared, not copied, if they are stored dense.
        impl: See :mod:`hambench.kernels`.

    Raises:
        ModelError: If the kernels lack a feature that the layer needs.
    """

    def __init__(self, layer: DecoderLayer, impl: Impl) -> None:
        if layer.q_norm is not None:
            raise ModelError("the fused kernels have no query and key norms (Qwen3): use --kernels reference")
        self.qkv, self.out, self.down = Weight.of(layer.qkv), Weight.of(layer.out), Weight.of(layer.down)
        if self.out.bias is not None or self.down.bias is not None:
            raise ModelError("the fused kernels have no output or MLP biases: use --kernels reference")
        self.gate, self.up = Weight.of(layer.gate_up).halves()
        self.input_norm, self.mlp_norm = layer.input_norm, layer.mlp_norm
        self._impl = impl

    def project(
        self,
        stream: torch.Tensor,
        buffers: LayerBuffers,
        *,
        ids: torch.Tensor | None = None,
        done: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes the queries, keys and values of ``stream`` ``[T, D]``.

        With ``ids`` ``[T]``, ``stream`` is an embedding table; the rows that the ids name start the residual stream.
        """
        return norm_gemv(
            stream,
            self.qkv.matrix,
            norm_weight=self.input_norm.weight,
            eps=self.input_norm.eps,
            scale=self.qkv.scale,
            bias=self.qkv.bias,
            ids=ids,
            gathered=None if ids is None else buffers.stream,
            out=buffers.qkv,
            done=done,
            impl=self._impl,
        )

    def finish(
        self,
        stream: torch.Tensor,
        heads: torch.Tensor,
        buffers: LayerBuffers,
        *,
        out: torch.Tensor | None = None,
        done: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns the residual stream after the layer, from the stream before it and the attention's ``heads``.

        Writes it to ``out``, by default the buffers' stream.
        """
        middle = gemv_residual(
            heads,
            self.out.matrix,
            stream,
            scale=self.out.scale,
            out=buffers.stream,
            done=done,
            impl=self._impl,
        )
        inner = norm_gateup_silu(
            middle,
            self.gate.matrix,
            self.up.matrix,
            norm_weight=self.mlp_norm.weight,
            eps=self.mlp_norm.eps,
            gate_scale=self.gate.scale,
            up_scale=self.up.scale,
            out=buffers.inner,
            done=done,
            impl=self._impl,
        )
        return gemv_residual(
            inner,
            self.down.matrix,
            middle,
            scale=self.down.scale,
            out=buffers.stream if out is None else out,
            done=done,
            impl=self._impl,
        )
