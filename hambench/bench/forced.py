"""Times whole steps of real sessions at forced lengths: the speed of a method at a given number of tokens per step.

Speed depends only on sizes and lengths, so weights are random and lengths are *forced*: the stop head of HAMburger is
evaluated and overruled, and a verified draft is accepted up to a set number of tokens. Every row says so. No
acceptance, confidence or quality enters the figures.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hambench.bench.forced_checks import SETTINGS, check_against_torch, check_loop
from hambench.decoding import answered
from hambench.errors import HambenchError
from hambench.registry import BASELINE

if TYPE_CHECKING:
    import torch

    from hambench.decoding import DecodeSession
    from hambench.engine.cuda.early_exit import Loop
    from hambench.engine.language_model import LanguageModel
    from hambench.engine.llama import Llama
    from hambench.kernels.tools.shapes import KernelShape
    from hambench.methods.hamburger.model import HamburgerModel
    from hambench.models.target import TargetModel
    from hambench.roofline.byte_model import ByteModel

LENGTHS = ((1,), (2,), (3,), (4,), (1, 3), (2, 4))
"""Forced tokens of HAMburger's macro-steps, in turn: each length alone, and means of 2 and 3 from unlike lengths."""
NUM_DRAFTED = 4
NUM_ACCEPTED = (0, 2, 4)
"""Forced numbers of accepted drafts."""
WARM_STEPS = 4

Engine = Callable[["Llama", str, str], "LanguageModel"]
"""Returns the model that runs a plain model in a regime on kernels."""


@dataclasses.dataclass(frozen=True)
class Amount:
    """How many steps and repeats to time."""

    steps: int
    """Steps per repeat; even, so that alternating lengths come out evenly."""
    repeats: int


@dataclasses.dataclass(frozen=True)
class ForcedPace:
    """Seconds per token of one method at forced lengths."""

    method: str
    regime: str
    kernels: str
    loop: str | None
    """Loop that ran (:mod:`hambench.engine.cuda.early_exit`), if the method has one on the device."""
    lengths: tuple[int, ...]
    """Forced tokens per step, in turn."""
    predicted: float
    """Speed-up over vanilla that the bytes read allow, without a context."""
    seconds: tuple[float, ...]
    """Seconds per token in each repeat; empty in a dry run."""

    @property
    def mean_length(self) -> float:
        """Mean tokens per step."""
        return statistics.mean(self.lengths)

    @property
    def median_s(self) -> float:
        """Median seconds per token."""
        return statistics.median(self.seconds)


def run(
    plain: Llama,
    sizes: KernelShape,
    *,
    engine: Engine,
    context: int,
    amount: Callable[[str], Amount],
    progress: Callable[[str], None],
) -> Iterator[ForcedPace]:
    """Checks the macro-steps against each other, then times vanilla, HAMburger and speculation in each regime.

    Args:
        plain: The model on torch's operations.
        sizes: Sizes of that model.
        engine: Returns the model that runs in a regime.
        context: Number of prompt tokens.
        amount: How much to time per regime.
        progress: Receives one line per timed item.

    Raises:
        HambenchError: If the numerics disagree, or a step did not have its forced length.
    """
    from hambench.engine.cuda.early_exit import GRAPH_LOOPS

    checkpoint = random_grafts(plain, merge_heads=sizes.merge_heads)
    prompt = [number % min(1000, sizes.vocabulary) for number in range(1, context + 1)]

    def regime(name: str, kernels: str) -> _Regime:
        llama = engine(plain, name, kernels)
        return _Regime(
            name, kernels, llama, sizes, checkpoint, Stopwatch(llama, amount(name), prompt), progress
        )

    torchs = regime("eager", "reference")
    yield torchs.vanilla()
    yield from torchs.hamburger(None)
    yield from torchs.speculative()
    eager = regime("eager", "fused")
    progress("macro-steps: kernels against torch")
    check_against_torch(torchs.model, eager.model, prompt)
    yield eager.vanilla()
    yield from eager.hamburger("stepwise")
    yield from eager.speculative()
    graph = regime("graph", "fused")
    yield graph.vanilla()
    for loop in GRAPH_LOOPS:
        progress(f"macro-steps: {loop} against direct launches")
        check_loop(eager.model, graph.model, prompt, loop)
        yield from graph.hamburger(loop)
    yield from graph.speculative()


Start = Callable[[], tuple["DecodeSession", Callable[[int], None]]]
"""Opens a session; returns it with a function that forces the length of its next steps."""


