"""Speculative decoding: a cheap draft proposes k tokens, which the target verifies in one forward.

The paper's baseline drafts with an INT8 weight-only copy of the target itself. Greedy drafting keeps the target's own
argmaxes; sampled drafting uses exact rejection sampling, so the output distribution is the target's either way
(Leviathan et al. 2023, arXiv 2211.17192).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from hambench.decoding import KnobValue, KVUsage, SamplingParams, Step
from hambench.method_facts import Ceiling, Look, MethodCeilings, ModelBytes, Phase, ShortOption
from hambench.methods.common.draft_length import DraftCosts, DraftLength
from hambench.methods.common.facts import DRAFT_TOKENS, SAMPLE, VERIFY
from hambench.methods.common.speculation import SpeculationBytes
from hambench.methods.common.verification_rules import (
    DEFAULT_CONFIDENCE,
    DRAFT_STOP,
    EXACT,
    VERIFICATION,
    DraftStop,
    Verification,
    check_rule,
    check_share,
)
from hambench.methods.common.verified import CONFIDENCE, VerifiedConfig

if TYPE_CHECKING:
    from hambench.decoding import Asking, Target
    from hambench.engine.language_model import LanguageModel
    from hambench.methods.common.drafting import Drafter
    from hambench.methods.common.sequence import TargetSequence
    from hambench.methods.common.verify import Accept
    from hambench.records import StepRecord

INT8 = "int8"
DRAFTS = (1, 2, 4, 8)
"""Draft lengths that ``hambench predict`` shows."""
ACCEPTANCES = (0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True, kw_only=True)
class SpeculativeConfig(VerifiedConfig):
    """Drafts k tokens with a cheap model and verifies them in one forward of the target; lossless unless relaxed."""

    method: ClassVar[str] = "speculative"
    confidence_relaxes: ClassVar[bool] = False
    axis: ClassVar[str | None] = "num_draft_tokens"
    axis_values: ClassVar[tuple[KnobValue, ...]] = (2, 4)
    aliases: ClassVar[dict[str, str]] = {"k": "num_draft_tokens", "c": "confidence"}
    all_settings: ClassVar[tuple[Mapping[str, KnobValue], ...]] = ({"num_draft_tokens": 4},)
    beyond_all: ClassVar[str] = (
        "other draft lengths (-k), drafts that end by confidence (draft_stop), relaxed acceptance (accept), "
        "verification by blocks, a shared cache (kv=shared) and other drafts"
    )
    look: ClassVar[Look | None] = Look("blue", "s", (5, 2))
    phases: ClassVar[tuple[Phase, ...]] = (
        SAMPLE,
        Phase("hambench.methods.common.drafting", "SeparateDrafter.propose", "draft"),
        Phase("hambench.methods.common.drafting", "SharedDrafter.propose", "draft"),
        *VERIFY,
    )
    short_options: ClassVar[tuple[ShortOption, ...]] = (DRAFT_TOKENS, CONFIDENCE)
    gate_settings: ClassVar[tuple[dict[str, KnobValue], ...]] = (
        {"k": 2},
        {"k": 4},
        {"k": 4, "kv": "shared"},
    )

    num_draft_tokens: int = 4
    """Tokens drafted a step, at most."""
    kv: str = "separate"
    """``separate``: the draft has a cache and a prefill of its own. ``shared``: it reads the target's cache and
    writes its proposals there, where the verify pass overwrites them with exact values."""
    draft: str = INT8
    """``int8`` for a copy of the target, or the name or folder of another model with the same vocabulary."""
    draft_stop: DraftStop | None = None
    """What ends a draft early: ``none``; ``product`` of the draft's highest probabilities under ``gamma``; ``each`` of
    them under it; ``goodput``, the length of most tokens per second by the acceptance so far and the times of the
    warm-up. By default product where a confidence is given and acceptance is exact, else none."""
    gamma: float | None = None
    """Confidence of ``draft_stop``; by default ``confidence`` where acceptance is exact, else 0.7."""
    verification: str = "token"
    """Sampled drafts that are verified exactly: ``token`` by token, or as a ``block``, which keeps more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rule("verification", self.verification, VERIFICATION)
        check_share("gamma", self.gamma)
        if self.draft_stop is not None:
            check_rule("draft_stop", self.draft_stop, DRAFT_STOP)
        if self.verification == "block" and self.relaxed is not None:
            raise ValueError(
                f"verification='block' is exact, got accept={self.acceptance!r}: give accept=exact, or leave it out"
            )
        if self.num_draft_tokens < 1:
            raise ValueError(f"num_draft_tokens (k) must be >= 1, got {self.num_draft_tokens}")
        if self.kv not in ("separate", "shared"):
            raise ValueError(f"kv must be 'separate' or 'shared', got {self.kv!r}")
        if self.kv == "shared" and self.draft != INT8:
            raise ValueError(
                f"kv='shared' needs draft='int8' (the same model's cache), got draft={self.draft!r}"
            )

    @property
    def stop_rule(self) -> str:
        """The rule that ends drafts early."""
        if self.draft_stop is not None:
            return self.draft_stop
        return "product" if self.confidence is not None and self.acceptance == "exact" else "none"

    @property
    def stop_confidence(self) -> float:
        """The rule's least probability."""
        if self.gamma is not None:
            return self.gamma
        own = self.confidence if self.acceptance == "exact" else None
        return DEFAULT_CONFIDENCE if own is None else own

    @classmethod
    def sweep(cls, knobs: Mapping[str, Any] | None = None) -> tuple[Self, ...]:
        """The default sweep over k; where a confidence is what varies, one k."""
        given = cls._given(knobs)
        if given & {"confidence", "gamma", "draft_stop"} and cls.axis not in given:
            return (cls.from_knobs(knobs or {}),)
        return super().sweep(knobs)

    def bytes_read(
        self, step: StepRecord, before: StepRecord, sizes: ModelBytes, own_sizes: Mapping[str, KnobValue]
    ) -> float | None:
        """Counts the forwards of the target and its int8 copy; unknown for another draft or a rounded cache."""
        if step.target_forwards is None or step.draft_forwards is None or step.kv_slots is None:
            return None
        if step.micro_forwards or (step.draft_forwards and self.draft != INT8) or self.kv_dtype != "model":
            return None
        cache = step.kv_slots * sizes.kv_per_slot
        return step.target_forwards * (sizes.step + cache) + step.draft_forwards * (sizes.int8_draft + cache)

    @classmethod
    def ceilings(cls, sizes: ModelBytes, *, model: str, context: int) -> MethodCeilings:
        """Returns ceilings of the int8 copy alone, and of each draft length at each acceptance."""
        rule = SpeculationBytes(sizes)
        alone = Ceiling(
            setting="all int8, not lossless",
            bytes_per_token=sizes.int8_draft + context * sizes.kv_per_slot,
            kernels_per_token=sizes.kernels_per_forward,
            kv_per_position=sizes.kv_per_slot,
            kv_per_token=sizes.kv_per_slot,
        )
        grid = [
            Ceiling(
                setting=f"acceptance {a:g}",
                column=f"k={k}",
                bytes_per_token=rule.per_token(k, a, context=context),
                kernels_per_token=rule.kernels_per_token(k, a),
                # the draft keeps a cache of its own
                kv_per_position=2 * sizes.kv_per_slot,
                kv_per_token=2 * sizes.kv_per_slot,
            )
            for a in ACCEPTANCES
            for k in DRAFTS
        ]
        break_even = {k: rule.break_even(k) for k in DRAFTS}
        pays = (f"{'never' if a is None else f'{a:.2f}'} with k={k}" for k, a in break_even.items())
        return MethodCeilings(
            rows=(alone, *grid),
            grid_title="int8 speculation",
            extra_bytes=sizes.int8_draft,
            facts={"break_even_acceptance": break_even},
            conclusions=(
                f"int8 speculation pays from acceptance {', '.join(pays)}; the draft adds "
                f"{sizes.int8_draft / 1e6:.0f} MB of weights",
            ),
        )

    def unavailable_on(self, target: Target) -> str | None:
        """Returns why the target can't be drafted for: an INT8 copy needs the engine's own layers."""
        if self.draft == INT8 and target.llama.reference is None:
            return (
                f"speculative with draft=int8 needs the engine's own forward pass, and {target.name} runs through the "
                "transformers adapter: give draft=NAME, another model with the same tokenizer"
            )
        return None

    def build(self, target: Target) -> Speculative:
        """Quantises or loads the draft once for all cells that use it."""
        from hambench.methods.common.drafting import load_draft

        return Speculative(self.label, self, target, load_draft(self.draft, target))


