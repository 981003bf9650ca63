"""Named model shapes, and one call per op at a shape's sizes, to compile ahead of time and to benchmark."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hambench.kernels.decode_attention import decode_attention
from hambench.kernels.gemv_residual import gemv_residual
from hambench.kernels.lm_head_argmax import lm_head_argmax
from hambench.kernels.merge_tokens import merge_tokens
from hambench.kernels.micro_attention import micro_attention
from hambench.kernels.norm_gateup_silu import norm_gateup_silu
from hambench.kernels.norm_gemv import norm_gemv
from hambench.kernels.results import HeadOutput, MergeWeights, MicroState, StopWeights
from hambench.kernels.stop_head import stop_head
from hambench.kernels.verify_accept import verify_accept


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelShape:
    """Sizes of a model that determine its kernels."""

    name: str
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    num_layers: int
    merge_heads: int = 64
    capacity: int = 4096
    """KV slots reserved."""

    @property
    def qkv(self) -> int:
        """Rows of the query, key and value projections together."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim


SHAPES = {
    shape.name: shape
    for shape in (
        KernelShape(
            name="llama-3.2-1b",
            hidden=2048,
            intermediate=8192,
            heads=32,
            kv_heads=8,
            head_dim=64,
            vocabulary=128256,
            num_layers=16,
        ),
        KernelShape(
            name="smollm2-135m",
            hidden=576,
            intermediate=1536,
            heads=9,
            kv_heads=3,
            head_dim=64,
            vocabulary=49152,
            num_layers=30,
        ),
    )
}

TOY = KernelShape(
    name="toy",
    hidden=32,
    intermediate=48,
    heads=4,
    kv_heads=2,
    head_dim=8,
    vocabulary=97,
    num_layers=4,
    merge_heads=4,
    capacity=512,
)
"""For walking through a benchmark where there is no GPU."""

EPS = 1e-5


