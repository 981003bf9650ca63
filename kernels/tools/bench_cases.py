"""Cases of `hambench bench kernels`: each op over many distinct weights, fused and in plain torch.

One pass of a case calls the op once per set of weights. Together the sets are several times as large as a GPU's L2
cache, as a model's layers are. Timed over one set, an 8 MB matrix would come from the cache and show more bandwidth
than the memory has.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hambench.kernels.decode_attention import decode_attention
from hambench.kernels.gemv_residual import gemv_residual
from hambench.kernels.lm_head_argmax import lm_head_argmax
from hambench.kernels.merge_tokens import merge_tokens
from hambench.kernels.norm_gateup_silu import norm_gateup_silu
from hambench.kernels.norm_gemv import norm_gemv
from hambench.kernels.results import MergeWeights, MicroState, StopWeights
from hambench.kernels.stop_head import stop_head
from hambench.kernels.tools.shapes import EPS, KernelShape

Call = Callable[[], object]

TOLERANCE = {torch.float32: 5e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
"""Relative error of a result rounded once to its dtype; see tests/kernel_checks.py."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One op at one size."""

    op: str
    rows: int
    weights: str
    """Dtype of the weights."""
    num_bytes: int
    """Bytes that one call must move: weights once, activations, keys and values."""
    fused: list[Call]
    """One call per set of weights."""
    torch: list[Call] | None
    """The same in plain torch operations of the model's dtype, if there is a natural way to write it."""
    error: Callable[[], float]
    """Relative error of the fused kernel against its float32 reference, on the first set."""
    tolerance: float


