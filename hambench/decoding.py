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
"""Range of seeds that torch's generators accept."""
GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy, because dividing logits by less overflows, and a draw would be the argmax."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters, equal for all methods of a comparison."""

    max_new_tokens: int
    """Maximum number of tokens; further tokens of a step are discarded."""
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
        """Whether decoding always takes the most probable token."""
        return self.temperature < GREEDY_BELOW


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One indivisible step of a method: the emitted tokens and their costs, as host integers.

    When ``step()`` returns, the tokens are on the host, so a wall clock around the call is complete. An unknown count
    (e.g. of a server) is ``None``, never 0.
    """

    tokens: tuple[int, ...]
    """Ids emitted, in order; at least one."""
    target_forwards: int | None = 1
    """Forwards of the target (for HAMburger: of the base model) of any width."""
    draft_forwards: int | None = 0
    """Forwards of a draft model."""
    micro_forwards: int | None = 0
    """Forwards of HAMburger's micro-step decoder."""
    drafted: int | None = 0
    """Tokens proposed by a drafter."""
    accepted: int | None = 0
    """Accepted proposals; neither count includes the bonus token."""
    relaxed: tuple[int, ...] | None = ()
    """Places in ``tokens`` of accepted ones that are not the target's own, under a relaxed acceptance rule. Those past
    the end of the answer don't count."""
    draft_seconds: float | None = None
    """Seconds of the step spent on drafting, if the method drafts with a model."""
    continue_probs: tuple[float, ...] = ()
    """P(continue) of the stop head after each emitted token, if the method has one."""
    peak_kv_bytes: int | None = None
    """Peak bytes of all caches in use during the step, if more than :class:`KVUsage` after it, because rejected drafts
    and micro-steps have slots too."""
    seconds: float | None = None
    """Seconds of the step as measured by the method. Only a peer that works between calls needs this; by default the
    engine's clock around the call counts."""

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ValueError("tokens must hold at least one id: a step always emits")
        if self.accepted is not None and self.drafted is not None and self.accepted > self.drafted:
            raise ValueError(f"accepted must be <= drafted ({self.drafted}), got {self.accepted}")


@dataclasses.dataclass(frozen=True, slots=True)
class KVUsage:
    """KV-cache memory in use now, from host counters, without a device sync and without reserved bytes.

    Unknown values of a peer are ``None``, never 0.
    """

    slots: int | None
    """Target slots in use (one slot = one key/value entry in every layer)."""
    bytes: int | None
    """Bytes of all caches in use, including a draft's."""


class SessionEndedError(Exception):
    """Raised by ``step()`` of a session that has nothing more to emit; the engine then ends the answer.

    Only a peer that ends on its own needs it (e.g. a server whose token count differs from ours); a method on this
    engine always has a next token.

    Args:
        finish: The peer's finish reason: ``stop``, ``eos`` or ``length``.
    """

    def __init__(self, finish: Literal["eos", "stop", "length"]) -> None:
        super().__init__(finish)
        self.finish = finish


class Request(ABC):
    """Work that a step waits for.

    The driver of a session answers it. For one sequence, the engine answers at once by running the request; a batch
    answers after it has collected the requests of all its sequences. So a method does not handle batches.
    """

    __slots__ = ()

    in_pieces: ClassVar[bool] = False
    """Whether the work is long enough (a prompt) to be done in pieces between steps of other sequences."""

    @abstractmethod
    def answer(self) -> Any:
        """Does the work alone and returns the answer."""

    @property
    def together(self) -> Hashable | None:
        """Key of the requests of this class that :meth:`answer_together` may take with it; ``None`` for none."""
        return None

    @property
    def cost(self) -> int:
        """Returns the bytes of weights that the work reads, independently of its rows.

        A batch does cheap work first, so that more of its sequences share the expensive work.
        """
        return 0

    @property
    def first_used(self) -> frozenset[Hashable]:
        """Returns what costs more time when it is first used: weights with the kind of their cache, by identity."""
        return frozenset()

    @classmethod
    def answer_together(cls, requests: Sequence[Self]) -> list[Any]:
        """Does the work of several requests with one key at once.

        Returns:
            Their answers in order. An exception instead of an answer is raised in the session that asked.
        """
        return [request.answer() for request in requests]

    def pieces(self) -> Iterator[Any]:
        """Does the work in pieces; yields after each piece, and the answer after the last."""
        yield self.answer()


