"""A method's knobs and the facts that it states about itself: :class:`MethodConfig`. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
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
    """Values the sweep takes by default."""
    in_all: ClassVar[bool] = True
    """Whether ``--methods all`` includes it; a peer with an engine of its own is asked for by name."""
    all_settings: ClassVar[tuple[Mapping[str, KnobValue], ...]] = ({},)
    """Knobs of the settings that ``--methods all`` takes, where the command line does not give them; the axis is swept
    unless one of them fixes it."""
    beyond_all: ClassVar[str] = ""
    """What ``--methods all`` leaves out of the method, for ``hambench plan``; empty if nothing."""
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

    def token_drafter(self) -> TokenDrafter | None:
        """Returns a fresh drafter of one sequence, if the method proposes from tokens alone and verifies exactly.

        ``hambench replay`` finds what such a method would do on a stored answer.
        """
        return None

    @property
    def is_lossless(self) -> bool:
        """Whether this configuration's answers follow the target's own distribution; the class says what is usual."""
        return self.lossless

    @property
    def variant(self) -> str:
        """Word for settings that are a curve of their own among those of a method; empty for the usual ones."""
        return ""

    def unavailable_when(self, params: SamplingParams) -> str | None:
        """Why this configuration can't decode this way (a rule that needs sampling, say); ``None`` when it can.

        Asked before a run begins.
        """
        return None

    @property
    def depends_on_order(self) -> bool:
        """Whether an answer's counts depend on the answers before it: such a cell has no exact gate."""
        return False

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
    def _given(cls, knobs: Mapping[str, Any] | None) -> set[str]:
        """Fields that knobs name, by their own names or aliases."""
        return {cls.aliases.get(name, name).replace("-", "_") for name in knobs or {}}

    @classmethod
    def sweep(cls, knobs: Mapping[str, Any] | None = None) -> tuple[Self, ...]:
        """Configs of the default sweep: the axis expanded unless ``knobs`` fixes it."""
        fixed = dict(knobs or {})
        if cls.axis is None or cls.axis in cls._given(fixed):
            return (cls.from_knobs(fixed),)
        return tuple(cls.from_knobs({**fixed, cls.axis: value}) for value in cls.axis_values)


def _format_knob(value: KnobValue) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
