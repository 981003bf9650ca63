"""A Llama on the fused kernels, its short forwards replayed from CUDA graphs.

Decoding on a GPU is bound by two things: reading weights, and launching kernels. The fused kernels read each weight
once with little between them; a graph replays a whole forward with one launch. Both serve every method alike, because
a method sees the same calls as on :class:`hambench.llama.Llama`: vanilla's one row, a draft's one or two, a
verification's k + 1, HAMburger's macro-step with its features. Longer forwards (prefill) run as they do there.

Checked on a CPU with the kernels' references, and with the kernels themselves under Triton's interpreter. No part of
this has run on a GPU yet: docs/results/README.md keeps the list.
"""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Callable
from typing import Literal

import torch

from hambench.errors import ModelError
from hambench.kernels.decode_attention import decode_attention
from hambench.kernels.gemv_residual import gemv_residual
from hambench.kernels.norm_gateup_silu import norm_gateup_silu
from hambench.kernels.norm_gemv import norm_gemv
from hambench.kvcache import KVCache
from hambench.linear import GatedLinear, Linear
from hambench.llama import DecoderLayer, ForwardOutput, Llama
from hambench.norm import RMSNorm
from hambench.quantize import Int8Gated, Int8Linear

Impl = Literal["auto", "reference", "fused"]
Run = Callable[[], None]
Capture = Callable[[Run], Run]

MAX_ROWS = 8
"""Rows of the longest forward that the kernels take."""
SMALLEST_CACHE = 256
"""Slots; caches are lent in powers of two from here, so that few sizes need graphs of their own."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """A matrix as the kernels take it."""

    matrix: torch.Tensor
    """``[out, in]``, dense or int8."""
    scale: torch.Tensor | None
    """Float32 ``[out]`` of an int8 matrix."""
    bias: torch.Tensor | None = None

    @classmethod
    def of(cls, linear: Linear | GatedLinear) -> Weight:
        """Takes the weight out of a layer, without a copy where it is stored dense or as int8."""
        if isinstance(linear, Int8Gated):
            linear = linear._both
        if isinstance(linear, Int8Linear):
            return cls(linear.codes, linear.scales.float(), linear.bias)
        return cls(linear.weight, None, getattr(linear, "bias", None))

    def halves(self) -> tuple[Weight, Weight]:
        """Gate and up of a stacked matrix."""
        first, second = self.matrix.chunk(2)
        scales = (None, None) if self.scale is None else self.scale.chunk(2)
        return Weight(first, scales[0]), Weight(second, scales[1])


class FusedLayer:
    """The weights of one decoder layer in the kernels' form."""

    def __init__(self, layer: DecoderLayer) -> None:
        if layer.q_norm is not None:
            raise ModelError("the fused kernels have no query and key norms (Qwen3): use --kernels reference")
        self.qkv, self.out, self.down = Weight.of(layer.qkv), Weight.of(layer.out), Weight.of(layer.down)
        if self.out.bias is not None or self.down.bias is not None:
            raise ModelError("the fused kernels have no output or MLP biases: use --kernels reference")
        self.gate, self.up = Weight.of(layer.gate_up).halves()
        self.input_norm, self.mlp_norm = layer.input_norm, layer.mlp_norm


@dataclasses.dataclass
class Forward:
    """One forward over buffers that stay where they are: what a graph needs."""

    inputs: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    logits: torch.Tensor
    hidden: torch.Tensor
    features: torch.Tensor
    replay: Run

    def __call__(self, inputs: torch.Tensor, positions: torch.Tensor | None, slots: int) -> ForwardOutput:
        """Runs it on other inputs; what it returns is the caller's own."""
        self.inputs.copy_(inputs)
        self.slots.fill_(slots)
        if positions is None:
            torch.arange(slots, slots + self.positions.shape[0], out=self.positions)
        else:
            self.positions.copy_(positions)
        self.replay()
        # .float() copies half-precision logits; float32 ones are copied for the same reason
        logits = self.logits.to(torch.float32, copy=True)
        return ForwardOutput(logits=logits, hidden=self.hidden.clone(), features=self.features.clone())