@dataclass(frozen=True)
class Speculative:
    """The target with its draft."""

    name: str
    config: SpeculativeConfig
    target: Target
    draft: LanguageModel
    measured: list[DraftCosts] = field(default_factory=list)
    """Times of drafting and verifying, from the warm-up, where the draft's length depends on them."""

    @property
    def lossless(self) -> bool:
        """Whether only the target's own tokens are kept."""
        return self.config.is_lossless

    @property
    def costs(self) -> DraftCosts:
        """As measured; before the warm-up what the bytes say."""
        by_bytes = DraftCosts(self.draft.weight_bytes / self.target.llama.weight_bytes)
        return self.measured[0] if self.measured else by_bytes

    @property
    def extra_weight_bytes(self) -> int:
        """The draft's weights."""
        return self.draft.weight_bytes

    @property
    def kv_bytes_per_position(self) -> int:
        """Bytes of the target's cache and of the draft's own, if it has one."""
        from hambench.methods.common.sequence import kv_bytes_per_position

        models = [self.target.llama] if self.config.kv == "shared" else [self.target.llama, self.draft]
        return sum(kv_bytes_per_position(model, self.config.kv_dtype) for model in models)

    def warmup(self) -> None:
        """Decodes a few tokens with both models; times them where a rule weighs their costs."""
        import torch

        from hambench.methods.common.draft_timing import measure_costs
        from hambench.methods.common.sequence import decode_a_little

        decode_a_little(self)
        if self.config.stop_rule == "goodput":
            most = self.config.num_draft_tokens
            # once per model and number of threads: cells that share them decide alike
            costs = self.target.shared(
                f"draft costs/{self.config.draft}/{most}/{torch.get_num_threads()} threads",
                lambda: measure_costs(self.target, self.draft, most),
            )
            self.measured[:] = [costs]

    def start(self, prompt_ids: Sequence[int], params: SamplingParams) -> SpeculativeSession:
        """Opens a session; see :class:`hambench.decoding.DecodingMethod`."""
        from hambench.methods.common.drafting import SeparateDrafter, SharedDrafter
        from hambench.methods.common.sequence import TargetSequence, refuse

        refuse(self.config, params)
        sequence = TargetSequence(self.target, prompt_ids, params, kv_dtype=self.config.kv_dtype)
        kind = SharedDrafter if self.config.kv == "shared" else SeparateDrafter
        drafter, knobs = kind(self.draft, sequence), self.config
        length = DraftLength(knobs.num_draft_tokens, knobs.stop_rule, knobs.stop_confidence, costs=self.costs)
        # a short answer has no room for a long draft
        most_drafted = min(knobs.num_draft_tokens, params.max_new_tokens - 1)
        sequence.prepare(range(1, most_drafted + 2), logits=self.config.relaxed is not None)
        drafter.prepare(most_drafted, asks=length.asks)
        rules = Verification(knobs.relaxed, by_block=knobs.verification == "block")
        return SpeculativeSession(length, sequence, drafter, rules)