class _Regime:
    """One way of running the model, and the paces of the methods in it."""

    def __init__(
        self,
        name: str,
        kernels: str,
        llama: LanguageModel,
        sizes: KernelShape,
        checkpoint: Any,
        stopwatch: Stopwatch,
        progress: Callable[[str], None],
    ) -> None:
        from hambench.methods.hamburger.model import HamburgerModel

        self._where, self._llama, self._stopwatch, self._progress = (
            (name, kernels),
            llama,
            stopwatch,
            progress,
        )
        self._target, self._bytes = _target(llama, sizes), _byte_model(sizes)
        self.model = HamburgerModel(llama, checkpoint)

    def vanilla(self) -> ForcedPace:
        """Times plain decoding."""
        from hambench.methods.vanilla import VanillaConfig

        method, watch = VanillaConfig().build(self._target), self._stopwatch
        return self._pace(
            "vanilla", (1,), 1.0, lambda: (method.start(watch.prompt, watch.params), _force_nothing)
        )

    def hamburger(self, loop: Loop | None) -> Iterator[ForcedPace]:
        """Times macro-steps of every forced length, in a loop on the device or (``None``) led by the host."""
        from hambench.engine.cuda.early_exit import available
        from hambench.engine.cuda.fused_llama import FusedLlama
        from hambench.methods.hamburger.byte_rule import HamburgerBytes
        from hambench.methods.hamburger.device.session import DeviceSession

        prompt, params = self._stopwatch.prompt, self._stopwatch.params
        loop_run = None
        if loop is not None:
            assert isinstance(self._llama, FusedLlama)
            loop_run = available(loop, self._llama.launches)

        def start() -> tuple[DecodeSession, Callable[[int], None]]:
            if loop is None:
                return _forced_plain(self.model, prompt, params)
            session = DeviceSession(self.model, prompt, params, **SETTINGS, loop=loop)
            return session, session.macro_step.force

        for lengths in LENGTHS:
            rule = HamburgerBytes(self._bytes, self.model.architecture.num_micro_layers)
            ceiling = rule.speedup(statistics.mean(lengths))
            yield self._pace("hamburger", lengths, ceiling, start, loop_run)

    def speculative(self) -> Iterator[ForcedPace]:
        """Times drafts of an INT8 copy, with a forced number of accepted tokens."""
        from hambench.methods.speculative import SpeculativeConfig

        method = SpeculativeConfig(num_draft_tokens=NUM_DRAFTED).build(self._target)
        spent = NUM_DRAFTED * self._bytes.int8_draft + self._bytes.step

        def start(num_accepted: int) -> tuple[DecodeSession, Callable[[int], None]]:
            session = method.start(self._stopwatch.prompt, self._stopwatch.params)
            session.accept = _accepting(num_accepted)
            return session, _force_nothing

        for num_accepted in NUM_ACCEPTED:
            ceiling = (num_accepted + 1) * self._bytes.step / spent
            yield self._pace(
                "speculative", (num_accepted + 1,), ceiling, functools.partial(start, num_accepted)
            )

    def _pace(
        self, method: str, lengths: tuple[int, ...], predicted: float, start: Start, loop: str | None = None
    ) -> ForcedPace:
        shown = ", ".join(word for word in (method, *self._where, loop) if word)
        self._progress(f"{shown}, forced to {', '.join(map(str, lengths))} tokens per step")
        seconds = self._stopwatch.time(start, lengths)
        return ForcedPace(method, *self._where, loop, lengths, predicted, seconds)


class Stopwatch:
    """Times sessions of one model over one prompt.

    Args:
        llama: Model whose device to wait for.
        amount: How much to time.
        prompt: Token ids of the prompt.
    """

    def __init__(self, llama: LanguageModel, amount: Amount, prompt: list[int]) -> None:
        from hambench.decoding import SamplingParams

        self._amount, self._device, self.prompt = amount, llama.device, prompt
        longest = max(NUM_DRAFTED + 1, *itertools.chain(*LENGTHS))
        self.params = SamplingParams(max_new_tokens=longest * (amount.steps + WARM_STEPS + 2))

    def time(self, start: Start, lengths: tuple[int, ...]) -> tuple[float, ...]:
        """Returns the seconds per token in each repeat, each in a session of its own.

        Raises:
            HambenchError: If a step did not have its forced length.
        """
        import torch

        seconds = []
        with torch.inference_mode():
            for _ in range(self._amount.repeats):
                session, force = start()
                answered(session.prefill())
                force(lengths[0])
                self._steps(session, force, lengths, WARM_STEPS)
                self._synchronize()
                began = time.perf_counter()
                num_tokens = self._steps(session, force, lengths, self._amount.steps)
                self._synchronize()
                seconds.append((time.perf_counter() - began) / num_tokens)
        return tuple(seconds)

    def _steps(
        self, session: DecodeSession, force: Callable[[int], None], lengths: tuple[int, ...], number: int
    ) -> int:
        turns = itertools.cycle(lengths)
        emitted = 0
        for _ in range(number):
            length = next(turns)
            if len(lengths) > 1:
                force(length)
            num_emitted = len(answered(session.step()).tokens)
            if num_emitted != length:
                raise HambenchError(f"a step was forced to {length} tokens and emitted {num_emitted}")
            emitted += num_emitted
        return emitted

    def _synchronize(self) -> None:
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def random_grafts(llama: Llama, *, merge_heads: int) -> Any:
    """Returns a HAMburger checkpoint of random weights for a model."""
    import torch

    from hambench.methods.hamburger.architecture import Architecture, BaseReference
    from hambench.methods.hamburger.checkpoint import Checkpoint, sizes_of
    from hambench.methods.hamburger.grafts import Grafts

    architecture = Architecture.for_base(llama.shape.num_layers, merge_heads=merge_heads)
    with torch.device("meta"):
        sizes = {
            name: tensor.shape for name, tensor in Grafts(llama.shape, architecture).state_dict().items()
        }

    def draw(name: str, size: torch.Size) -> torch.Tensor:
        if "norm" in name:
            return torch.ones(size, dtype=llama.dtype, device=llama.device)
        return torch.randn(size, dtype=llama.dtype, device=llama.device).mul_(size[-1] ** -0.5)

    return Checkpoint(
        architecture=architecture,
        base=BaseReference(name="random", fingerprint=None, sizes=sizes_of(llama.shape)),
        base_weights="unchanged",
        tensors={name: draw(name, size) for name, size in sizes.items()},
    )


