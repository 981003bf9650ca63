"""Expands methods, knob values and axes into cells, their Cartesian product. Pure data, no torch."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hambench.decoding import KnobValue, MethodConfig
from hambench.errors import HambenchError
from hambench.records import Cell
from hambench.registry import method_config
from hambench.runner.backend import KERNELS
from hambench.runner.knobs import ALL, field_of, requested_methods

if TYPE_CHECKING:
    from hambench.models.target import TargetModel

DTYPES = ("float32", "bfloat16", "float16")
REGIMES = ("eager", "graph")
MAX_CELLS = 10_000
"""Cells of one sweep: more is a slip in a range."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What to compare on one model: the product of the methods' knob values and of the conditions they run under."""

    model: str
    methods: tuple[str | MethodConfig, ...] = (ALL,)
    """Registry names, ``all``, a name with knobs as a label has them (``speculative[k=8,kv=shared]``), or configs."""
    knobs: Mapping[str, Sequence[KnobValue]] = dataclasses.field(default_factory=dict)
    """Values by knob, of the type of its field; a key is ``knob`` (every method that has it) or ``method.knob``."""
    dtype: str = "bfloat16"
    regimes: tuple[str, ...] = ("eager",)
    kernels: tuple[str, ...] = ("reference",)
    """See :data:`hambench.runner.backend.KERNELS`; a run replaces ``auto`` once the model is loaded."""
    threads: tuple[int | None, ...] = (None,)
    contexts: tuple[int | None, ...] = (None,)
    """Positions that prompt and answer may take; a longer prompt is cut or refused by its suite's rule."""
    max_new_tokens: tuple[int | None, ...] = (None,)
    """Limits that replace the tasks' own."""
    batches: tuple[int, ...] = (1,)
    """Sequences that are decoded together."""
    controls: bool = False
    """Whether each fine-tuned method's control cell is added where the axis does not hold it already."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise HambenchError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        _check_words("regime", self.regimes, REGIMES)
        _check_words("kernels", self.kernels, KERNELS)
        for name, values, least in (
            ("threads", self.threads, 1),
            ("context", self.contexts, 2),
            ("max_new_tokens", self.max_new_tokens, 1),
            ("batch", self.batches, 1),
        ):
            for value in values:
                if value is not None and value < least:
                    raise HambenchError(f"{name} must be >= {least}, got {value}")

    def expand(self, target: TargetModel | None = None, *, ask_availability: bool = True) -> Expansion:
        """Returns all cells in report order, and what ``all`` leaves out, with reasons.

        Args:
            target: The loaded model, if it is: what depends on more than its name is asked of it.
            ask_availability: Whether methods are asked if they can run on the model; not where their weights are still
                to be made, as for the exact gate's toy.

        Raises:
            HambenchError: For an unknown method or knob, a value that a method refuses, or an empty expansion.
        """
        configs: list[MethodConfig] = []
        left_out: list[str] = []
        used: set[str] = set()
        for name, fixed, explicit in requested_methods(self.methods):
            for config in self._configs(name, fixed, used, named=explicit):
                reason = config.unavailable_for(self.model) if ask_availability else None
                if reason is None and target is not None:
                    reason = config.unavailable_on(target)
                if reason is None:
                    # two settings that `all` means can be one once the command line has fixed their knobs
                    configs += [config] if explicit or config not in configs else []
                elif explicit:
                    raise HambenchError(reason)
                else:
                    left_out.append(f"{name} left out: {reason}")
                    break
        unused = sorted(set(self.knobs) - used)
        if unused:
            raise HambenchError(f"no chosen method has the knob {unused[0]!r}")
        cells = []
        axes = (self.regimes, self.kernels, self.threads, self.contexts, self.max_new_tokens, self.batches)
        _refuse_too_many(configs, *axes)
        for config in configs if max(self.batches) > 1 else ():
            if (reason := batch_obstacle(config)) is not None:
                raise HambenchError(reason)
        for config, regime, kernels, threads, context, max_new_tokens, batch in itertools.product(
            configs, *axes
        ):
            extras = {
                "regime": regime if len(self.regimes) > 1 else None,
                "kernels": kernels if len(self.kernels) > 1 else None,
                "threads": threads,
                "context": context,
                "max_new": max_new_tokens,
                "batch": batch if len(self.batches) > 1 or batch > 1 else None,
            }
            cells.append(
                Cell(
                    method=config.method,
                    label=_label(config, extras),
                    knobs=config.knobs(),
                    model=self.model,
                    dtype=self.dtype,
                    regime=regime,
                    kernels=kernels,
                    threads=threads,
                    context=context,
                    max_new_tokens=max_new_tokens,
                    batch=batch,
                )
            )
        if not cells:
            raise HambenchError("nothing to run: " + ("; ".join(left_out) or "no method was named"))
        return Expansion(_with_unique_labels(cells), tuple(dict.fromkeys(left_out)))

    def single(self) -> Cell:
        """Returns the only cell of a sweep that must not expand further; an open axis takes the config's default.

        Raises:
            HambenchError: If the sweep has more than one cell.
        """
        cells = self.expand().cells
        if len(cells) > 1 and len(self.methods) == 1 and self.methods[0] != ALL:
            config_class = method_config(cells[0].method)
            axis = config_class.axis
            default = {field.name: field.default for field in dataclasses.fields(config_class)}.get(
                axis or ""
            )
            cells = tuple(cell for cell in cells if axis and cell.knobs.get(axis) == default) or cells
        if len(cells) != 1:
            raise HambenchError(
                f"one configuration is wanted here, got {', '.join(cell.label for cell in cells)}"
            )
        return cells[0]

    def _configs(
        self, name: str, fixed: Mapping[str, KnobValue], used: set[str], *, named: bool
    ) -> list[MethodConfig]:
        config_class = method_config(name)
        axes: dict[str, Sequence[KnobValue]] = {
            field_of(config_class, knob) or knob: (value,) for knob, value in fixed.items()
        }
        # what stands in brackets wins over an option; what only `all` means does not
        given = set(axes) if named else set()
        for key, values in self.knobs.items():
            method, _, knob = key.rpartition(".")
            field = field_of(config_class, knob)
            if method not in ("", name) or (field is None and not method):
                continue
            used.add(key)
            # an unknown knob is refused where the config is made, with the knobs there are
            if (field or knob) not in given:
                axes[field or knob] = values
        _refuse_too_many(*axes.values())
        fixed_axes = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        configs = [config for knob_values in fixed_axes for config in config_class.sweep(knob_values)]
        if self.controls and config_class.control:
            with_control = [
                config_class.from_knobs({**knobs, **config_class.control}) for knobs in fixed_axes
            ]
            # verified answers are the target's: fine-tuning has no part in them
            configs += [
                config
                for config in dict.fromkeys(with_control)
                if config not in configs and not config.is_lossless
            ]
        return configs


@dataclasses.dataclass(frozen=True)
class Expansion:
    """The cells of a sweep."""

    cells: tuple[Cell, ...]
    left_out: tuple[str, ...]
    """Methods that ``all`` can't include here, each with its reason."""


