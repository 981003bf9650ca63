"""INT8 weight-only copy of a model, the draft of the paper's speculative baseline.

Rounds each output channel of a weight to the nearest of 255 levels between ± its largest magnitude (symmetric, no
calibration). Activations, norms and embeddings keep their type; the native CPU kernels round the rows that meet int8
weights to 15 bits per 128 inputs. The LM head is quantised as well, because a decode step reads it like any other
weight.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F

from hambench.engine.language_model import LanguageModel
from hambench.engine.linear import GatedLinear, Linear, must_widen
from hambench.engine.llama import DecoderLayer, DecoderStack
from hambench.errors import ModelError

MOST_ROWS_UNPACKED = 16
"""Rows up to which int8 weights are multiplied as they are; more rows share the cost of widening them."""
UNPACKED_MULTIPLE = 16
"""torch's int8 product needs the number of inputs to be a multiple of this; it crashes on others."""


class Int8Linear:
    """An int8 weight with one scale per output channel.

    Args:
        weight: ``[out, in]`` in floating point.
        bias: ``[out]`` or ``None``.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.codes, self.scales = quantize_rows(weight)
        self.bias = bias

    @property
    def weight(self) -> torch.Tensor:
        """Weight that the codes stand for, ``[out, in]``."""
        return self.codes.to(self.scales.dtype) * self.scales[:, None]

    @property
    def weight_bytes(self) -> int:
        """Bytes that one call reads."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps ``[T, in]`` to ``[T, out]``."""
        # on a CPU the int8 kernel is vectorised for bfloat16 rows only, and reads past inputs that fill no vector;
        # other devices have no such kernel
        few = rows.shape[0] <= MOST_ROWS_UNPACKED and rows.shape[1] % UNPACKED_MULTIPLE == 0
        if rows.device.type == "cpu" and rows.dtype == torch.bfloat16 and few:
            projected: torch.Tensor = torch.ops.aten._weight_int8pack_mm(rows, self.codes, self.scales)
        else:
            # codes up to 127 are exact in every float type, so scaling the product loses nothing
            type_ = torch.float32 if must_widen(rows) else rows.dtype
            projected = (F.linear(rows.to(type_), self.codes.to(type_)) * self.scales).to(rows.dtype)
        return projected if self.bias is None else projected + self.bias

    def add_to(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Returns ``hidden`` plus the projected rows."""
        return hidden + self(rows)


class Int8Gated:
    """Gate and up projections as one int8 product.

    Args:
        weight: ``[2 * out, in]``, gate above up.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self.joined = Int8Linear(weight)
        """Gate rows above up rows."""

    @property
    def weight(self) -> torch.Tensor:
        """Weight that the codes stand for, gate above up."""
        return self.joined.weight

    @property
    def weight_bytes(self) -> int:
        """Bytes that one call reads."""
        return self.joined.weight_bytes

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps ``[T, in]`` to ``[T, out]``."""
        gate, up = self.joined(rows).chunk(2, dim=-1)
        return F.silu(gate) * up


def quantize_int8(model: LanguageModel) -> LanguageModel:
    """Returns an INT8 weight-only copy that runs the way ``model`` runs and shares its norms and embeddings.

    Raises:
        ModelError: If the model runs through the transformers adapter.
    """
    llama = model.reference
    if llama is None:
        raise ModelError(
            "an INT8 copy needs the engine's own forward pass; this model runs through the transformers adapter"
        )
    quantized = copy.copy(llama)
    quantized.stack = _quantize_stack(llama.stack)
    quantized.head = _quantize(llama.head)
    return model.with_same_backend(quantized)


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns codes ``[out, in]`` in -127..127 and scales ``[out]`` in the weight's type.

    ``weight ≈ codes * scales``, row by row.
    """
    largest = weight.abs().amax(dim=1).float()
    # an all-zero row has no scale of its own, and any will do. the codes fit the scale as it is stored
    scales = torch.where(largest > 0, largest / 127, torch.ones_like(largest)).to(weight.dtype)
    codes = (weight.float() / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return codes, scales


def _quantize_stack(stack: DecoderStack) -> DecoderStack:
    quantized = copy.copy(stack)
    quantized.layers = [_quantize_layer(layer) for layer in stack.layers]
    return quantized


def _quantize_layer(layer: DecoderLayer) -> DecoderLayer:
    quantized = copy.copy(layer)
    quantized.qkv, quantized.out, quantized.down = map(_quantize, (layer.qkv, layer.out, layer.down))
    gate_up: GatedLinear = Int8Gated(layer.gate_up.weight)
    quantized.gate_up = gate_up
    return quantized


def _quantize(linear: Linear) -> Linear:
    return Int8Linear(linear.weight, linear.bias)
