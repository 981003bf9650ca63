"""The contract between the engine, which owns the loop, and a method, which owns one step.

A method is a frozen :class:`MethodConfig` (its knobs; importable without torch) whose ``build`` returns a
:class:`DecodingMethod` (weights loaded, no per-sequence state) whose ``start`` returns a :class:`DecodeSession`
(one sequence). Stop rules, limits and timing live in :mod:`hambench.engine.loop` alone, so two methods can't differ in
what they count.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeVar

from hambench.errors import HambenchError
from hambench.method_facts import KnobValue as KnobValue
from hambench.method_facts import Look, MethodCeilings, ModelBytes, Phase, ShortOption

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from hambench.records import StepRecord

T = TypeVar("T")

SMALLEST_SEED, LARGEST_SEED = -(2**63), 2**64 - 1
"""Seeds that torch's generators take."""
GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: logits divided by less overflow, and the draw would be the argmax anyway."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, the same for every method of a comparison."""

    max_new_tokens: int
    """Most tokens counted; what a step emits past it is discarded."""
    temperature: float = 0.0
    """0, or anything below :data:`GREEDY_BELOW`, is greedy (argmax, ties to the lowest id)."""
    top_p: float = 1.0
    """Nucleus mass; 1 keeps the whole vocabulary."""
    seed: int = 0
    """Seeds the session's own generator; equal seeds give equal tokens."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be >= 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be >= 0 and finite, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not isinstance(self.seed, int) or not SMALLEST_SEED <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed must be a whole number from -2**63 to 2**64 - 1, got {self.seed}")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature < GREEDY_BELOW


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One indivisible advance of a method: what it emitted and what that cost, as host integers.

    When ``step()`` returns, the tokens are on the host, so a wall clock around the call is complete. A count that
    can't be known (of a server, say) is ``None``, never 0.
    """

    tokens: tuple[int, ...]
    """Ids emitted, in order; at least one."""
    target_forwards: int | None = 1
    """Forwards of the target (for HAMburger: of the base model), whatever their width."""
    draft_forwards: int | None = 0
    """Forwards of a draft model."""
    micro_forwards: int | None = 0
    """Forwards of HAMburger's micro-step decoder."""
    drafted: int | None = 0
    """Tokens proposed by a drafter."""
    accepted: int | None = 0
    """Proposed tokens that were kept; the bonus token is in neither count."""
    continue_probs: tuple[float, ...] = ()
    """P(continue) of the stop head after each emitted token, where a method has one."""
    peak_kv_bytes: int | None = None
    """Most bytes of all caches in use at once during the step, where that is more than :class:`KVUsage` says after it:
    rejected drafts and micro-steps have slots too."""
    seconds: float | None = None
    """Seconds that the method measured for the step itself. Only a peer that works on while nobody waits for it needs
    that; by default the engine's clock around the call counts."""

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ValueError("tokens must hold at least one id: a step always emits")
        if self.accepted is not None and self.drafted is not None and self.accepted > self.drafted:
            raise ValueError(f"accepted must be <= drafted ({self.drafted}), got {self.accepted}")


@dataclasses.dataclass(frozen=True, slots=True)
class KVUsage:
    """KV-cache memory in use now: host counters, never a device sync, never bytes merely reserved.

    What can't be known of a peer is ``None``, never 0.
    """

    slots: int | None
    """Target slots in use (one slot = one key/value entry in every layer)."""
    bytes: int | None
    """Bytes of all caches in use, a draft's included."""


class SessionEndedError(Exception):
    """Raised by ``step()`` of a session that has nothing more to emit: the engine ends the answer there.

    Only a peer that ends by itself needs it (a server whose count of tokens differs from ours); a method of this
    engine always has a next token.

    Args:
        finish: Why it ended, as the peer said: ``stop``, ``eos`` or ``length``.
    """

    def __init__(self, finish: Literal["eos", "stop", "length"]) -> None:
        super().__init__(finish)
        self.finish = finish


class Target(Protocol):
    """The loaded model that a method decodes with; :class:`hambench.models.target.TargetModel` is one."""

    @property
    def name(self) -> str:
        """Name or path it was loaded by."""

    @property
    def llama(self) -> Any:
        """The model on its engine, a :class:`hambench.engine.language_model.LanguageModel`."""

    @property
    def tokenizer(self) -> Any | None:
        """Tokenizer of transformers; ``None`` if only ids go in and out."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end an answer."""

    @property
    def context_length(self) -> int:
        """Most positions."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    def chat_arguments(self) -> Mapping[str, KnobValue]:
        """Arguments for the tokenizer's chat template."""

    @property
    def companions(self) -> dict[str, str]:
        """Digests of other weights that take part (a draft's, HAMburger's), by what they are; methods add to it."""

    def shared(self, key: str, make: Callable[[], T]) -> T:
        """Returns what ``make`` makes, made once per model: weights that several cells of a run use."""


