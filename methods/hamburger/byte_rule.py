"""Bytes that HAMburger reads: per forward of its grafts, per token at m tokens per macro-step, and per counted step.

The base model and the merge run once per macro-step, LM head and stop head once per token, the micro-step decoder once
per token after the first. This module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from hambench.method_facts import Ceiling, MethodCeilings, ModelBytes
from hambench.methods.common.speculation import SpeculationBytes
from hambench.methods.hamburger.architecture import Architecture
from hambench.records import StepRecord

GROUPS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
"""Tokens per macro-step that ``hambench predict`` shows."""


@dataclass(frozen=True)
class HamburgerBytes:
    """Bytes of the grafts on one model.

    Args:
        sizes: Bytes that the parts of the base's forward read.
        num_micro_layers: Layers of the micro-step decoder; the default is the paper's.
        max_micro_steps: Most tokens per macro-step.
    """

    sizes: ModelBytes
    num_micro_layers: int = Architecture.num_micro_layers
    max_micro_steps: int = Architecture.max_micro_steps

    @property
    def micro(self) -> int:
        """Bytes of one forward of the micro-step decoder, without its head."""
        return self.num_micro_layers * self.sizes.layer

    @cached_property
    def stop(self) -> int:
        """Bytes of the stop head: three linear layers, hidden to hidden to hidden to 1."""
        d = self.sizes.hidden_size
        return (2 * d * d + 3 * d + 1) * self.sizes.dtype_bytes

    @cached_property
    def merge(self) -> int:
        """Bytes of the compositional embedder: four projections (keys and values read 1.5 hidden sizes), positions."""
        d = self.sizes.hidden_size
        return (5 * d * d + 4 * d + self.max_micro_steps * (d // 2)) * self.sizes.dtype_bytes

    @property
    def extra(self) -> int:
        """Bytes of the weights that the grafts add to the target's."""
        return self.micro + self.stop + self.merge

    def of_step(self, step: StepRecord, before: StepRecord) -> float | None:
        """Returns the bytes that a counted macro-step read."""
        if step.target_forwards is None or step.micro_forwards is None or step.kv_slots is None:
            return None
        read = step.target_forwards * (self.sizes.body + step.kv_slots * self.sizes.kv_per_slot)
        # a group of one token enters the base model as its plain embedding
        read += self.merge if len(before.tokens) > 1 else 0
        read += (len(step.tokens) + step.discarded) * self.sizes.head
        # neither the last possible token nor the one-token control asks the stop head
        num_stops = len(step.continue_probs) + step.discarded if step.continue_probs else 0
        return read + num_stops * self.stop + step.micro_forwards * self.micro

    def of_verified_step(self, step: StepRecord) -> float | None:
        """Returns the bytes that a counted round of drafting and verification read: the base's head is read once."""
        if step.target_forwards is None or step.micro_forwards is None or step.kv_slots is None:
            return None
        read = step.target_forwards * (self.sizes.step + step.kv_slots * self.sizes.kv_per_slot)
        # the stop head is asked before each drafted token, and once more where it ended the draft
        num_stops = min(step.micro_forwards + 1, self.max_micro_steps - 1)
        return read + step.micro_forwards * (self.micro + self.sizes.head) + num_stops * self.stop

    def per_token(self, m: float, *, context: int = 0) -> float:
        """Returns the bytes per token at ``m`` tokens per macro-step.

        The cost is affine in the group's size, so it depends only on the mean.

        Args:
            m: Mean tokens per macro-step.
            context: Cached slots.
        """
        if not m >= 1:
            raise ValueError(f"m must be >= 1, got {m}")
        once = self.sizes.body + self.merge + context * self.sizes.kv_per_slot
        return (once + m * (self.sizes.head + self.stop) + (m - 1) * self.micro) / m

    def per_token_without_exit(self, m: float) -> float:
        """Returns the bytes per token if all micro-steps always run and ``m`` of their tokens count."""
        return self.per_token(self.max_micro_steps) * self.max_micro_steps / m

    def kernels_per_token(self, m: float) -> float:
        """Returns the number of kernels launched per token at ``m`` tokens per macro-step."""
        base = self.sizes.kernels_per_forward - self.sizes.kernels(heads=1)
        return (base + self.sizes.kernels(layers=(m - 1) * self.num_micro_layers, heads=m, merges=1)) / m

    def speedup(self, m: float, *, context: int = 0) -> float:
        """Returns S(m), the ceiling of the speed-up over vanilla."""
        vanilla = self.sizes.step + context * self.sizes.kv_per_slot
        return vanilla / self.per_token(m, context=context)

    @property
    def break_even(self) -> float:
        """Tokens per macro-step above which HAMburger is faster than vanilla."""
        per_token = self.sizes.head + self.stop + self.micro
        return (self.sizes.body + self.merge - self.micro) / (self.sizes.step - per_token)

    @property
    def asymptote(self) -> float:
        """Speed-up that no group size can exceed."""
        return self.sizes.step / (self.sizes.head + self.stop + self.micro)

    @property
    def pays_in_memory_from(self) -> int:
        """Number of saved cache positions that repays the memory of the extra weights."""
        return -(-self.extra // self.sizes.kv_per_slot)

    def equivalent_acceptance(self, m: float) -> tuple[float, int] | None:
        """Returns the acceptance, and its best k, at which int8 speculation is as fast as HAMburger at ``m``.

        ``None`` if speculation can't be that fast.
        """
        return SpeculationBytes(self.sizes).acceptance_for(self.speedup(m))

    def ceilings(self, *, context: int) -> MethodCeilings:
        """Returns the rows of ``hambench predict``, with break-even points and equally fast speculation."""
        equivalence = {m: self.equivalent_acceptance(m) for m in GROUPS if m > self.break_even}
        lines = [
            f"hamburger pays from m = {self.break_even:.2f}; no group size passes {self.asymptote:.2f}×, and it makes "
            f"at most {self.max_micro_steps} tokens per step",
            f"hamburger ({self.num_micro_layers} micro layers) adds {self.extra / 1e6:.0f} MB of weights, which its "
            f"cache savings repay from {self.pays_in_memory_from:,} slots saved",
            "as fast as hamburger is int8 speculation (lossless, its best k) at:",
        ]
        for m, equal in equivalence.items():
            answer = "no acceptance" if equal is None else f"acceptance {equal[0]:.2f} with k={equal[1]}"
            lines.append(f"  m = {m:g}: {answer}")
        return MethodCeilings(
            rows=tuple(
                Ceiling(
                    setting=f"m={m:g}",
                    bytes_per_token=self.per_token(m, context=context),
                    kernels_per_token=self.kernels_per_token(m),
                    kv_per_position=self.sizes.kv_per_slot,
                    kv_per_token=self.sizes.kv_per_slot / m,
                )
                for m in GROUPS
            ),
            extra_bytes=self.extra,
            facts={
                "num_micro_layers": self.num_micro_layers,
                "break_even": self.break_even,
                "asymptote": self.asymptote,
                "pays_in_memory_from": self.pays_in_memory_from,
                "equivalent_acceptance": equivalence,
            },
            conclusions=tuple(lines),
        )
