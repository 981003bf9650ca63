"""KV eviction: plain decoding over a smaller cache. Scores the slots, keeps the best of each head, drops the rest.

The rules are training-free and published; :mod:`hambench.methods.common.kv_scores` has one function for each. Positions
go on counting, so the kept keys stay rotated as they were, as in kvpress.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from hambench.decoding import Alone, Asking, KVUsage, MethodConfig, SamplingParams, Step
from hambench.method_facts import Ceiling, KnobValue, Look, MethodCeilings, ModelBytes, Phase, ShortOption
from hambench.methods.common.facts import KV_DTYPES, SAMPLE
from hambench.methods.common.verification_rules import check_rule

if TYPE_CHECKING:
    from hambench.decoding import Target
    from hambench.engine.kvcache import KVCache
    from hambench.methods.common.sequence import TargetSequence

Press = Literal["streaming", "knorm", "keydiff", "snapkv", "random"]
PRESSES: tuple[Press, ...] = ("streaming", "knorm", "keydiff", "snapkv", "random")


@dataclass(frozen=True, kw_only=True)
class KVPressConfig(MethodConfig):
    """Decodes plainly over a smaller KV cache: evicts the slots that a score calls least useful; not lossless."""

    method: ClassVar[str] = "kv_press"
    axis: ClassVar[str | None] = "ratio"
    axis_values: ClassVar[tuple[KnobValue, ...]] = (0.0, 0.25, 0.5, 0.75, 0.9)
    in_all: ClassVar[bool] = False
    control: ClassVar[dict[str, KnobValue]] = {"ratio": 0.0, "kv_dtype": "model"}
    look: ClassVar[Look | None] = Look("purple", "D", (4, 1, 1, 1))
    phases: ClassVar[tuple[Phase, ...]] = (
        SAMPLE,
        Phase("hambench.methods.kv_press", "press", "evict"),
    )
    short_options: ClassVar[tuple[ShortOption, ...]] = (
        ShortOption(
            flags=("--press",),
            knob="press",
            help=f"KV eviction: the rule that scores slots: {', '.join(PRESSES)}.",
        ),
        ShortOption(
            flags=("--ratio",),
            knob="ratio",
            help="KV eviction: share of the slots to evict: 0,0.25,0.5,0.75,0.9.",
        ),
    )
    gate_settings: ClassVar[tuple[dict[str, KnobValue], ...]] = (
        {"press": "knorm", "ratio": 0.5, "decode_every": 16},
        {"press": "snapkv", "ratio": 0.5},
    )

    press: Press = "snapkv"
    """Rule that scores the slots."""
    ratio: float = 0.5
    """Share of the slots to evict, from 0 to below 1; 0 is plain decoding and the control."""
    kv_dtype: str = "model"
    """How the slots that stay are stored: as the ``model``'s type, or as ``int8`` with a scale per slot and head."""
    decode_every: int = 0
    """Evict again after every so many new slots of the answer; 0 evicts only after the prompt."""

    def __post_init__(self) -> None:
        check_rule("press", self.press, PRESSES)
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio must be at least 0 and below 1 (the share to evict), got {self.ratio}")
        check_rule("kv_dtype", self.kv_dtype, KV_DTYPES)
        if self.decode_every < 0:
            raise ValueError(f"decode_every must be >= 0, got {self.decode_every}")

    @property
    def is_lossless(self) -> bool:
        """True if nothing is evicted or rounded."""
        return self.ratio == 0 and self.kv_dtype == "model"

    @property
    def variant(self) -> str:
        """Each rule and type of cache is a curve of its own over the ratio."""
        return self.press if self.kv_dtype == "model" else f"{self.press} {self.kv_dtype}"

    @classmethod
    def ceilings(cls, sizes: ModelBytes, *, model: str, context: int) -> MethodCeilings:
        """All weights and the slots that stay, once per token."""
        return MethodCeilings(
            rows=tuple(
                Ceiling(
                    setting=f"ratio={ratio:g}",
                    bytes_per_token=sizes.step + context * (1 - ratio) * sizes.kv_per_slot,
                    kernels_per_token=sizes.kernels_per_forward,
                    kv_per_position=(1 - ratio) * sizes.kv_per_slot,
                    kv_per_token=sizes.kv_per_slot,
                )
                for ratio in (0.25, 0.5, 0.75, 0.9)
            )
        )

    def unavailable_on(self, target: Target) -> str | None:
        """Returns why the target does not fit: eviction works on the engine's own cache."""
        if target.llama.reference is None:
            return f"kv_press evicts from the engine's own cache; {target.name} runs through the transformers adapter"
        return None

    def build(self, target: Target) -> KVPress:
        """Wraps the target."""
        from hambench.errors import ModelError

        reason = self.unavailable_on(target)
        if reason is not None:
            raise ModelError(reason)
        return KVPress(self.label, self, target, lossless=self.is_lossless)


