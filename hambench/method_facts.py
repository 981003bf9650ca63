"""The kinds of facts that a method declares, so that no other code needs to name methods.

:class:`hambench.decoding.MethodConfig` has them as class attributes and methods with defaults. So a method of another
distribution has phases, limits, a look and a command-line option like a built-in one. Does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

KnobValue = int | float | str | bool | None

Hue = Literal["ink", "blue", "orange", "green", "purple"]
"""Colours for methods in figures, each readable in light mode, dark mode and print."""


@dataclass(frozen=True, slots=True)
class Look:
    """The look of a method in every figure; marker and dash distinguish it without colours."""

    hue: Hue
    marker: str = "o"
    """A matplotlib marker."""
    dash: tuple[float, ...] = ()
    """Dash pattern in points; empty is solid."""


class Phase(NamedTuple):
    """A function whose time ``hambench profile`` shows under its own name."""

    module: str
    """Full name of the module; imported only when something is profiled."""
    function: str
    """``function`` or ``Class.method``."""
    name: str
    """Name of the phase, e.g. ``draft``. Several functions may share one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortOption:
    """A command-line option for one knob, in addition to the general ``--method-arg KNOB=VALUES``."""

    flags: tuple[str, ...]
    """e.g. ``("-k", "--draft-tokens")``."""
    knob: str
    """The knob or its alias; methods with a knob of this name share the option."""
    help: str
    metavar: str = "AXIS"
    is_axis: bool = True
    """Whether the text is an axis (``1,2,4`` or ``0.5:0.9:0.1``) instead of one value, e.g. a path."""


class TokenDrafter(Protocol):
    """Proposes tokens from one sequence's tokens alone, without a model, so that stored answers can replay it."""

    def update(self, tokens: Sequence[int]) -> None:
        """Reads the tokens added since the last call; ``tokens`` is the whole sequence."""

    def propose(self, tokens: Sequence[int], num_tokens: int) -> list[int]:
        """Proposes at most ``num_tokens`` tokens, or its own limit, after ``tokens``, which :meth:`update` has read."""


class ModelBytes(Protocol):
    """Bytes that the parts of one forward of the target read; :class:`hambench.roofline.byte_model.ByteModel` is one.

    All are of the cell's model and dtype.
    """

    @property
    def dtype_bytes(self) -> int:
        """One weight."""

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream, in elements."""

    @property
    def layer(self) -> int:
        """One decoder layer."""

    @property
    def body(self) -> int:
        """All layers and the final norm."""

    @property
    def head(self) -> int:
        """The LM head, read once per token that is chosen."""

    @property
    def step(self) -> int:
        """One forward with its head: body and head."""

    @property
    def int8_draft(self) -> int:
        """One forward of an int8 copy of the model."""

    @property
    def kv_per_slot(self) -> int:
        """One cached key/value entry over all layers."""

    @property
    def int8_kv_per_slot(self) -> int:
        """The same in 8 bits, with a scale per key or value of a head."""

    @property
    def kernels_per_forward(self) -> int:
        """Kernels that one forward launches, including its head's."""

    def kernels(self, *, layers: float = 0, heads: float = 0, merges: float = 0) -> float:
        """Returns the number of kernels that these layers, LM heads and merges of embeddings launch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """The cost per token of one setting of a method, if memory bandwidth and launches are the limit."""

    setting: str
    """e.g. ``m=2``."""
    bytes_per_token: float
    kernels_per_token: float
    """Kernels launched per token; each costs the gap that the caller assumes."""
    column: str = ""
    """Second coordinate of the setting, e.g. ``k=4``; settings that have one are shown as a grid."""
    kv_per_position: float | None = None
    """Bytes of all caches for each position of the prompt; ``None`` if the method does not say."""
    kv_per_token: float | None = None
    """Bytes that each further token adds to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodCeilings:
    """The content of ``hambench predict`` for a method."""

    rows: tuple[Ceiling, ...]
    grid_title: str = ""
    """Heading of the grid, if the rows have columns."""
    extra_bytes: int = 0
    """Weights that the method adds to the target's."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Further numbers for ``--json``, such as break-even points."""
    conclusions: tuple[str, ...] = ()
    """Lines below the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerTotals:
    """What a peer says of a whole answer where its steps don't tell it; ``None`` is what it does not say."""

    drafted: int | None = None
    accepted: int | None = None
    rounds: int | None = None
    """Rounds of drafting and verifying."""
    cached_prompt_tokens: int | None = None
    """Prompt tokens that it did not process, because it kept them of an earlier request."""
