"""Times each stage of training HAMburger weights, next to the machine's fastest matrix product.

The stages run as in ``hambench hamburger train``, a few steps each, over answers and windows made for the purpose. A
stage's operations are those that its result needs by arithmetic: padding, repeated work and conversions count as
nothing, so the share of the peak says how much of the machine training uses.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hambench.errors import ModelError

if TYPE_CHECKING:
    from hambench.engine.shape import LlamaShape
    from hambench.methods.hamburger.architecture import Architecture
    from hambench.methods.hamburger.training.lessons import Lessons
    from hambench.methods.hamburger.training.merged_forward import FusedBatch
    from hambench.methods.hamburger.training.objectives import BatchLesson
    from hambench.methods.hamburger.training.recipes import Recipe
    from hambench.methods.hamburger.training.trainer import Trainer

PEAK_ROWS = 2048
PEAK_SQUARE = 2048
"""Inputs and outputs of a product that is no layer's: layers of a small base are too small for a machine's peak."""
PEAK_CALLS = 5
"""Products of each shape in a repeat; the fastest counts."""


class Work(NamedTuple):
    """Work of one run of a stage."""

    units: int
    """Tokens or macro-steps."""
    operations: float
    """Multiplications and additions that they need."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagePace:
    """Seconds of one stage in each repeat."""

    stage: str
    unit: str
    """``tokens`` or ``macro-steps``."""
    count: int
    """Units in a repeat."""
    operations: float
    """Operations that they need, see :class:`Work`."""
    seconds: tuple[float, ...]

    @property
    def per_second(self) -> float:
        """Units per second in the median repeat."""
        return self.count / statistics.median(self.seconds)

    @property
    def operations_per_second(self) -> float:
        """Needed operations per second in the median repeat."""
        return self.operations / statistics.median(self.seconds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingBenchmark:
    """Everything that ``hambench bench training`` prints."""

    model: str
    cpu: str | None
    device: str
    threads: int
    peak: float
    """Operations per second of the fastest product, see :func:`matrix_peaks`, in the median repeat."""
    peak_dtype: str
    """Type in which it was the fastest."""
    paces: tuple[StagePace, ...]

    def peak_share(self, pace: StagePace) -> float:
        """Returns the share of the peak at which a stage's needed operations ran."""
        return pace.operations_per_second / self.peak


def benchmark_training(
    model: str,
    *,
    num_answers: int = 384,
    answer_tokens: int = 160,
    num_windows: int = 24,
    steps: int = 12,
    repeats: int = 3,
    threads: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainingBenchmark:
    """Runs every stage in turn, ``repeats`` times after a warm-up.

    Args:
        model: The base.
        num_answers: Prompts that the base answers.
        answer_tokens: Most tokens per answer.
        num_windows: Windows of installed text to read and to train on.
        steps: Optimiser steps of ``micro`` and ``student``; ``reader`` takes a quarter.
        repeats: Timings per stage.
        threads: Number of CPU threads; by default torch's choice.
        say: Receives a line before each repeat.
        clock: Returns seconds from any fixed point.

    Raises:
        ModelError: If the base has no tokenizer, or can't be trained.
    """
    import torch

    from hambench.machine.fingerprint import cpu_model
    from hambench.methods.hamburger.training.budget import RunOptions
    from hambench.methods.hamburger.training.recipes import SMALL
    from hambench.methods.hamburger.training.trainer import Trainer

    if threads is not None:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, SMALL, RunOptions(out=Path(folder)))
        trainer.model.to(trainer.accelerator.device)
        say("making data")
        stages = _Stages(trainer, num_answers, answer_tokens, num_windows, steps)
        works: dict[str, Work] = {}
        seconds: dict[str, list[float]] = {name: [] for name in stages.runs}
        peaks: dict[str, list[float]] = {}
        for repeat in range(repeats + 1):
            say("warm-up" if repeat == 0 else f"repeat {repeat} of {repeats}")
            for dtype, peak in matrix_peaks(trainer.shape, trainer.accelerator.device, clock=clock).items():
                peaks.setdefault(dtype, []).append(peak)
            for name, run in stages.runs.items():
                began = clock()
                works[name] = run()
                if repeat > 0:
                    seconds[name].append(clock() - began)
        medians = {dtype: statistics.median(each[1:]) for dtype, each in peaks.items()}
        peak_dtype = max(medians, key=medians.__getitem__)
        device = trainer.accelerator.device
    return TrainingBenchmark(
        model=model,
        cpu=cpu_model(),
        device=str(device),
        threads=torch.get_num_threads(),
        peak=medians[peak_dtype],
        peak_dtype=peak_dtype,
        paces=tuple(
            StagePace(
                stage=name,
                unit="macro-steps" if name in ("micro", "student") else "tokens",
                count=works[name].units,
                operations=works[name].operations,
                seconds=tuple(each),
            )
            for name, each in seconds.items()
        ),
    )


def matrix_peaks(
    shape: LlamaShape, device: object, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Returns operations per second of the fastest product of :func:`peak_shapes`, by type."""
    import torch

    fastest = {}
    for dtype in (torch.bfloat16, torch.float32):
        best = 0.0
        for inputs, outputs in peak_shapes(shape):
            rows = torch.randn(PEAK_ROWS, inputs).to(device, dtype)  # type: ignore[call-overload]
            weight = torch.randn(outputs, inputs).to(device, dtype)  # type: ignore[call-overload]
            for _ in range(PEAK_CALLS):
                began = clock()
                projected = torch.nn.functional.linear(rows, weight)
                # reading an element waits for a device
                projected[0, 0].item()
                best = max(best, 2 * PEAK_ROWS * inputs * outputs / max(clock() - began, 1e-9))
        fastest[str(dtype).removeprefix("torch.")] = best
    return fastest


def peak_shapes(shape: LlamaShape) -> list[tuple[int, int]]:
    """Returns inputs and outputs of the products that the peak is the fastest of: a layer's, and a large square."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    return [(hidden, inner), (inner, hidden), (hidden, hidden), (PEAK_SQUARE, PEAK_SQUARE)]


class _Stages:
    """The stages' runs over data that the constructor makes."""

    def __init__(
        self, trainer: Trainer, num_answers: int, answer_tokens: int, num_windows: int, steps: int
    ) -> None:
        import torch

        from hambench.engine.text import encode_text
        from hambench.methods.hamburger.base import tokenizer_of
        from hambench.methods.hamburger.data.prompts import build_prompts
        from hambench.methods.hamburger.data.self_distill import prompt_ids
        from hambench.methods.hamburger.data.windows import read_windows
        from hambench.methods.hamburger.training.lessons import Lessons
        from hambench.methods.hamburger.training.teacher import Corpus, study

        tokenizer, self.eos_ids = tokenizer_of(trainer.folder)
        if tokenizer is None:
            raise ModelError(f"{trainer.model_name} has no tokenizer, so there is nothing to train it on")
        self.trainer, self.answer_tokens, self.steps = trainer, answer_tokens, steps
        built = (prompt_ids(tokenizer, prompt) for prompt in build_prompts(4 * num_answers, seed=0))
        self.prompts = [ids for ids in built if 0 < len(ids) <= 512][:num_answers]
        # any text will do, so it is torch's, which is always there
        files = {"torch": sorted(Path(torch.__file__).parent.glob("nn/modules/*.py"))}
        self.windows = list(
            read_windows(
                lambda text: encode_text(text, tokenizer, add_special_tokens=False), num_windows, files=files
            )
        )
        layers = trainer.architecture.feature_layers
        with trainer.as_it_was() as base:
            studied = sorted(study(base, self.windows, feature_layers=layers), key=lambda pair: pair[0])
        corpus = Corpus.of(self.windows, [lesson for _, lesson in studied])
        train = list(range(len(self.windows)))
        self.lessons = Lessons(
            corpus, trainer.recipe, trainer.architecture.max_micro_steps, train=train, held=[]
        )
        self.runs = {
            "answering": self._answer,
            "reading": self._read,
            "micro": self._micro,
            "reader": self._reader,
            "student": self._student,
        }

    def _answer(self) -> Work:
        from hambench.methods.hamburger.data.self_distill import generate

        with self.trainer.as_it_was() as base:
            answers = [
                answer
                for _, answer in generate(
                    base, self.prompts, max_new_tokens=self.answer_tokens, eos_ids=self.eos_ids
                )
            ]
        count = sum(map(len, answers))
        # no token follows an answer's last one, so nothing has to read it
        read = count - len(answers) + sum(map(len, self.prompts))
        shape = self.trainer.shape
        return Work(
            count, read * forward_operations(shape) + count * head_operations(shape.vocab_size, shape)
        )

    def _read(self) -> Work:
        from hambench.methods.hamburger.training.teacher import study

        shape, rows = self.trainer.shape, 0
        with self.trainer.as_it_was() as base:
            for _, lesson in study(
                base, self.windows, feature_layers=self.trainer.architecture.feature_layers
            ):
                rows += len(lesson.entropies)
        count = sum(len(ids) for ids, _ in self.windows)
        return Work(
            count, count * forward_operations(shape) + rows * head_operations(shape.vocab_size, shape)
        )

    def _micro(self) -> Work:
        from hambench.methods.hamburger.training.micro_stage import micro_stage

        trainer, recipe = self.trainer, self.trainer.recipe
        epochs = self.steps * recipe.micro_batch / len(self.lessons.trained_rows())
        with _settings(trainer, dataclasses.replace(recipe, micro_epochs=epochs), self.steps):
            count = micro_stage(trainer, self.lessons)
        return Work(count, count * micro_operations(trainer.shape, trainer.architecture, recipe))

    def _reader(self) -> Work:
        from hambench.methods.hamburger.training.merge_stage import reader_stage
        from hambench.methods.hamburger.training.merged_forward import before_the_first_merged

        trainer, lessons = self.trainer, self.lessons
        tokens = slots = fixed = rows = 0

        def batch_of(
            indices: Sequence[int], rng: random.Random | None
        ) -> tuple[FusedBatch, BatchLesson | None]:
            nonlocal tokens, slots, fixed, rows
            batch, lesson = lessons.batch_of(indices, rng)
            tokens += sum(lessons.lengths[i] for i in indices)
            slots += int(batch.mask.sum())
            fixed += sum(before_the_first_merged(batch))
            rows += len(batch.sources)
            return batch, lesson

        with _settings(trainer, trainer.recipe, math.ceil(self.steps / 4)):
            reader_stage(trainer, lessons, batch_of)
        shape, recipe = trainer.shape, trainer.recipe
        operations = reading_operations(shape, trainer.student.reader_layers, slots, fixed)
        if recipe.reader_token_weight:
            # forward and towards the input: the head is frozen too
            operations += 2 * rows * head_operations(recipe.shortlist or shape.vocab_size, shape)
        return Work(tokens, operations)

    def _student(self) -> Work:
        from hambench.methods.hamburger.training.micro_stage import student_stage

        trainer, recipe = self.trainer, self.trainer.recipe
        with _settings(trainer, recipe, self.steps):
            # the last batch of a pool is a smaller one
            count = student_stage(trainer, self.lessons)
        slots = _mean_slots(self.lessons)
        prompt = self.windows[0][1] if self.windows else 0
        base = forward_operations(trainer.shape) * slots / max(1.0, slots - prompt)
        return Work(count, count * (base + micro_operations(trainer.shape, trainer.architecture, recipe)))


@contextmanager
def _settings(trainer: Trainer, recipe: Recipe, steps: int) -> Iterator[None]:
    """Gives a trainer a recipe and a number of steps while the context lasts, and starts its count anew."""
    before = trainer.recipe, trainer.options
    trainer.recipe, trainer.step = recipe, 0
    trainer.options = dataclasses.replace(trainer.options, steps=steps)
    try:
        yield
    finally:
        trainer.recipe, trainer.options = before


def _mean_slots(lessons: Lessons) -> float:
    """Returns the mean number of slots per sequence, at the middle of the recipe's thresholds."""
    thresholds = lessons.recipe.thresholds
    middle = None if thresholds is None else math.sqrt(math.prod(thresholds))
    return statistics.mean(
        lessons.corpus.sequence(i)[1] + len(lessons.segments(i, middle)) for i in lessons.train
    )


def layer_weights(shape: LlamaShape) -> int:
    """Returns the number of weights in the matrices of one layer."""
    heads = 2 * shape.num_heads + 2 * shape.num_kv_heads
    return shape.hidden_size * (heads * shape.head_dim + 3 * shape.intermediate_size)


def forward_operations(shape: LlamaShape) -> float:
    """Returns the operations of one token through all layers; attention's own products are left out."""
    return 2.0 * shape.num_layers * layer_weights(shape)


def reading_operations(shape: LlamaShape, num_layers: int, slots: int, fixed: int) -> float:
    """Returns the operations of training slots through ``num_layers``: forward, and backward towards the inputs.

    The base's weights are frozen, so they have no gradients, and nothing that is trained changes the ``fixed`` slots
    before a sequence's first merged one.
    """
    return (2 * slots - fixed) * num_layers * forward_operations(shape) / shape.num_layers


def head_operations(num_tokens: int, shape: LlamaShape) -> float:
    """Returns the operations of one row through a head of ``num_tokens``."""
    return 2.0 * num_tokens * shape.hidden_size


def micro_operations(shape: LlamaShape, architecture: Architecture, recipe: Recipe) -> float:
    """Returns the operations of training on one macro-step: forward, and both gradients of every weight.

    The last layer reads the features' rows but needs no result there. Of the head, only the second token's row counts,
    forward and towards its input: later ones depend on what the decoder gets right.
    """
    written = architecture.max_micro_steps - 1
    rows = architecture.num_features + written
    keys = 2 * shape.hidden_size * shape.num_kv_heads * shape.head_dim
    layers = (architecture.num_micro_layers - 1) * rows * layer_weights(shape)
    last = rows * keys + written * (layer_weights(shape) - keys)
    stop = (written + 1) * (2 * shape.hidden_size**2 + shape.hidden_size)
    head = 2 * head_operations(recipe.shortlist or shape.vocab_size, shape)
    return 3 * 2.0 * (layers + last + stop) + head