@dataclass(frozen=True)
class KVPress:
    """The target, one token a step, over a cache that shrinks."""

    name: str
    config: KVPressConfig
    target: Target
    lossless: bool
    extra_weight_bytes: int = 0

    @property
    def kv_bytes_per_position(self) -> int:
        """See :class:`hambench.decoding.DecodingMethod`."""
        from hambench.methods.common.sequence import kv_bytes_per_position

        return kv_bytes_per_position(self.target.llama, self.config.kv_dtype)

    def warmup(self) -> None:
        """Decodes a few tokens, an eviction included."""
        from hambench.methods.common.sequence import decode_a_little

        decode_a_little(self)

    def start(self, prompt_ids: Sequence[int], params: SamplingParams) -> KVPressSession:
        """Opens a session; see :class:`hambench.decoding.DecodingMethod`."""
        from hambench.methods.common.sequence import TargetSequence

        sequence = TargetSequence(self.target, prompt_ids, params, kv_dtype=self.config.kv_dtype)
        sequence.prepare([1])
        return KVPressSession(sequence, self.config)


def press(sequence: TargetSequence, config: KVPressConfig) -> int:
    """Evicts slots down to the configured share of all that there were; returns the bytes in use meanwhile."""
    from hambench.methods.common import kv_scores

    cache: KVCache = sequence.cache
    num_kept = min(kv_scores.num_kept(cache.next_position, config.ratio), cache.slots)
    if num_kept == cache.slots:
        return cache.bytes_used
    if config.press == "snapkv":
        # an answer that has only begun again leaves fewer rows than a window; the rows' own slots always stay
        window = min(kv_scores.WINDOW, cache.slots - cache.fixed_slots, max(cache.slots // 2, 1))
        newest = sequence.tokens[len(sequence.tokens) - 1 - window : -1]
        scores = kv_scores.snapkv(cache, kv_scores.newest_queries(sequence.model, cache, newest))
    else:
        scores = {
            "streaming": kv_scores.streaming,
            "knorm": kv_scores.knorm,
            "keydiff": kv_scores.keydiff,
            "random": kv_scores.random,
        }[config.press](cache)
    kept = kv_scores.top_slots(scores, num_kept)
    return cache.evict(kept, spare=sequence.capacity - cache.next_position)


class KVPressSession:
    """One sequence, one token a step; evicts after the prompt and, where asked, during the answer."""

    def __init__(self, sequence: TargetSequence, config: KVPressConfig) -> None:
        self._sequence, self._config = sequence, config

    def prefill(self) -> Asking[Step]:
        """Processes the prompt, emits the first token and evicts."""
        first = yield from self._sequence.prefill()
        return Step(tokens=(first,), peak_kv_bytes=(yield from self._press()))

    def step(self) -> Asking[Step]:
        """Emits the next token, after an eviction where one is due."""
        sequence, every = self._sequence, self._config.decode_every
        peak = None
        if every and sequence.cache.slots - sequence.cache.fixed_slots >= every:
            peak = yield from self._press()
        token = yield from sequence.advance()
        return Step(tokens=(token,), peak_kv_bytes=peak)

    def _press(self) -> Asking[int | None]:
        if self._config.ratio == 0:
            return None
        num_bytes: int = yield Alone(
            lambda: press(self._sequence, self._config), first_used=frozenset({self._config.press})
        )
        return num_bytes

    @property
    def kv(self) -> KVUsage:
        """The cache as it stands."""
        return KVUsage(self._sequence.cache.slots, self._sequence.cache.bytes_used)
