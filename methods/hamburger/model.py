"""HamburgerModel: the weights as decoding runs them, one sequence at a time, on the engine's own layers.

Letters in shapes: n tokens of a macro-step, F feature vectors, D hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from hambench.decoding import Request
from hambench.engine.kvcache import KVCache
from hambench.engine.language_model import LanguageModel
from hambench.engine.linear import Linear, make_linear
from hambench.engine.llama import DecoderStack
from hambench.engine.requests.rows import Rows
from hambench.errors import ModelError
from hambench.kernels.results import MergeWeights, StopWeights
from hambench.methods.hamburger.architecture import MergeResidual
from hambench.methods.hamburger.checkpoint import Checkpoint


class HamburgerModel:
    """A base model with its grafts.

    Args:
        base: The base that HAMburger uses, either the target's own or one with the checkpoint's changes.
        checkpoint: The grafts.
        fused_base: The base for merged slots, if it is not ``base``.

    Raises:
        ModelError: If a tensor is missing or has another size.
    """

    def __init__(
        self, base: LanguageModel, checkpoint: Checkpoint, *, fused_base: LanguageModel | None = None
    ) -> None:
        self.base, self.architecture = base, checkpoint.architecture
        self._fused_base = fused_base or base
        if self.architecture.feature_layers[-1] >= base.shape.num_layers:
            raise ModelError(
                f"feature_layers {self.architecture.feature_layers} reach past the base: {base.shape.num_layers} layers"
            )
        try:
            self._merger = _Merger(checkpoint, base)
            self._stop = _linears(checkpoint.group("stop_head.layers"), base)
            self.micro = DecoderStack(
                base.shape,
                [checkpoint.group(f"micro.layers.{i}") for i in range(self.architecture.num_micro_layers)],
                dtype=base.dtype,
                device=base.device,
            )
            norm = checkpoint.tensors["micro.norm.weight"] if self.architecture.micro_norm else None
        except (KeyError, RuntimeError) as error:
            raise ModelError(
                f"the HAMburger checkpoint lacks a tensor or has one of another size: {error}"
            ) from error
        self.micro_norm = None if norm is None else norm.to(base.device, base.dtype)
        """Weight ``[D]`` of the norm that precedes the heads in the micro path, or ``None``."""
        # token 1 comes from the last feature, which the base's own head reads if it is the last layer's
        self.first_from_base = self.architecture.feature_layers[-1] == base.shape.num_layers - 1

    @property
    def graft_bytes(self) -> int:
        """Bytes of the grafted weights."""
        norm = 0 if self.micro_norm is None else self.micro_norm.nbytes
        stop = sum(linear.weight_bytes for linear in self._stop)
        return self.micro.weight_bytes + self._merger.weight_bytes + stop + norm

    def base_for(self, num_tokens: int) -> LanguageModel:
        """Returns the base that processes a slot of ``num_tokens``."""
        return self._fused_base if num_tokens > 1 else self.base

    def merge(self, tokens: Sequence[int]) -> Tensor:
        """Merges a macro-step's tokens into one input vector ``[1, D]``."""
        embeddings = self.base.embed(torch.tensor(tokens, device=self.base.device))
        return embeddings if len(tokens) == 1 else self._merger(embeddings)

    def new_micro_cache(self) -> KVCache:
        """Returns a temporary cache for the micro-steps of one macro-step."""
        return self.micro.new_cache(self.architecture.num_features + self.architecture.max_micro_steps - 1)

    def micro_step(self, rows: Tensor, cache: KVCache) -> Tensor:
        """Runs ``rows`` ``[T, D]`` (features and tokens, or one token); returns the heads' hidden state ``[1, D]``."""
        stream, _ = self.micro.forward(rows, cache)
        return self._normed(stream[-1:])

    def micro_steps(self, sequences: Sequence[Rows]) -> Tensor:
        """Runs :meth:`micro_step` for N sequences in one forward; returns ``[N, D]``."""
        stream, _ = self.micro.forward_together(torch.cat([rows.inputs for rows in sequences]), sequences)
        ends = itertools.accumulate(len(rows.inputs) for rows in sequences)
        return self._normed(stream[[end - 1 for end in ends]])

    def _normed(self, hidden: Tensor) -> Tensor:
        if self.micro_norm is not None:
            hidden = F.rms_norm(hidden, self.micro_norm.shape, self.micro_norm, self.base.shape.rms_norm_eps)
        return hidden

    def kernel_weights(self) -> KernelWeights:
        """Returns merger and stop head in the form that the fused kernels take."""
        stop: list[Tensor] = []
        for linear in self._stop:
            assert linear.bias is not None
            stop += [linear.weight, linear.bias]
        return KernelWeights(
            merge=self._merger.kernel_weights(),
            merge_heads=self._merger.heads,
            merge_residual=self._merger.residual,
            stop=StopWeights(*stop),
        )

    def continue_probability(self, hidden: Tensor) -> float:
        """Returns P(continue) after the token that came from ``hidden`` ``[1, D]``."""
        for linear in self._stop[:-1]:
            hidden = F.silu(linear(hidden))
        logit = float(self._stop[-1](hidden))
        return 1.0 / (1.0 + math.exp(logit)) if logit < 700 else 0.0