@dataclass
class SpeculativeSession:
    """One sequence of drafting and verifying."""

    length: DraftLength
    sequence: TargetSequence
    drafter: Drafter
    rules: Verification = EXACT
    accept: Accept | None = None
    """Another rule than greedy acceptance, for benchmarks that force it."""

    def prefill(self) -> Asking[Step]:
        """Processes the prompt with both models and emits the first token."""
        draft_forwards = yield from self.drafter.prefill()
        first = yield from self.sequence.prefill()
        return Step(tokens=(first,), draft_forwards=draft_forwards)

    def step(self) -> Asking[Step]:
        """Drafts, verifies, and emits the accepted tokens plus one of the target's own."""
        from hambench.methods.common.verify import verify

        sequence = self.sequence
        # the last token that counts comes from the target itself: drafting it would be wasted work
        most = max(0, min(self.length.begin(), sequence.num_left - 1))
        began = time.perf_counter()
        drafted, draft_probs = yield from self.drafter.propose(most, self.length)
        # proposals are on the host, so the clock has seen all of their work
        draft_seconds = time.perf_counter() - began
        accepted = yield from verify(sequence, drafted, draft_probs, rules=self.rules, accept=self.accept)
        self.length.learn(len(drafted), accepted.num_accepted)
        peak = sequence.most_slots * sequence.cache.bytes_per_slot + self.drafter.kv_bytes
        self.drafter.settle()
        return Step(
            tokens=tuple(sequence.tokens[-accepted.num_accepted - 1 :]),
            draft_forwards=len(drafted),
            drafted=len(drafted),
            accepted=accepted.num_accepted,
            relaxed=accepted.relaxed,
            draft_seconds=draft_seconds if drafted else None,
            peak_kv_bytes=peak,
        )

    @property
    def kv(self) -> KVUsage:
        """The target's slots, and the bytes of the target's and the draft's cache."""
        cache = self.sequence.cache
        return KVUsage(cache.slots, cache.bytes_used + self.drafter.kv_bytes)