class FusedLlama(Llama):
    """A Llama with the same calls and weights, whose forwards of up to 8 rows run the kernels.

    Args:
        llama: The model; its weights are shared, not copied (on a CPU, where they are packed, they are unpacked).
        impl: Which kernels; ``reference`` is slow and for comparison.
        capture: Turns a forward over fixed buffers into its replay; ``None`` runs each forward as it comes.

    Raises:
        ModelError: If the kernels don't do what the architecture needs.
    """

    def __init__(self, llama: Llama, *, impl: Impl = "auto", capture: Capture | None = None) -> None:
        head_dim = llama.shape.head_dim
        if impl == "fused" and head_dim & (head_dim - 1):
            raise ModelError(
                f"the fused kernels need a head size that is a power of two, got {head_dim}: use --kernels reference"
            )
        self.__dict__.update(llama.__dict__)
        self._impl, self._capture = impl, capture
        self._adopt()

    def _adopt(self) -> None:
        """Derives what depends on the weights, anew after a copy with other weights (an INT8 draft)."""
        self._owner = id(self)
        self._layers = [FusedLayer(layer) for layer in self.stack.layers]
        self._head = Weight.of(self.head)
        self._forwards: dict[tuple[object, ...], Forward] = {}
        self._free: dict[int, list[KVCache]] = {}
        places = torch.arange(self.shape.max_positions, device=self.device, dtype=torch.float32)
        angles = places[:, None] * self.stack._frequencies.to(torch.float32)
        # as the plain forward has them: rounded to the model's type
        self._cos, self._sin = (
            turn.to(self.dtype).float().contiguous() for turn in (angles.cos(), angles.sin())
        )

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache of at least ``capacity`` slots.

        Graphs know a cache by its storage, so storage goes back to a pool when its cache is no longer used.
        """
        size = max(SMALLEST_CACHE, 1 << (capacity - 1).bit_length())
        if self._capture is None or capacity < 1:
            return super().new_cache(capacity)
        self._check_owner()
        free = self._free.setdefault(size, [])
        whole = free.pop() if free else super().new_cache(size)
        lent = copy.copy(whole)
        weakref.finalize(lent, free.append, whole)
        return lent

    @torch.inference_mode()
    def forward(
        self,
        inputs: torch.Tensor,
        cache: KVCache,
        *,
        positions: torch.Tensor | None = None,
        num_logits: int | None = 1,
        feature_layers: tuple[int, ...] = (),
    ) -> ForwardOutput:
        """See :meth:`hambench.llama.Llama.forward`."""
        num_rows = inputs.shape[0]
        if num_rows > MAX_ROWS:
            return super().forward(
                inputs, cache, positions=positions, num_logits=num_logits, feature_layers=feature_layers
            )
        self._check_owner()
        cache.require(num_rows)
        wanted = num_rows if num_logits is None else min(num_logits, num_rows)
        key = (num_rows, inputs.ndim, wanted, feature_layers, cache.keys.data_ptr(), cache.capacity)
        made = self._forwards.get(key) if self._capture is not None else None
        if made is None:
            made = self._make(inputs, cache, wanted, feature_layers)
            if self._capture is not None:
                self._forwards[key] = made
        out = made(inputs, positions, cache.slots)
        cache.advance(num_rows)
        return out

    def _check_owner(self) -> None:
        if self._owner != id(self):
            self._adopt()

    def _make(
        self, inputs: torch.Tensor, cache: KVCache, wanted: int, feature_layers: tuple[int, ...]
    ) -> Forward:
        """Buffers of one kind of forward over one cache, and the (captured) run over them."""
        num_rows, device = inputs.shape[0], self.device
        ids = inputs.ndim == 1
        shape = self.shape
        made = Forward(
            inputs=inputs.clone() if ids else inputs.to(self.dtype, copy=True),
            positions=torch.zeros(num_rows, dtype=torch.int64, device=device),
            slots=torch.full((1,), cache.slots, dtype=torch.int32, device=device),
            logits=torch.empty(wanted, shape.vocab_size, dtype=self.dtype, device=device),
            hidden=torch.empty(num_rows, shape.hidden_size, dtype=self.dtype, device=device),
            features=torch.empty(
                len(feature_layers), num_rows, shape.hidden_size, dtype=self.dtype, device=device
            ),
            replay=lambda: None,
        )
        tickets = torch.zeros(shape.num_kv_heads, dtype=torch.int32, device=device)
        keys, values = cache.keys, cache.values

        def run() -> None:
            stream = self._run_layers(made, keys, values, tickets, feature_layers)
            made.hidden.copy_(self.norm(stream))
            if shape.num_layers - 1 in feature_layers:
                made.features[feature_layers.index(shape.num_layers - 1)] = made.hidden
            if wanted:
                self._project(stream[num_rows - wanted :], self._head, self.norm, out=made.logits)

        made.replay = run if self._capture is None else self._capture(run)
        return made

    def _run_layers(
        self,
        made: Forward,
        keys: torch.Tensor,
        values: torch.Tensor,
        tickets: torch.Tensor,
        feature_layers: tuple[int, ...],
    ) -> torch.Tensor:
        stream = made.inputs if made.inputs.ndim == 2 else torch.empty_like(made.hidden)
        for index, layer in enumerate(self._layers):
            if index == 0 and made.inputs.ndim == 1:
                qkv = norm_gemv(
                    self.embedding,
                    layer.qkv.matrix,
                    norm_weight=layer.input_norm.weight,
                    eps=layer.input_norm.eps,
                    scale=layer.qkv.scale,
                    bias=layer.qkv.bias,
                    ids=made.inputs,
                    gathered=stream,
                    impl=self._impl,
                )
            else:
                qkv = self._project(stream, layer.qkv, layer.input_norm)
            heads = decode_attention(
                qkv,
                keys[index],
                values[index],
                slots=made.slots,
                positions=made.positions,
                cos=self._cos,
                sin=self._sin,
                num_heads=self.shape.num_heads,
                tickets=tickets,
                impl=self._impl,
            )
            stream = gemv_residual(heads, layer.out.matrix, stream, scale=layer.out.scale, impl=self._impl)
            inner = norm_gateup_silu(
                stream,
                layer.gate.matrix,
                layer.up.matrix,
                norm_weight=layer.mlp_norm.weight,
                eps=layer.mlp_norm.eps,
                gate_scale=layer.gate.scale,
                up_scale=layer.up.scale,
                impl=self._impl,
            )
            stream = gemv_residual(inner, layer.down.matrix, stream, scale=layer.down.scale, impl=self._impl)
            if index in feature_layers:
                made.features[feature_layers.index(index)] = stream
        return stream

    def _project(
        self, stream: torch.Tensor, weight: Weight, norm: RMSNorm, *, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        return norm_gemv(
            stream,
            weight.matrix,
            norm_weight=norm.weight,
            eps=norm.eps,
            scale=weight.scale,
            bias=weight.bias,
            out=out,
            impl=self._impl,
        )


def capture_cuda_graph(run: Run) -> Run:
    """Captures a forward; before that it runs twice beside the current stream, which compiles its kernels.

    Running a forward again writes the same keys and values to the same slots, so those runs leave no trace.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay: Run = graph.replay
    return replay


def accelerate(llama: Llama, *, regime: str, kernels: str) -> Llama:
    """The model for a cell's regime (``eager``, ``graph``) and kernels (``fused``, ``reference``).

    ``reference`` means torch's own operations: in ``eager`` that is the model as it is.

    Raises:
        ModelError: If the combination is not to be had on this device or for this model.
    """
    if regime == "eager" and kernels == "reference":
        return llama
    if llama.device.type != "cuda":
        raise ModelError(
            f"regime {regime!r} with {kernels} kernels needs a CUDA device, the model is on {llama.device}: "
            "use --regime eager --kernels reference"
        )
    if kernels == "reference":
        raise ModelError("regime 'graph' runs on the fused kernels: use --kernels fused")
    return FusedLlama(llama, impl="fused", capture=capture_cuda_graph if regime == "graph" else None)
