"""Plain autoregressive decoding with one target forward per token, the baseline of all other methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hambench.decoding import KVUsage, MethodConfig, SamplingParams, Step
from hambench.method_facts import Ceiling, Look, MethodCeilings, ModelBytes, Phase
from hambench.methods.common.facts import KV_DTYPES, SAMPLE
from hambench.methods.common.verification_rules import check_rule

if TYPE_CHECKING:
    from hambench.decoding import Asking, Target
    from hambench.methods.common.sequence import TargetSequence


@dataclass(frozen=True, kw_only=True)
class VanillaConfig(MethodConfig):
    """Decodes one token per forward of the target; the baseline that other methods are divided by."""

    method: ClassVar[str] = "vanilla"
    lossless: ClassVar[bool] = True
    look: ClassVar[Look | None] = Look("ink", "X")
    phases: ClassVar[tuple[Phase, ...]] = (SAMPLE,)

    kv_dtype: str = "model"
    """How keys and values are stored: as the ``model``'s type, or as ``int8`` with a scale per slot and head."""

    def __post_init__(self) -> None:
        check_rule("kv_dtype", self.kv_dtype, KV_DTYPES)

    @property
    def is_lossless(self) -> bool:
        """True unless the cache is rounded."""
        return self.kv_dtype == "model"

    @classmethod
    def ceilings(cls, sizes: ModelBytes, *, model: str, context: int) -> MethodCeilings:
        """Returns the ceilings of reading all weights and the cache once per token, with either type of cache."""
        return MethodCeilings(
            rows=tuple(
                Ceiling(
                    setting=setting,
                    bytes_per_token=sizes.step + context * per_slot,
                    kernels_per_token=sizes.kernels_per_forward,
                    kv_per_position=per_slot,
                    kv_per_token=per_slot,
                )
                for setting, per_slot in (("", sizes.kv_per_slot), ("kv_dtype=int8", sizes.int8_kv_per_slot))
            )
        )

    def build(self, target: Target) -> Vanilla:
        """Wraps the target."""
        return Vanilla(self.label, target, self, lossless=self.is_lossless)


@dataclass(frozen=True)
class Vanilla:
    """The target with one token per step."""

    name: str
    target: Target
    config: VanillaConfig = VanillaConfig()
    lossless: bool = True
    extra_weight_bytes: int = 0

    @property
    def kv_bytes_per_position(self) -> int:
        """See :class:`hambench.decoding.DecodingMethod`."""
        from hambench.methods.common.sequence import kv_bytes_per_position

        return kv_bytes_per_position(self.target.llama, self.config.kv_dtype)

    def warmup(self) -> None:
        """Decodes a few tokens, so that no timed answer pays for packing, page-in and allocation."""
        from hambench.methods.common.sequence import decode_a_little

        decode_a_little(self)

    def start(self, prompt_ids: Sequence[int], params: SamplingParams) -> VanillaSession:
        """Opens a session; see :class:`hambench.decoding.DecodingMethod`."""
        from hambench.methods.common.sequence import TargetSequence

        sequence = TargetSequence(self.target, prompt_ids, params, kv_dtype=self.config.kv_dtype)
        sequence.prepare([1])
        return VanillaSession(sequence)


@dataclass
class VanillaSession:
    """One sequence with one token per step."""

    sequence: TargetSequence

    def prefill(self) -> Asking[Step]:
        """Processes the prompt and emits the first token."""
        first = yield from self.sequence.prefill()
        return Step(tokens=(first,))

    def step(self) -> Asking[Step]:
        """Emits the next token."""
        token = yield from self.sequence.advance()
        return Step(tokens=(token,))

    @property
    def kv(self) -> KVUsage:
        """The target's cache."""
        return KVUsage(self.sequence.cache.slots, self.sequence.cache.bytes_used)
