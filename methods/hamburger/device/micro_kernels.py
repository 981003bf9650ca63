"""The micro-step decoder on the fused kernels, over buffers with fixed addresses.

Letters in shapes: F feature vectors, S most tokens per macro-step, D hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hambench.engine.cuda.fused_layer import FusedLayer, LayerBuffers
from hambench.engine.cuda.fused_llama import FusedLlama
from hambench.kernels.micro_attention import MAX_KEYS, micro_attention
from hambench.methods.hamburger.model import HamburgerModel


class MicroSteps:
    """Micro-steps 1 to S - 1 of one macro-step; each returns at once if ``done`` is set.

    Args:
        model: A model whose base runs on the kernels.
        token: The newest token ``[1]``, int64, which is a micro-step's input.
        done: Device flag ``[1]``, int32.
    """

    def __init__(self, model: HamburgerModel, token: Tensor, done: Tensor) -> None:
        base, architecture = model.base, model.architecture
        assert isinstance(base, FusedLlama)
        self._base, self._token, self._done = base, token, done
        self._layers = [FusedLayer(layer, base.impl) for layer in model.micro.layers]
        self._norm = model.micro_norm
        num_first, steps = architecture.num_features + 1, architecture.max_micro_steps
        dtype, device, shape = base.dtype, base.device, base.shape
        self._buffers = LayerBuffers.empty(num_first, shape, dtype, device)
        size = (len(self._layers), shape.num_kv_heads, num_first + steps - 2, shape.head_dim)
        self._keys, self._values = (torch.zeros(size, dtype=dtype, device=device) for _ in range(2))
        # one device scalar a micro-step, four apart to be aligned as kernels expect
        self._lengths = torch.zeros(steps, 4, dtype=torch.int32, device=device)
        self._lengths[2:, 0] = torch.arange(num_first, num_first + steps - 2, dtype=torch.int32)
        self.rows = torch.zeros(num_first, shape.hidden_size, dtype=dtype, device=device)
        """Input of the first micro-step ``[F + 1, D]``: the features, then the embedding of token 1."""
        self.hidden = torch.zeros(1, shape.hidden_size, dtype=dtype, device=device)
        """What the heads see after a micro-step ``[1, D]``."""
        self._stream = self.hidden if self._norm is None else torch.zeros_like(self.hidden)

    @staticmethod
    def obstacle(model: HamburgerModel) -> str | None:
        """Returns why the kernels can't run this model's micro-steps; ``None`` if they can."""
        most = model.architecture.num_features + model.architecture.max_micro_steps - 1
        if most > MAX_KEYS:
            return f"{most} rows of features and tokens, more than the {MAX_KEYS} keys of micro_attention"
        return None

    @staticmethod
    def slot_bytes(model: HamburgerModel) -> int:
        """Bytes of one row's keys and values in the base's dtype."""
        shape, size = model.base.shape, model.base.dtype.itemsize
        return 2 * len(model.micro.layers) * shape.num_kv_heads * shape.head_dim * size

    def embed_first(self) -> None:
        """Writes the embedding of token 1 after the features."""
        torch.index_select(self._base.embedding, 0, self._token, out=self.rows[-1:])

    def run(self, number: int) -> None:
        """Runs micro-step ``number`` (from 1) on the newest token; writes :attr:`hidden`."""
        buffers = self._buffers if number == 1 else self._buffers.rows(0, 1)
        stream = self.rows if number == 1 else buffers.stream
        for index, layer in enumerate(self._layers):
            if number > 1 and index == 0:
                qkv = layer.project(self._base.embedding, buffers, ids=self._token, done=self._done)
            else:
                qkv = layer.project(stream, buffers, done=self._done)
            cos, sin = self._base.rotary_tables
            heads = micro_attention(
                qkv,
                self._keys[index],
                self._values[index],
                length=self._lengths[number, :1],
                cos=cos,
                sin=sin,
                num_heads=self._base.shape.num_heads,
                out=buffers.heads,
                done=self._done,
                impl=self._base.impl,
            )
            out = None
            if index == len(self._layers) - 1:
                # behind the last attention only the newest row is read
                last = stream.shape[0] - 1
                stream, heads, out = stream[last:], heads[last:], self._stream
                buffers = buffers.rows(last, last + 1)
            stream = layer.finish(stream, heads, buffers, out=out, done=self._done)
        if self._norm is not None:
            # a small operation of torch's; where the step was skipped it norms the same row again
            normed = F.rms_norm(self._stream, self._norm.shape, self._norm, self._base.shape.rms_norm_eps)
            self.hidden.copy_(normed)