def markdown(paces: Sequence[ForcedPace]) -> list[str]:
    """Returns a table of the paces, without figures if nothing was timed."""
    lines = [
        "Forced: whole steps of the real sessions, each awaited as the engine awaits it, with lengths forced against "
        f"the stop head or the verification ({NUM_DRAFTED} drafts per step by an INT8 copy). × vanilla is in the same "
        "regime; the byte model's ratio has no context.",
        "",
        "| method | regime | kernels | loop | tokens/step | mean | µs/token | × vanilla | byte model | reached |",
        "|---|---|---|---|---|--:|--:|--:|--:|--:|",
    ]
    base = {(p.regime, p.kernels): p for p in paces if p.method == BASELINE}
    for pace in paces:
        figures = ["–", "–", "–"]
        vanilla = base.get((pace.regime, pace.kernels))
        if pace.seconds and vanilla is not None:
            gain = vanilla.median_s / pace.median_s
            figures = [f"{pace.median_s * 1e6:.1f}", f"{gain:.2f}×", f"{100 * gain / pace.predicted:.0f} %"]
        lines.append(
            f"| {pace.method} | {pace.regime} | {pace.kernels} | {pace.loop or '–'} | "
            f"{', '.join(map(str, pace.lengths))} | {pace.mean_length:g} | {figures[0]} | {figures[1]} | "
            f"{pace.predicted:.2f}× | {figures[2]} |"
        )
    return lines


def _forced_plain(
    model: HamburgerModel, prompt: list[int], params: Any
) -> tuple[DecodeSession, Callable[[int], None]]:
    from hambench.methods.hamburger.session import HamburgerSession

    class Forced(HamburgerSession):
        """A session that evaluates the stop head, then continues up to the forced length."""

        length = 1

        def _goes_on(self, hidden: torch.Tensor, continue_probs: list[float]) -> bool:
            super()._goes_on(hidden, continue_probs)
            return len(continue_probs) < self.length

        def force(self, length: int) -> None:
            self.length = length

    session = Forced(model, prompt, params, **SETTINGS)
    return session, session.force


def _accepting(num_accepted: int) -> Any:
    from hambench.methods.common.acceptance import Accepted

    return lambda target_ids, drafted: Accepted(num_accepted, target_ids[num_accepted])


def _force_nothing(length: int) -> None:
    """Forces nothing: the length is forced elsewhere, or has only one value."""


def _byte_model(sizes: KernelShape) -> ByteModel:
    from hambench.models.sizes import ModelShape
    from hambench.roofline.byte_model import ByteModel

    return ByteModel(
        shape=ModelShape(
            num_layers=sizes.num_layers,
            hidden_size=sizes.hidden,
            intermediate_size=sizes.intermediate,
            num_heads=sizes.heads,
            num_kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            vocab_size=sizes.vocabulary,
            tie_embeddings=True,
        )
    )


def _target(llama: LanguageModel, sizes: KernelShape) -> TargetModel:
    from hambench.models.target import ModelIdentity, TargetModel

    identity = ModelIdentity(
        name=sizes.name,
        source="random weights",
        sha256="",
        architecture="llama",
        dtype=str(llama.dtype).removeprefix("torch."),
    )
    return TargetModel(
        name=sizes.name,
        llama=llama,
        tokenizer=None,
        eos_ids=frozenset(),
        context_length=sizes.capacity,
        identity=identity,
    )