class DecodeSession(Protocol):
    """One sequence being decoded."""

    def prefill(self) -> Step:
        """Processes the prompt and emits the first token(s); work that must precede them is done here."""

    def step(self) -> Step:
        """Advances by one step."""

    @property
    def kv(self) -> KVUsage:
        """KV memory in use after the last call."""


class DecodingMethod(Protocol):
    """A method with its weights loaded, holding no per-sequence state.

    Where a server of this machine does the work, an attribute ``local_port`` may name its TCP port: its load is ours.
    """

    @property
    def name(self) -> str:
        """Name with knobs, e.g. ``speculative[k=4]``."""

    @property
    def lossless(self) -> bool:
        """Whether the output distribution equals the target's."""

    @property
    def extra_weight_bytes(self) -> int:
        """Bytes of weights that this method adds to the target's (a draft copy, grafted layers)."""

    def warmup(self) -> None:
        """Does once what must not be timed (compilation, graph capture, page-in)."""

    def start(self, prompt_ids: Sequence[int], params: SamplingParams) -> DecodeSession:
        """Opens a session; cheap, the work starts with ``prefill``.

        Raises:
            ContextOverflowError: If the prompt and ``max_new_tokens`` don't fit the context.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig(ABC):
    """The knobs of a method: a frozen dataclass of JSON scalars.

    Subclasses set :attr:`method`, declare their sweep axis, validate in ``__post_init__`` with a ``ValueError`` that
    names field and value, and import torch only inside :meth:`build`.
    """

    method: ClassVar[str]
    """Name in the registry and on the command line."""
    axis: ClassVar[str | None] = None
    """Field that ``--methods all`` sweeps, if any."""
    axis_values: ClassVar[tuple[KnobValue, ...]] = ()
    """Values the sweep takes by default."""
    in_all: ClassVar[bool] = True
    """Whether ``--methods all`` includes it; a peer with an engine of its own is asked for by name."""
    lossless: ClassVar[bool] = False
    """Whether its answers follow the target's own distribution by design, up to the rounding of the arithmetic."""
    control: ClassVar[Mapping[str, KnobValue]] = {}
    """Knobs that leave only a fine-tuned method's weights: they tell its gain from that of fine-tuning; else empty."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Short command-line names of knobs, e.g. ``{"k": "num_draft_tokens"}``; also used in labels."""

    # what the rest of hambench shows of a method; every default suits a method that says nothing
    look: ClassVar[Look | None] = None
    """Its look in figures; by default one that no other method of the report has."""
    phases: ClassVar[tuple[Phase, ...]] = ()
    """Functions that ``hambench profile`` times by name, besides the engine's own."""
    short_options: ClassVar[tuple[ShortOption, ...]] = ()
    """Options of its own on the command line."""
    gate_settings: ClassVar[tuple[Mapping[str, KnobValue], ...]] = ({},)
    """Knobs of the configurations that the exact gate decodes on its toy model."""
    max_bars: ClassVar[int] = 3
    """Most settings drawn as bars per task; of more, the first and the last are drawn."""
    merges_tokens: ClassVar[bool] = False
    """Whether one KV slot may hold several tokens: the report then shows accuracy over KV compression along the
    axis, and an answer with its steps coloured."""

    @abstractmethod
    def build(self, target: Target) -> DecodingMethod:
        """Loads what the method needs beside the target.

        Several cells build on one target: keep weights that don't depend on the knobs in ``target.shared``.
        """

    @classmethod
    def summary(cls) -> str:
        """One sentence on what the method does: the first line of the class's docstring."""
        text = (cls.__doc__ or "").strip()
        # a dataclass without a docstring gets its signature for one
        return "" if text.startswith(f"{cls.__name__}(") else text.split("\n")[0]

    def unavailable_for(self, model: str) -> str | None:
        """Why this method can't run on a model (no checkpoint, say); ``None`` when it can.

        Asked without torch before anything is loaded; ``--methods all`` leaves such a method out and says so.
        """
        return None

    def own_sizes(self, model: str) -> Mapping[str, KnobValue]:
        """Sizes of what the method adds to a model, for :meth:`bytes_read`; stored with a run's cell.

        Asked without torch, when a run begins.
        """
        return {}

    def bytes_read(
        self, step: StepRecord, before: StepRecord, sizes: ModelBytes, own_sizes: Mapping[str, KnobValue]
    ) -> float | None:
        """Bytes of weights and cache that a decode step had to read; ``None`` where that can't be known.

        The default is right for a method whose forwards are all the target's: each reads all weights and the slots in
        use. A method that also drafts or has forwards of its own kind overrides it.

        Args:
            step: The step.
            before: The step before it, the prefill for the first.
            sizes: What the parts of a forward read.
            own_sizes: What :meth:`own_sizes` said when the run was made.
        """
        if step.target_forwards is None or step.kv_slots is None:
            return None
        if step.draft_forwards != 0 or step.micro_forwards != 0:
            return None
        return step.target_forwards * (sizes.step + step.kv_slots * sizes.kv_per_slot)

    @classmethod
    def ceilings(cls, sizes: ModelBytes, *, model: str, context: int) -> MethodCeilings | None:
        """What memory bandwidth allows the method on a model, for ``hambench predict``; ``None`` to be left out.

        Args:
            sizes: What the parts of a forward read.
            model: The model's name.
            context: Cached positions.
        """
        return None

    def for_toy(self, target: Target, folder: Path) -> Self:
        """The config as the exact gate builds it on the seeded toy model; ``folder`` is for weights that it needs."""
        return self

    @property
    def is_control(self) -> bool:
        """Whether this is the method's :attr:`control` configuration."""
        return bool(self.control) and all(
            getattr(self, knob) == value for knob, value in self.control.items()
        )

    def unavailable_on(self, target: Target) -> str | None:
        """Why this method can't run on a loaded target (no copy of its weights can be made, say); ``None`` when it can.

        Asked once the target is loaded; ``--methods all`` leaves such a method out and says so.
        """
        return None

    def knobs(self) -> dict[str, KnobValue]:
        """Field values, JSON-able: what identifies a cell beside the method's name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def label(self) -> str:
        """Short display name: the method, its axis value, and every knob that differs from its default."""
        short = {field: alias for alias, field in self.aliases.items()}
        shown = [
            f"{short.get(field.name, field.name)}={_format_knob(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if field.name == self.axis or getattr(self, field.name) != field.default
        ]
        return f"{self.method}[{','.join(shown)}]" if shown else self.method

    @classmethod
    def from_knobs(cls, knobs: Mapping[str, Any]) -> Self:
        """Builds a config from names (aliases allowed) and values.

        Raises:
            HambenchError: For a name the method doesn't have, or a value it refuses.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        resolved: dict[str, Any] = {}
        for name, value in knobs.items():
            field = cls.aliases.get(name, name).replace("-", "_")
            if field not in names:
                known = ", ".join(sorted(names | set(cls.aliases))) or "none"
                raise HambenchError(f"method {cls.method!r} has no knob {name!r}; its knobs: {known}")
            resolved[field] = cls._checked(field, name, value)
        try:
            return cls(**resolved)
        except (TypeError, ValueError) as error:
            raise HambenchError(f"{cls.method}: {error}") from error

    @classmethod
    def knob_types(cls, field: str) -> frozenset[type]:
        """The types that a field may have, ``NoneType`` included where it may be ``None``."""
        hint = typing.get_type_hints(cls)[field]
        if typing.get_origin(hint) is Literal:
            return frozenset(map(type, typing.get_args(hint)))
        return frozenset(typing.get_args(hint) or (hint,))

    @classmethod
    def _checked(cls, field: str, name: str, value: Any) -> Any:
        """A knob's value as its field's type; only a whole number where a float is asked is converted."""
        if not isinstance(value, int | float | str | None) and hasattr(value, "item"):
            # a scalar of NumPy: a run's header holds plain values
            value = value.item()
        kinds = cls.knob_types(field)
        if type(value) in kinds or not kinds <= {int, float, str, bool, type(None)}:
            return value
        if float in kinds and type(value) is int:
            return float(value)
        wanted = " or ".join(sorted("None" if kind is type(None) else kind.__name__ for kind in kinds))
        raise HambenchError(f"{cls.method}: {name} must be {wanted}, got {value!r}")

    @classmethod
    def sweep(cls, knobs: Mapping[str, Any] | None = None) -> tuple[Self, ...]:
        """Configs of the default sweep: the axis expanded unless ``knobs`` fixes it."""
        fixed = dict(knobs or {})
        given = {cls.aliases.get(name, name) for name in fixed}
        if cls.axis is None or cls.axis in given:
            return (cls.from_knobs(fixed),)
        return tuple(cls.from_knobs({**fixed, cls.axis: value}) for value in cls.axis_values)


def _format_knob(value: KnobValue) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