class MicroStep(Request):
    """A micro-step of one sequence; answered by the heads' hidden state ``[1, D]`` and the logits ``[1, V]``.

    Args:
        model: The model.
        rows: ``[T, D]``, features and tokens, or one token.
        cache: Of the sequence's micro-steps; grows by T slots.
    """

    __slots__ = ("cache", "model", "rows")

    def __init__(self, model: HamburgerModel, rows: Tensor, cache: KVCache) -> None:
        self.model, self.rows, self.cache = model, rows, cache

    @property
    def together(self) -> Hashable | None:
        """See :class:`hambench.decoding.Request`.

        Next to another engine's base, micro-steps on torch stay alone: its bits depend on the rows of a product.
        """
        return id(self.model) if self.model.base.reference is self.model.base else None

    @property
    def cost(self) -> int:
        """See :class:`hambench.decoding.Request`."""
        return self.model.micro.weight_bytes

    @property
    def first_used(self) -> frozenset[Hashable]:
        """See :class:`hambench.decoding.Request`."""
        return frozenset({id(self.model)})

    def answer(self) -> tuple[Tensor, Tensor]:
        """Runs the rows, then the base's head."""
        hidden = self.model.micro_step(self.rows, self.cache)
        return hidden, self.model.base.lm_head(hidden)

    @classmethod
    def answer_together(cls, requests: Sequence[Self]) -> list[tuple[Tensor, Tensor]]:
        """Runs the rows of all, then the base's head for all."""
        model = requests[0].model
        hidden = model.micro_steps([Rows(each.rows, each.cache) for each in requests])
        logits = model.base.lm_head(hidden)
        return [(hidden[i : i + 1], logits[i : i + 1]) for i in range(len(requests))]


@dataclasses.dataclass(frozen=True)
class KernelWeights:
    """Weights of the grafts in the form that the ops of :mod:`hambench.kernels` take."""

    merge: MergeWeights
    merge_heads: int
    merge_residual: MergeResidual
    stop: StopWeights


class _Merger:
    """The compositional embedder for one macro-step; precomputes the positions' part of keys and values."""

    def __init__(self, checkpoint: Checkpoint, base: LanguageModel) -> None:
        weights = {n: t.to(base.device, base.dtype) for n, t in checkpoint.group("embedder").items()}
        hidden = base.shape.hidden_size
        self.heads, self.residual = (
            checkpoint.architecture.merge_heads,
            checkpoint.architecture.merge_residual,
        )
        keyed = torch.cat([weights["k_proj.weight"], weights["v_proj.weight"]])
        bias = torch.cat([weights["k_proj.bias"], weights["v_proj.bias"]])
        self._query = make_linear(weights["q_proj.weight"], weights["q_proj.bias"])
        self._keyed = make_linear(keyed[:, :hidden])
        self._out = make_linear(weights["out_proj.weight"], weights["out_proj.bias"])
        self._whole_keyed, self._bias, self._positions = keyed, bias, weights["pos"]
        self._of_position = F.linear(weights["pos"], keyed[:, hidden:], bias)

    @property
    def weight_bytes(self) -> int:
        linears = (self._query, self._keyed, self._out)
        return sum(linear.weight_bytes for linear in linears) + self._of_position.nbytes

    def kernel_weights(self) -> MergeWeights:
        query, out = self._query, self._out
        assert query.bias is not None
        assert out.bias is not None
        return MergeWeights(
            positions=self._positions,
            wq=query.weight,
            bq=query.bias,
            wkv=self._whole_keyed,
            bkv=self._bias,
            wo=out.weight,
            bo=out.bias,
        )

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Merges ``[n, D]`` into ``[1, D]``."""
        num, hidden = embeddings.shape
        mean = embeddings.mean(dim=0, keepdim=True)
        query = self._query(mean).view(self.heads, 1, -1)
        keyed = (self._keyed(embeddings) + self._of_position[:num]).view(num, 2, self.heads, -1)
        keys, values = keyed[:, 0].permute(1, 2, 0), keyed[:, 1].transpose(0, 1)
        scores = torch.softmax(query @ keys / math.sqrt(hidden // self.heads), dim=-1)
        residual = mean if self.residual == "mean" else embeddings[-1:]
        return self._out.add_to(residual, (scores @ values).reshape(1, hidden))


def _linears(weights: Mapping[str, Tensor], base: LanguageModel) -> list[Linear]:
    count = sum(name.endswith(".weight") for name in weights)
    return [
        make_linear(*(weights[f"{i}.{part}"].to(base.device, base.dtype) for part in ("weight", "bias")))
        for i in range(count)
    ]