def op_calls(
    shape: KernelShape, *, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yields every op as decoding calls it.

    The calls have one row, or verify 5 or 8; weights are dense or INT8; flags are given or not.
    """

    def new(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.zeros(size, dtype=of, device=device)

    done = new(1, of=torch.int32)
    norm = new(shape.hidden)
    for rows in (1, 5, 8):
        x, inner = new(rows, shape.hidden), new(rows, shape.intermediate)
        mixed = new(rows, shape.heads * shape.head_dim)
        for kind in (dtype, torch.int8) if rows < 8 else (dtype,):
            label = f"{rows} rows, {str(kind).removeprefix('torch.')}"

            def scale(size: int, kind: torch.dtype = kind) -> Tensor | None:
                return new(size, of=torch.float32) if kind == torch.int8 else None

            qkv = new(shape.qkv, shape.hidden, of=kind)
            gate = new(shape.intermediate, shape.hidden, of=kind)
            output = new(shape.hidden, shape.heads * shape.head_dim, of=kind)
            down = new(shape.hidden, shape.intermediate, of=kind)
            head = new(shape.vocabulary, shape.hidden, of=kind)
            yield (
                f"norm_gemv, {label}",
                _bind(norm_gemv, x, qkv, norm_weight=norm, eps=EPS, scale=scale(shape.qkv), impl="fused"),
            )
            yield (
                f"norm_gateup_silu, {label}",
                _bind(
                    norm_gateup_silu,
                    x,
                    gate,
                    gate,
                    norm_weight=norm,
                    eps=EPS,
                    gate_scale=scale(shape.intermediate),
                    up_scale=scale(shape.intermediate),
                    impl="fused",
                ),
            )
            yield (
                f"gemv_residual (output), {label}",
                _bind(gemv_residual, mixed, output, x, scale=scale(shape.hidden), impl="fused"),
            )
            yield (
                f"gemv_residual (down), {label}",
                _bind(gemv_residual, inner, down, x, scale=scale(shape.hidden), impl="fused"),
            )
            yield (
                f"lm_head_argmax, {label}",
                _bind(
                    lm_head_argmax,
                    x,
                    head,
                    scale=scale(shape.vocabulary),
                    log_sum_exp=kind == dtype,
                    impl="fused",
                ),
            )
    yield from _attention_calls(shape, new, done)
    yield from _macro_step_calls(shape, new, done)


def _attention_calls(
    shape: KernelShape, new: Callable[..., Tensor], done: Tensor
) -> Iterator[tuple[str, Callable[[], object]]]:
    half = shape.head_dim // 2
    rope = {
        "cos": new(shape.capacity, half, of=torch.float32),
        "sin": new(shape.capacity, half, of=torch.float32),
    }
    cache = new(shape.kv_heads, shape.capacity, shape.head_dim)
    for rows in (1, 5, 8):
        yield (
            f"decode_attention, {rows} rows",
            _bind(
                decode_attention,
                new(rows, shape.qkv),
                cache,
                cache,
                slots=new(1, of=torch.int32),
                positions=new(rows, of=torch.int64),
                num_heads=shape.heads,
                impl="fused",
                **rope,
            ),
        )
    small = new(shape.kv_heads, 8, shape.head_dim)
    for rows in (1, 5):
        yield (
            f"micro_attention, {rows} rows",
            _bind(
                micro_attention,
                new(rows, shape.qkv),
                small,
                small,
                length=done,
                num_heads=shape.heads,
                out=new(rows, shape.heads * shape.head_dim),
                done=done,
                impl="fused",
                **rope,
            ),
        )


def _macro_step_calls(
    shape: KernelShape, new: Callable[..., Tensor], done: Tensor
) -> Iterator[tuple[str, Callable[[], object]]]:
    hidden, norm, x = shape.hidden, new(shape.hidden), new(1, shape.hidden)
    table, token = new(shape.vocabulary, hidden), new(1, of=torch.int64)
    yield (
        "norm_gemv of a token id, predicated",
        _bind(
            norm_gemv,
            table,
            new(shape.qkv, hidden),
            norm_weight=norm,
            eps=EPS,
            ids=token,
            gathered=new(1, hidden),
            out=new(1, shape.qkv),
            done=done,
            impl="fused",
        ),
    )
    yield (
        "lm_head_argmax, predicated",
        _bind(
            lm_head_argmax,
            x,
            table,
            norm_weight=norm,
            out=HeadOutput(token, new(1, of=torch.float32), None),
            done=done,
            impl="fused",
        ),
    )
    sizes = ((hidden, hidden), (hidden,), (hidden, hidden), (hidden,), (1, hidden), (1,))
    state = MicroState(new(4, of=torch.int64), new(4, of=torch.float32), done, done)
    yield (
        "stop_head",
        _bind(
            stop_head,
            x,
            token,
            StopWeights(*(new(*size) for size in sizes)),
            state,
            confidence=new(1, of=torch.float32),
            impl="fused",
        ),
    )
    yield (
        "stop_head of the last token",
        _bind(stop_head, x, token, None, state, confidence=new(1, of=torch.float32), impl="fused"),
    )
    width = hidden // 2
    merge_sizes = ((4, width), (hidden, hidden), (hidden,), (2 * hidden, hidden + width), (2 * hidden,))
    yield (
        "merge_tokens",
        _bind(
            merge_tokens,
            new(4, of=torch.int64),
            done,
            table,
            MergeWeights(*(new(*size) for size in (*merge_sizes, (hidden, hidden), (hidden,)))),
            num_heads=shape.merge_heads,
            impl="fused",
        ),
    )
    for drafted in (1, 4, 7):
        yield (
            f"verify_accept, {drafted} drafted",
            _bind(
                verify_accept,
                new(drafted, of=torch.int64),
                new(drafted + 1, of=torch.int64),
                slots=done,
                impl="fused",
            ),
        )


def _bind(op: Callable[..., object], *args: object, **kwargs: object) -> Callable[[], object]:
    return lambda: op(*args, **kwargs)
