"""Defines :class:`MethodConfig`, a method's knobs and the facts that it declares. Does not import torch."""

from __future__ import annotations

import dataclasses
import functools
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from hambench.errors import HambenchError
from hambench.method_facts import (
    KnobValue,
    Look,
    MethodCeilings,
    ModelBytes,
    Phase,
    ShortOption,
    TokenDrafter,
)

if TYPE_CHECKING:
    from pathlib import Path

    from hambench.decoding import DecodingMethod, SamplingParams, Target
    from hambench.records import StepRecord


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
    """Default values of the sweep."""
    shares_forwards: ClassVar[bool] = True
    """Whether its sessions request their forwards, so that a batch can share them; a peer runs its own engine."""
    in_all: ClassVar[bool] = True
    """Whether ``--methods all`` includes it; a peer with its own engine must be named explicitly."""
    all_settings: ClassVar[tuple[Mapping[str, KnobValue], ...]] = ({},)
    """Knobs of the settings that ``--methods all`` takes unless the command line gives them; the axis is swept unless
    one of them fixes it."""
    beyond_all: ClassVar[str] = ""
    """Description of the settings that ``--methods all`` leaves out, for ``hambench plan``; empty if none."""
    lossless: ClassVar[bool] = False
    """Whether its answers follow the target's own distribution by design, up to rounding."""
    control: ClassVar[Mapping[str, KnobValue]] = {}
    """Knobs of the control, which keeps a fine-tuned method's weights without the method; empty if not fine-tuned."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Short command-line names of knobs, e.g. ``{"k": "num_draft_tokens"}``; also used in labels."""

    # facts that the rest of hambench shows; the defaults suit a method that declares none
    look: ClassVar[Look | None] = None
    """Its look in figures; defaults to one that no other method of the report has."""
    phases: ClassVar[tuple[Phase, ...]] = ()
    """Functions that ``hambench profile`` times by name, in addition to the engine's."""
    short_options: ClassVar[tuple[ShortOption, ...]] = ()
    """Its own command-line options."""
    gate_settings: ClassVar[tuple[Mapping[str, KnobValue], ...]] = ({},)
    """Knobs of the configurations that the exact gate decodes on its toy model."""
    max_bars: ClassVar[int] = 3
    """Maximum number of settings drawn as bars per task; of more, only the first and the last are drawn."""
    merges_tokens: ClassVar[bool] = False
    """Whether one KV slot may hold several tokens; if so, the report shows accuracy over KV compression along the axis,
    and an answer with coloured steps."""

    @abstractmethod
    def build(self, target: Target) -> DecodingMethod:
        """Loads the method's own weights in addition to the target's.

        Several cells build on one target: keep weights that don't depend on the knobs in ``target.shared``.
        """

    @classmethod
    def summary(cls) -> str:
        """Returns one sentence on the method: the first line of the class's docstring."""
        text = (cls.__doc__ or "").strip()
        # a dataclass without a docstring gets its signature as docstring
        return "" if text.startswith(f"{cls.__name__}(") else text.split("\n")[0]

    def unavailable_for(self, model: str) -> str | None:
        """Returns why this method can't run on a model (e.g. no checkpoint); ``None`` if it can.

        Called without torch before anything is loaded; ``--methods all`` leaves out such a method and says so.
        """
        return None

    def own_sizes(self, model: str) -> Mapping[str, KnobValue]:
        """Returns sizes of the method's additions to a model, for :meth:`bytes_read`; stored with a run's cell.

        Called without torch when a run begins.
        """
        return {}

    def bytes_read(
        self, step: StepRecord, before: StepRecord, sizes: ModelBytes, own_sizes: Mapping[str, KnobValue]
    ) -> float | None:
        """Returns the bytes of weights and cache that a decode step had to read; ``None`` if unknown.

        The default fits a method with only target forwards, each of which reads all weights and the slots in use. A
        method that drafts or has its own kind of forwards overrides it.

        Args:
            step: The step.
            before: The step before it, the prefill for the first.
            sizes: Bytes that the parts of a forward read.
            own_sizes: Result of :meth:`own_sizes` at the time of the run.
        """
        if step.target_forwards is None or step.kv_bytes is None:
            return None
        if step.draft_forwards != 0 or step.micro_forwards != 0:
            return None
        return step.target_forwards * (sizes.step + step.kv_bytes)

    @classmethod
    def ceilings(cls, sizes: ModelBytes, *, model: str, context: int) -> MethodCeilings | None:
        """Returns the method's limits by memory bandwidth, for ``hambench predict``; ``None`` leaves it out.

        Args:
            sizes: Bytes that the parts of a forward read.
            model: The model's name.
            context: Cached positions.
        """
        return None

    def for_toy(self, target: Target, folder: Path) -> Self:
        """Returns the config for the exact gate's seeded toy model; ``folder`` is for weights that it needs."""
        return self

    @property
    def is_control(self) -> bool:
        """Returns whether this is the method's :attr:`control` configuration."""
        return bool(self.control) and all(
            getattr(self, knob) == value for knob, value in self.control.items()
        )

    def token_drafter(self) -> TokenDrafter | None:
        """Returns a fresh drafter of one sequence, if the method proposes from tokens alone and verifies exactly.

        ``hambench replay`` runs it on stored answers.
        """
        return None

    @property
    def is_lossless(self) -> bool:
        """Whether this configuration's answers follow the target's own distribution; defaults to the class's value."""
        return self.lossless

    @property
    def variant(self) -> str:
        """Name of settings that form their own curve within a method; empty for the usual ones."""
        return ""

    def unavailable_when(self, params: SamplingParams) -> str | None:
        """Returns why this configuration can't decode with these parameters; ``None`` if it can.

        Called before a run begins. An example is a rule that needs sampling.
        """
        return None

    @property
    def depends_on_order(self) -> bool:
        """Whether an answer's counts depend on earlier answers; such a cell has no exact gate."""
        return False

    def unavailable_on(self, target: Target) -> str | None:
        """Returns why this method can't run on a loaded target (e.g. its weights can't be copied); ``None`` if it can.

        Called once the target is loaded; ``--methods all`` leaves out such a method and says so.
        """
        return None

    def knobs(self) -> dict[str, KnobValue]:
        """Returns the field values for JSON, which identify a cell together with the method's name."""
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
            HambenchError: For a name that the method lacks, or a value that it rejects.
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
        """Returns the types of a field, including ``NoneType`` if it may be ``None``."""
        return _knob_types(cls)[field]

    @classmethod
    def knob_words(cls, field: str) -> frozenset[str]:
        """Returns the words that a field's type names (a ``Literal``); empty for any other type."""
        hint = typing.get_type_hints(cls)[field]
        return frozenset(word for word in _words_of(hint) if isinstance(word, str))

    @classmethod
    def _checked(cls, field: str, name: str, value: Any) -> Any:
        """Checks a knob's value against its field's type; converts only whole numbers to floats."""
        if not isinstance(value, int | float | str | None) and hasattr(value, "item"):
            # convert NumPy scalars, because a run's header contains plain values
            value = value.item()
        kinds = cls.knob_types(field)
        if type(value) in kinds or not kinds <= {int, float, str, bool, type(None)}:
            return value
        if float in kinds and type(value) is int:
            return float(value)
        wanted = " or ".join(sorted("None" if kind is type(None) else kind.__name__ for kind in kinds))
        raise HambenchError(f"{cls.method}: {name} must be {wanted}, got {value!r}")

    @classmethod
    def _given(cls, knobs: Mapping[str, Any] | None) -> set[str]:
        """Fields that knobs name, by their own names or aliases."""
        return {cls.aliases.get(name, name).replace("-", "_") for name in knobs or {}}

    @classmethod
    def sweep(cls, knobs: Mapping[str, Any] | None = None) -> tuple[Self, ...]:
        """Returns the configs of the default sweep, with the axis expanded unless ``knobs`` fixes it."""
        fixed = dict(knobs or {})
        if cls.axis is None or cls.axis in cls._given(fixed):
            return (cls.from_knobs(fixed),)
        return tuple(cls.from_knobs({**fixed, cls.axis: value}) for value in cls.axis_values)


def _format_knob(value: KnobValue) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


@functools.cache
def _knob_types(config: type[MethodConfig]) -> dict[str, frozenset[type]]:
    """Types of each field of a class, resolved once: a report builds thousands of configs from stored knobs."""
    return {name: _types_of(hint) for name, hint in typing.get_type_hints(config).items()}


def _types_of(hint: Any) -> frozenset[type]:
    parts = (hint,) if typing.get_origin(hint) is Literal else typing.get_args(hint) or (hint,)
    plain = {part for part in parts if typing.get_origin(part) is not Literal}
    return frozenset(plain | {type(word) for word in _words_of(hint)})


def _words_of(hint: Any) -> tuple[Any, ...]:
    """The values of a ``Literal``, alone or next to ``None``."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    return tuple(word for part in typing.get_args(hint) for word in _words_of(part))