class CaseMaker:
    """Builds cases with random weights.

    Args:
        shape: Model whose sizes to use.
        device: Device to allocate on.
        dtype: Dtype of activations and dense weights.
        pass_bytes: Least bytes of weights per pass.
    """

    def __init__(self, shape: KernelShape, device: torch.device, dtype: torch.dtype, pass_bytes: int) -> None:
        self.shape, self.device, self.dtype, self.pass_bytes = shape, device, dtype, pass_bytes

    def cases(self, rows: int, kind: torch.dtype) -> Iterator[Case]:
        """Yields cases of that many rows with weights of that dtype, one at a time, because each holds much memory."""
        shape = self.shape
        yield self._norm_gemv(rows, kind)
        yield self._gate_up(rows, kind)
        yield self._residual("gemv_residual (output)", rows, kind, shape.hidden, shape.heads * shape.head_dim)
        yield self._residual("gemv_residual (down)", rows, kind, shape.hidden, shape.intermediate)
        yield self._head(rows, kind)
        if kind == self.dtype:
            for context in (1024, shape.capacity - 8):
                yield self._attention(rows, context)
        if kind == self.dtype and rows == 1:
            yield self._stop()
            yield self._merge()

    def _random(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(size, dtype=dtype or self.dtype, device=self.device)

    def _weight(self, outputs: int, inputs: int, kind: torch.dtype) -> tuple[Tensor, Tensor | None]:
        if kind == torch.int8:
            weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, device=self.device)
            return weight, torch.rand(outputs, device=self.device) * inputs**-0.5 / 64
        return self._random(outputs, inputs).mul_(inputs**-0.5), None

    def _sets(self, set_bytes: int) -> range:
        return range(max(1, -(-self.pass_bytes // set_bytes)))

    def _linear(self, rows: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
        if scale is None:
            return F.linear(rows, weight)
        return F.linear(rows, weight.to(rows.dtype)) * scale.to(rows.dtype)

    def _case(
        self,
        op: str,
        rows: int,
        kind: torch.dtype,
        num_bytes: int,
        fused: Sequence[Callable[[str], Tensor]],
        plain: list[Call] | None,
    ) -> Case:
        """Builds a case from calls that take `impl`, the reference among them."""

        def error() -> float:
            got, want = fused[0]("fused").double(), fused[0]("reference").double()
            return float((got - want).norm() / want.norm())

        return Case(
            op=op,
            rows=rows,
            weights=str(kind).removeprefix("torch."),
            num_bytes=num_bytes,
            fused=[lambda call=call: call("fused") for call in fused],  # type: ignore[misc]
            torch=plain,
            error=error,
            # the reference is rounded too
            tolerance=2 * TOLERANCE[self.dtype],
        )

    def _norm_gemv(self, rows: int, kind: torch.dtype) -> Case:
        shape = self.shape
        x, norm = self._random(rows, shape.hidden), self._random(shape.hidden)
        set_bytes = shape.qkv * shape.hidden * kind.itemsize
        fused, plain = [], []
        for _ in self._sets(set_bytes):
            weight, scale = self._weight(shape.qkv, shape.hidden, kind)
            fused.append(_impl(norm_gemv, x, weight, norm_weight=norm, eps=EPS, scale=scale))
            plain.append(_call(self._normed_linear, x, norm, weight, scale))
        moved = set_bytes + (x.numel() + norm.numel() + rows * shape.qkv) * x.itemsize
        return self._case("norm_gemv", rows, kind, moved, fused, plain)

    def _normed_linear(self, x: Tensor, norm: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
        return self._linear(F.rms_norm(x, norm.shape, norm, EPS), weight, scale)

    def _gate_up(self, rows: int, kind: torch.dtype) -> Case:
        shape = self.shape
        x, norm = self._random(rows, shape.hidden), self._random(shape.hidden)
        set_bytes = 2 * shape.intermediate * shape.hidden * kind.itemsize
        fused, plain = [], []
        for _ in self._sets(set_bytes):
            both, scale = self._weight(2 * shape.intermediate, shape.hidden, kind)
            (gate, up), scales = both.chunk(2), (None, None) if scale is None else scale.chunk(2)
            fused.append(
                _impl(
                    norm_gateup_silu,
                    x,
                    gate,
                    up,
                    norm_weight=norm,
                    eps=EPS,
                    gate_scale=scales[0],
                    up_scale=scales[1],
                )
            )
            plain.append(_call(self._gated, x, norm, both, scale))
        moved = set_bytes + (x.numel() + norm.numel() + rows * shape.intermediate) * x.itemsize
        return self._case("norm_gateup_silu", rows, kind, moved, fused, plain)

    def _gated(self, x: Tensor, norm: Tensor, both: Tensor, scale: Tensor | None) -> Tensor:
        gate, up = self._normed_linear(x, norm, both, scale).chunk(2, dim=-1)
        return F.silu(gate) * up

    def _residual(self, op: str, rows: int, kind: torch.dtype, outputs: int, inputs: int) -> Case:
        x, residual = self._random(rows, inputs), self._random(rows, outputs)
        set_bytes = outputs * inputs * kind.itemsize
        fused, plain = [], []
        for _ in self._sets(set_bytes):
            weight, scale = self._weight(outputs, inputs, kind)
            fused.append(_impl(gemv_residual, x, weight, residual, scale=scale))
            plain.append(_call(self._added, x, weight, residual, scale))
        moved = set_bytes + (x.numel() + 2 * residual.numel()) * x.itemsize
        return self._case(op, rows, kind, moved, fused, plain)

    def _added(self, x: Tensor, weight: Tensor, residual: Tensor, scale: Tensor | None) -> Tensor:
        return residual + self._linear(x, weight, scale)

    def _head(self, rows: int, kind: torch.dtype) -> Case:
        shape = self.shape
        hidden = self._random(rows, shape.hidden)
        set_bytes = shape.vocabulary * shape.hidden * kind.itemsize
        fused, plain = [], []
        for _ in self._sets(set_bytes):
            weight, scale = self._weight(shape.vocabulary, shape.hidden, kind)

            def winner(impl: str, weight: Tensor = weight, scale: Tensor | None = scale) -> Tensor:
                # compare the winning logit, because two ids one rounding apart may swap
                return lm_head_argmax(hidden, weight, scale=scale, impl=impl).logits  # type: ignore[arg-type]

            fused.append(winner)
            plain.append(_call(self._argmax, hidden, weight, scale))
        moved = set_bytes + hidden.numel() * hidden.itemsize
        return self._case("lm_head_argmax", rows, kind, moved, fused, plain)

    def _argmax(self, hidden: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
        return self._linear(hidden, weight, scale).argmax(dim=-1)

    def _attention(self, rows: int, context: int) -> Case:
        shape = self.shape
        angles = torch.rand(shape.capacity, shape.head_dim // 2, device=self.device) * 6.28
        cos, sin = angles.cos(), angles.sin()
        qkv = self._random(rows, shape.qkv)
        slots = torch.tensor([context - rows], dtype=torch.int32, device=self.device)
        positions = torch.arange(context - rows, context, device=self.device)
        tickets = torch.zeros(shape.kv_heads, dtype=torch.int32, device=self.device)
        set_bytes = 2 * shape.kv_heads * context * shape.head_dim * self.dtype.itemsize
        # caches are small: use as many as a model has layers, at most several models deep
        count = min(len(self._sets(set_bytes)), 8 * shape.num_layers)
        q = self._random(1, shape.heads, rows, shape.head_dim)
        mask = torch.ones(rows, context, dtype=torch.bool, device=self.device).tril(context - rows)
        fused, plain = [], []
        for _ in range(count):
            k, v = (self._random(shape.kv_heads, shape.capacity, shape.head_dim) for _ in range(2))
            fused.append(
                _impl(
                    decode_attention,
                    qkv,
                    k,
                    v,
                    slots=slots,
                    positions=positions,
                    cos=cos,
                    sin=sin,
                    num_heads=shape.heads,
                    tickets=tickets,
                )
            )
            keys, values = k[None, :, :context], v[None, :, :context]
            plain.append(_call(F.scaled_dot_product_attention, q, keys, values, mask, enable_gqa=True))
        return self._case(f"decode_attention ({context} keys)", rows, self.dtype, set_bytes, fused, plain)

    def _stop(self) -> Case:
        hidden = self.shape.hidden
        x, token = self._random(1, hidden), torch.zeros(1, dtype=torch.int64, device=self.device)
        confidence = torch.zeros(1, device=self.device)
        sizes = ((hidden, hidden), (hidden,), (hidden, hidden), (hidden,), (1, hidden), (1,))
        set_bytes = (2 * hidden * hidden + 3 * hidden) * self.dtype.itemsize
        # long enough never to fill up, because a call on a full state would return at once
        state = MicroState.empty(2**20, self.device)
        calls = itertools.count()
        fused = []
        for _ in self._sets(set_bytes):
            weights = StopWeights(*(self._random(*size).mul_(size[-1] ** -0.5) for size in sizes))

            def decide(impl: str, weights: StopWeights = weights) -> Tensor:
                index = next(calls)
                stop_head(x, token, weights, state, confidence=confidence, impl=impl)  # type: ignore[arg-type]
                return state.continue_probs[index : index + 1]

            fused.append(decide)
        return self._case("stop_head", 1, self.dtype, set_bytes, fused, None)

    def _merge(self) -> Case:
        shape, hidden, width = self.shape, self.shape.hidden, self.shape.hidden // 2
        table = self._random(64, hidden)
        ids = torch.tensor([1, 2, 3, 4], device=self.device)
        count = torch.tensor([3], dtype=torch.int32, device=self.device)
        matrices = ((4, width), (hidden, hidden), (2 * hidden, hidden + width), (hidden, hidden))
        set_bytes = (5 * hidden * hidden) * self.dtype.itemsize
        fused = []
        for _ in self._sets(set_bytes):
            weights = MergeWeights(*self._matrices_and_biases(*matrices))
            fused.append(_impl(merge_tokens, ids, count, table, weights, num_heads=shape.merge_heads))
        return self._case("merge_tokens", 1, self.dtype, set_bytes, fused, None)

    def _matrices_and_biases(
        self, positions: tuple[int, int], *matrices: tuple[int, int]
    ) -> Iterator[Tensor]:
        yield self._random(*positions)
        for outputs, inputs in matrices:
            yield self._random(outputs, inputs).mul_(inputs**-0.5)
            yield self._random(outputs)


def _impl(op: Callable[..., Tensor], *args: object, **kwargs: object) -> Callable[[str], Tensor]:
    return lambda impl: op(*args, impl=impl, **kwargs)


def _call(function: Callable[..., object], *args: object, **kwargs: object) -> Call:
    call = lambda: function(*args, **kwargs)  # noqa: E731 - torch.compile needs the parts stored with it
    call.parts = (function, args, kwargs)  # type: ignore[attr-defined]
    return call
