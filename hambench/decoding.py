"""The contract between the engine, which owns the loop, and a method, which owns one step.

A method is a frozen :class:`MethodConfig` (its knobs; importable without torch) whose ``build`` returns a
:class:`DecodingMethod` (weights loaded, no per-sequence state) whose ``start`` returns a :class:`DecodeSession`
(one sequence). Stop rules, limits and timing live in :mod:`hambench.engine.loop` alone, so two methods can't differ in
what they count.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeVar, overload

from hambench.method_config import MethodConfig as MethodConfig
from hambench.method_facts import KnobValue as KnobValue

if TYPE_CHECKING:
    import torch


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
    relaxed: int | None = 0
    """Kept tokens that are not the target's own: a relaxed rule of acceptance kept them."""
    draft_seconds: float | None = None
    """Seconds of the step that its drafts took, where a method drafts with a model."""
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


class Request(ABC):
    """Work that a step waits for.

    Whoever drives a session answers: the engine for one sequence at once, with the call that the request stands for; a
    batch once it has collected the requests of all its sequences. So a method knows nothing of batches.
    """

    __slots__ = ()

    in_pieces: ClassVar[bool] = False
    """Whether the work is long enough to be done in pieces between the steps of other sequences: a prompt."""

    @abstractmethod
    def answer(self) -> Any:
        """Does the work alone and returns what the session waits for."""

    @property
    def together(self) -> Hashable | None:
        """Key of the requests of this class that :meth:`answer_together` may take with it; ``None`` for none."""
        return None

    @property
    def cost(self) -> int:
        """Bytes of weights that the work reads, whatever its rows.

        A batch first does the cheap work that some of its sequences wait for, so that more of them share the dear one.
        """
        return 0

    @classmethod
    def answer_together(cls, requests: Sequence[Self]) -> list[Any]:
        """Does the work of several requests with one key at once.

        Returns:
            Their answers in order. An exception in the place of one is raised in the session that asked.
        """
        return [request.answer() for request in requests]

    def pieces(self) -> Iterator[Any]:
        """Does the work in pieces: yields after each, after the last one the answer."""
        yield self.answer()


Asking = Generator[Request, Any, T]
"""Returns a ``T`` once its requests are answered; ``answer = yield request`` is how it asks."""


class Alone(Request):
    """A call that no other sequence can share.

    Args:
        call: Does the work.
    """

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call

    def answer(self) -> Any:
        """Calls it."""
        return self._call()


@overload
def answered(asked: Asking[T], answer: Callable[[Request], Any] = ...) -> T: ...
@overload
def answered(asked: T, answer: Callable[[Request], Any] = ...) -> T: ...
def answered(asked: Any, answer: Callable[[Request], Any] = lambda request: request.answer()) -> Any:
    """Answers every request at once, each alone: how one sequence is decoded.

    Args:
        asked: What a session's ``prefill`` or ``step`` gave; anything but a generator is the result itself.
        answer: Does the work of a request; by default the request itself does.
    """
    if not isinstance(asked, Generator):
        return asked
    try:
        request = next(asked)
        while True:
            try:
                result = answer(request)
            # a session sees a failure where it asked, as if it had made the call itself
            except Exception as error:
                request = asked.throw(error)
            else:
                request = asked.send(result)
    except StopIteration as end:
        return end.value


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
    """One sequence being decoded; what is no generator that asks for forwards can't be in a batch (a peer).

    A peer's session may have an attribute ``totals``, :class:`hambench.method_facts.AnswerTotals` or ``None``: what the
    peer says of the whole answer. It is read once the answer has ended, outside the timed region.
    """

    def prefill(self) -> Step | Asking[Step]:
        """Processes the prompt and emits the first token(s); work that must precede them is done here."""

    def step(self) -> Step | Asking[Step]:
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