def batch_obstacle(config: MethodConfig) -> str | None:
    """Why a method can't decode several sequences together, ``None`` if it can."""
    if not config.shares_forwards:
        return (
            f"{config.label} decodes with an engine of its own, whose forwards a batch can't share: leave it out, or "
            "give --batch 1"
        )
    if config.depends_on_order:
        return f"{config.label} reads earlier answers, and in a batch none is the earlier one: give --batch 1"
    return None


def config_of(cell: Cell) -> MethodConfig:
    """Returns the config that a cell was made from."""
    return method_config(cell.method).from_knobs(cell.knobs)


def _check_words(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    for word in given:
        if word not in known:
            raise HambenchError(f"{name} must be one of {', '.join(known)}, got {word!r}")


def _refuse_too_many(*axes: Sequence[object]) -> None:
    count = math.prod(map(len, axes))
    if count > MAX_CELLS:
        raise HambenchError(f"the axes give {count} cells together, at most {MAX_CELLS} can run: shorten one")


def _label(config: MethodConfig, extras: Mapping[str, KnobValue]) -> str:
    """Returns the config's label plus the axes that are not knobs of the method."""
    shown = [f"{name}={value}" for name, value in extras.items() if value is not None]
    if not shown:
        return config.label
    head, bracket, tail = config.label.partition("[")
    knobs = [tail.removesuffix("]")] if bracket else []
    return f"{head}[{','.join([*knobs, *shown])}]"


def _with_unique_labels(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Appends ``#2`` to the second of two equal configurations (an A/A run)."""
    seen: dict[str, int] = {}
    unique = []
    for cell in cells:
        seen[cell.label] = seen.get(cell.label, 0) + 1
        count = seen[cell.label]
        unique.append(cell if count == 1 else dataclasses.replace(cell, label=f"{cell.label}#{count}"))
    return tuple(unique)