Asking = Generator[Request, Any, T]
"""A generator that returns a ``T`` and requests work by ``answer = yield request``."""


class Alone(Request):
    """A call that no other sequence can share.

    Args:
        call: Does the work.
        first_used: See :attr:`Request.first_used`.
    """

    __slots__ = ("_call", "_first_used")

    def __init__(self, call: Callable[[], Any], *, first_used: frozenset[Hashable] = frozenset()) -> None:
        self._call, self._first_used = call, first_used

    @property
    def first_used(self) -> frozenset[Hashable]:
        """See :class:`Request`."""
        return self._first_used

    def answer(self) -> Any:
        """Calls it."""
        return self._call()


@overload
def answered(asked: Asking[T], answer: Callable[[Request], Any] = ...) -> T: ...
@overload
def answered(asked: T, answer: Callable[[Request], Any] = ...) -> T: ...
def answered(asked: Any, answer: Callable[[Request], Any] = lambda request: request.answer()) -> Any:
    """Answers every request at once, each alone, to decode one sequence.

    Args:
        asked: Return value of a session's ``prefill`` or ``step``; anything but a generator is the result itself.
        answer: Does the work of a request; defaults to the request itself.
    """
    if not isinstance(asked, Generator):
        return asked
    try:
        request = next(asked)
        while True:
            try:
                result = answer(request)
            # raise a failure in the session at its request, as if it had made the call
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
        """Name or path that it was loaded by."""

    @property
    def llama(self) -> Any:
        """The model on its engine, a :class:`hambench.engine.language_model.LanguageModel`."""

    @property
    def tokenizer(self) -> Any | None:
        """Transformers tokenizer; ``None`` if only ids work."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end an answer."""

    @property
    def context_length(self) -> int:
        """Most positions."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights and activations."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    def chat_arguments(self) -> Mapping[str, KnobValue]:
        """Arguments for the tokenizer's chat template."""

    @property
    def companions(self) -> dict[str, str]:
        """Digests of other weights in use (a draft's, HAMburger's) by kind; methods add to it."""

    def shared(self, key: str, make: Callable[[], T]) -> T:
        """Returns the result of ``make``, called once per model: weights that several cells share."""


class DecodeSession(Protocol):
    """The decoding of one sequence; a session without generators that request forwards (a peer) can't be batched.

    A peer's session may have an attribute ``totals``, :class:`hambench.method_facts.AnswerTotals` or ``None``: the
    peer's report on the whole answer. It is read after the answer has ended, outside the timed region.
    """

    def prefill(self) -> Step | Asking[Step]:
        """Processes the prompt, including any preparation, and emits the first token(s)."""

    def step(self) -> Step | Asking[Step]:
        """Advances by one step."""

    @property
    def kv(self) -> KVUsage:
        """KV memory in use after the last call."""


class DecodingMethod(Protocol):
    """A method with its weights loaded and without per-sequence state.

    If a server on this machine does the work, an attribute ``local_port`` may give its TCP port, so that its load does
    not count as other load. If an answer's counts depend on earlier answers, a method ``forget()`` must drop them. It
    is called before the first answer of each repeat, so that warm-ups and earlier repeats leave nothing behind.
    If its caches are not one of the target's own, an attribute ``kv_bytes_per_position`` may give the bytes of all of
    them per position, by which a batch that would not fit is refused.
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
        """Does untimed work once (compilation, graph capture, page-in)."""

    def start(self, prompt_ids: Sequence[int], params: SamplingParams) -> DecodeSession:
        """Opens a session; cheap, because the work starts with ``prefill``.

        Raises:
            ContextOverflowError: If the prompt and ``max_new_tokens`` don't fit the context.
        """
