"""What memory bandwidth allows: bytes per token of each method, and the speeds and break-even points that follow.

Decoding one sequence reads every weight once per forward and does next to nothing with it, so the time of a
step is at least its bytes over the bandwidth. All speed-ups here are ratios of bytes per token at equal
bandwidth; compute, launch gaps (unless ``gap_s`` is given) and caches are left out, which makes them
ceilings, not forecasts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property

from hambench.models.sizes import ModelShape

MICRO_LAYERS = 4
MAX_GROUP = 4
"""Most tokens of a HAMburger macro-step."""
_MAX_DRAFT = 32
_KERNELS_PER_LAYER = 5
_KERNELS_PER_HEAD = 3
_KERNELS_PER_MERGE = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteModel:
    """Bytes that each part of a forward reads, for one model and element size.

    Args:
        shape: The model.
        dtype_bytes: Bytes of a weight and of a cached element.
        scale_bytes: Bytes of a scale of the int8 copy, one per output channel.
        int8_head: Whether the LM head is kept as int8, for every method.
    """

    shape: ModelShape
    dtype_bytes: int = 2
    scale_bytes: int = 2
    int8_head: bool = False

    @cached_property
    def body(self) -> int:
        """All layers and the final norm."""
        return self.shape.body_params * self.dtype_bytes

    @cached_property
    def head(self) -> int:
        """The LM head, read once per token that is chosen."""
        return self._int8_head if self.int8_head else self.shape.head_params * self.dtype_bytes

    @property
    def step(self) -> int:
        """One vanilla step."""
        return self.body + self.head

    @cached_property
    def int8_draft(self) -> int:
        """One forward of the int8 copy: weights and scales, norms as they are."""
        shape = self.shape
        norms = (2 * shape.num_layers + 1) * shape.hidden_size
        scales = shape.num_layers * shape.layer_rows * self.scale_bytes
        return shape.body_params - norms + norms * self.dtype_bytes + scales + self._int8_head

    @cached_property
    def micro(self) -> int:
        """One forward of the micro-step decoder, without its head."""
        return MICRO_LAYERS * self.shape.layer_params * self.dtype_bytes

    @cached_property
    def stop(self) -> int:
        """The stop head: three linear layers, hidden to hidden to hidden to 1."""
        d = self.shape.hidden_size
        return (2 * d * d + 3 * d + 1) * self.dtype_bytes

    @cached_property
    def merge(self) -> int:
        """The compositional embedder: four projections (keys and values see 1.5 hidden sizes) and its positions."""
        d = self.shape.hidden_size
        return (5 * d * d + 4 * d + MAX_GROUP * (d // 2)) * self.dtype_bytes

    @property
    def hamburger_extra(self) -> int:
        """Weights that HAMburger adds to the target's."""
        return self.micro + self.stop + self.merge

    @cached_property
    def kv_per_slot(self) -> int:
        """One cached key/value entry over all layers."""
        return 2 * self.shape.num_layers * self.shape.num_kv_heads * self.shape.head_dim * self.dtype_bytes

    @property
    def _int8_head(self) -> int:
        return self.shape.head_params + self.shape.vocab_size * self.scale_bytes

    # bytes per token

    def vanilla_bytes(self, *, context: int = 0) -> float:
        """Bytes per token of vanilla decoding with so many cached positions."""
        return self.step + context * self.kv_per_slot

    def hamburger_bytes(self, m: float, *, context: int = 0) -> float:
        """Bytes per token of HAMburger at ``m`` tokens per macro-step.

        The base model and the merge run once a macro-step, LM head and stop head once a token, the micro-step
        decoder once per token after the first. The cost is affine in the group's size, so only its mean
        matters.

        Args:
            m: Mean tokens per macro-step.
            context: Cached slots.
        """
        _at_least("m", m, 1)
        once = self.body + self.merge + context * self.kv_per_slot
        return (once + m * (self.head + self.stop) + (m - 1) * self.micro) / m

    def hamburger_bytes_without_exit(self, m: float) -> float:
        """Bytes per token if all four micro-steps always run and ``m`` of their tokens are kept."""
        return self.hamburger_bytes(MAX_GROUP) * MAX_GROUP / m

    def speculative_bytes(
        self,
        k: int,
        acceptance: float,
        *,
        context: int = 0,
        draft: float | None = None,
        verify_cost: float = 1.0,
        extra_draft_forward: bool = False,
    ) -> float:
        """Bytes per token of verifying ``k`` drafted tokens in one forward.

        Args:
            k: Drafted tokens per round.
            acceptance: Probability that a drafted token is kept, the same and independent for each.
            context: Cached positions, read by target and draft alike.
            draft: Bytes of a draft forward without its cache: the int8 copy's by default, 0 for prompt
                lookup.
            verify_cost: Time of a forward over k + 1 rows, relative to one row; 1 where bandwidth is the
                limit.
            extra_draft_forward: One more draft forward when everything is accepted, as gpt-fast does.
        """
        kv = context * self.kv_per_slot
        one_draft = self.int8_draft + kv if draft is None else draft
        drafts = k + (acceptance**k if extra_draft_forward else 0.0)
        return (drafts * one_draft + verify_cost * (self.step + kv)) / expected_tokens(k, acceptance)

    # speed-ups and break-even points

    def hamburger_speedup(self, m: float, *, context: int = 0) -> float:
        """S(m): ceiling of HAMburger's speed-up over vanilla."""
        return self.vanilla_bytes(context=context) / self.hamburger_bytes(m, context=context)

    def speculative_speedup(
        self,
        k: int,
        acceptance: float,
        *,
        context: int = 0,
        verify_cost: float = 1.0,
        extra_draft_forward: bool = False,
    ) -> float:
        """S(k, a): ceiling of the speed-up of int8 speculation over vanilla."""
        spent = self.speculative_bytes(
            k, acceptance, context=context, verify_cost=verify_cost, extra_draft_forward=extra_draft_forward
        )
        return self.vanilla_bytes(context=context) / spent

    @property
    def hamburger_break_even(self) -> float:
        """Tokens per macro-step from which HAMburger pays."""
        per_token = self.head + self.stop + self.micro
        return (self.body + self.merge - self.micro) / (self.step - per_token)

    @property
    def hamburger_asymptote(self) -> float:
        """Speed-up that no group size can pass."""
        return self.step / (self.head + self.stop + self.micro)

    def speculative_break_even(self, k: int) -> float | None:
        """Acceptance from which k drafted tokens pay; ``None`` if even perfect drafts don't."""
        return _solve(lambda a: self.speculative_speedup(k, a) - 1)

    def best_draft_length(self, acceptance: float) -> tuple[int, float]:
        """The k that is fastest at an acceptance, and its speed-up."""
        speeds = {k: self.speculative_speedup(k, acceptance) for k in range(1, _MAX_DRAFT + 1)}
        best = max(speeds, key=lambda k: speeds[k])
        return best, speeds[best]

    def equivalent_acceptance(self, m: float) -> tuple[float, int] | None:
        """Acceptance at which int8 speculation with its best k equals HAMburger at ``m``, and that k.

        ``None`` where speculation can't be that fast.
        """
        wanted = self.hamburger_speedup(m)
        acceptance = _solve(lambda a: self.best_draft_length(a)[1] - wanted, upper=0.9999)
        return None if acceptance is None else (acceptance, self.best_draft_length(acceptance)[0])

    # seconds

    def step_seconds(
        self, step_bytes: float, bandwidth: float, *, forwards: int = 1, micro_forwards: float = 0.0,
        heads: float | None = None, merges: int = 0, gap_s: float = 0.0,
    ) -> float:  # fmt: skip
        """Least time of a step: its bytes over the bandwidth, plus a gap for each kernel launched.

        Args:
            step_bytes: Bytes read.
            bandwidth: Bytes per second.
            forwards: Passes through all layers.
            micro_forwards: Passes of the micro-step decoder.
            heads: Uses of an LM head; by default one per pass through all layers.
            merges: Uses of the compositional embedder.
            gap_s: Seconds lost between kernels: 1.3 µs were reported for CUDA graphs on Hopper.
        """
        layers = forwards * self.shape.num_layers + micro_forwards * MICRO_LAYERS
        num_heads = forwards if heads is None else heads
        kernels = _KERNELS_PER_LAYER * layers + _KERNELS_PER_HEAD * num_heads + _KERNELS_PER_MERGE * merges
        return step_bytes / bandwidth + kernels * gap_s

    def vanilla_tps(self, bandwidth: float, *, context: int = 0, gap_s: float = 0.0) -> float:
        """Most tokens per second of vanilla decoding."""
        return 1 / self.step_seconds(self.vanilla_bytes(context=context), bandwidth, gap_s=gap_s)

    def int8_tps(self, bandwidth: float, *, context: int = 0, gap_s: float = 0.0) -> float:
        """Most tokens per second of the int8 copy on its own (not lossless)."""
        return 1 / self.step_seconds(self.int8_draft + context * self.kv_per_slot, bandwidth, gap_s=gap_s)

    def hamburger_tps(self, m: float, bandwidth: float, *, context: int = 0, gap_s: float = 0.0) -> float:
        """Most tokens per second of HAMburger at ``m`` tokens per macro-step."""
        spent = m * self.hamburger_bytes(m, context=context)
        seconds = self.step_seconds(spent, bandwidth, micro_forwards=m - 1, heads=m, merges=1, gap_s=gap_s)
        return m / seconds

    def speculative_tps(
        self, k: int, acceptance: float, bandwidth: float, *, context: int = 0, gap_s: float = 0.0
    ) -> float:
        """Most tokens per second of int8 speculation."""
        expected = expected_tokens(k, acceptance)
        spent = expected * self.speculative_bytes(k, acceptance, context=context)
        return expected / self.step_seconds(spent, bandwidth, forwards=k + 1, gap_s=gap_s)

    def flops_per_token(self, *, context: int = 0) -> float:
        """Floating-point operations of a vanilla token: two per weight, four per cached element and query head."""
        attention = 4 * self.shape.num_layers * self.shape.num_heads * self.shape.head_dim * context
        return 2.0 * (self.shape.body_params + self.shape.head_params) + attention


def expected_tokens(k: int, acceptance: float) -> float:
    """E(k, a): tokens per round, the accepted and the bonus token, for independent acceptance."""
    _at_least("k", k, 0)
    if not 0 <= acceptance <= 1:
        raise ValueError(f"acceptance must be in [0, 1], got {acceptance}")
    return float(sum(acceptance**i for i in range(k + 1)))


def _solve(function: Callable[[float], float], *, upper: float = 1.0) -> float | None:
    # imported when asked: readers of a run need the byte counts only
    from scipy.optimize import brentq

    if function(upper) < 0:
        return None
    if function(0.0) > 0:
        return 0.0
    return float(brentq(function, 0.0, upper, xtol=1e-6))


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"{name} must be >= {least}, got {value}")
