"""One training run: its stages in order, its saves, and the checkpoint it writes."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hambench.engine.shape import LlamaShape
from hambench.errors import DataError, ModelError
from hambench.methods.hamburger.architecture import Architecture, BaseReference, BaseWeights
from hambench.methods.hamburger.base import (
    LORA_SCALE,
    add_low_rank,
    gate_low_rank,
    load_base,
    low_rank_tensors,
)
from hambench.methods.hamburger.checkpoint import Checkpoint, digest, fingerprint, load, save, sizes_of
from hambench.methods.hamburger.data.corpus_file import CorpusNotes, describe
from hambench.methods.hamburger.data.segment import Segmented
from hambench.methods.hamburger.grafts import Grafts
from hambench.methods.hamburger.training.budget import Clock, RunOptions, learning_rate_share
from hambench.methods.hamburger.training.calibration import calibrate
from hambench.methods.hamburger.training.initial import start_from, start_sane
from hambench.methods.hamburger.training.lessons import Lessons
from hambench.methods.hamburger.training.merge_stage import fused_stage, held_out_losses, reader_stage
from hambench.methods.hamburger.training.merged_forward import FusedBatch, collate
from hambench.methods.hamburger.training.micro_stage import micro_stage, student_stage
from hambench.methods.hamburger.training.objectives import BatchLesson, Student
from hambench.methods.hamburger.training.recipes import Recipe, Stage
from hambench.methods.hamburger.training.run_folder import RunFolder
from hambench.methods.hamburger.training.teacher import Corpus
from hambench.methods.hamburger.weights_folder import CONFIG_NAME, read_config
from hambench.models.safetensors import weight_files
from hambench.models.target import locate

__all__ = ["RunOptions", "Trainer", "split_held_out"]


def split_held_out(num: int, share: float, *, seed: int) -> tuple[list[int], list[int]]:
    """Draws indices to train on and to hold out, before anything is replicated; equal seeds give equal splits.

    Raises:
        DataError: If nothing remains to train on.
    """
    order = list(range(num))
    random.Random(f"held out {seed}").shuffle(order)
    held = min(max(1, round(share * num)), num - 1) if share > 0 else 0
    if num - held < 1:
        raise DataError(f"nothing to train on: {num} responses")
    return sorted(order[held:]), sorted(order[:held])


class Trainer:
    """One run on one base.

    Args:
        model_name: The base, as a name, folder or hub id.
        recipe: How to train.
        options: Budget, seed, output folder and the like.
        architecture: Architecture of the grafts; by default the recipe's for this base.
    """

    def __init__(
        self,
        model_name: str,
        recipe: Recipe,
        options: RunOptions,
        *,
        architecture: Architecture | None = None,
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import is_initialized
        from accelerate.utils import DistributedDataParallelKwargs, set_seed

        set_seed(options.seed)
        self.recipe, self.options = recipe, options
        self.accelerator = Accelerator(
            # Accelerate keeps one precision per process, the first asked for; without a choice here it would be that
            # of `accelerate config`, which training does not follow
            mixed_precision=None if is_initialized() else "no",
            cpu=not torch.cuda.is_available(),
            # the stage over the first layers gives no gradient to the grafts after them
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        if self.accelerator.mixed_precision not in ("no", "bf16"):
            raise ModelError(
                f"training runs in bf16, but Accelerate was set to {self.accelerator.mixed_precision!r} in this "
                "process: train in a process of its own"
            )
        self.model_name = model_name
        self.folder, _, _ = locate(model_name)
        self.model = load_base(self.folder, full=recipe.lora_rank == 0)
        self.shape = LlamaShape.from_hf(self.model.config)
        self.architecture = architecture or Architecture.for_base(
            self.shape.num_layers,
            merge_heads=largest_divisor(self.shape.hidden_size, 64),
            num_micro_layers=recipe.num_micro_layers,
            merge_residual=recipe.merge_residual,
            micro_norm=recipe.micro_norm,
        )
        self.grafts = Grafts(self.shape, self.architecture)
        if recipe.start_from_base:
            start_sane(self.grafts, {n: t.detach() for n, t in self.model.state_dict().items()})
        self.student = self._student()
        if options.start_from is not None:
            start_from(load(options.start_from), self.grafts, self.student.model, self.reference())
        self._started_from = None if options.start_from is None else digest(options.start_from)
        self.clock = Clock(options.minutes)
        self.files = RunFolder(options.out)
        self._saved = time.monotonic()
        self._stage, self.step = 0, 0
        self._optimizer_state: dict[str, Any] | None = None
        self.held_out: dict[str, float] = {}
        self.data: dict[str, int | str] = {}
        """Counts and identity of the training data, for the provenance."""
        self.was_finished = False
        """Whether the run had ended before it was resumed, so that nothing has changed."""
        self._steps_by_stage: dict[str, int] = {}
        self._calibration: dict[str, Any] = {}

    def _student(self) -> Student:
        recipe = self.recipe
        if not recipe.lora_rank:
            return Student(self.model, self.grafts, recipe)
        first = self.architecture.feature_layers[0] + 1
        num_layers = first if recipe.adapt_first_layers_only else None
        adapted = add_low_rank(self.model, recipe.lora_rank, num_layers=num_layers)
        gate = gate_low_rank(adapted) if recipe.adapt_fused_slots_only else None
        return Student(adapted, self.grafts, recipe, gate)

    @property
    def base(self) -> Any:
        """The transformers model, including adapters."""
        return self.model

    def autocast(self) -> torch.autocast:
        """Returns the context in which products run in bfloat16, whatever precision the process has otherwise."""
        return torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16)

    @contextmanager
    def as_it_was(self) -> Iterator[Any]:
        """Provides the base as it was before any training, without its adapters, which may come from another run."""
        with self.student.model.disable_adapter() if self.recipe.lora_rank else nullcontext():  # type: ignore[operator]
            yield self.model.eval()

    @property
    def stage(self) -> str:
        """Name of the current stage."""
        return self.recipe.stages[self._stage][0]

    def train_segmented(self, rows: Sequence[Segmented], *, replication: Sequence[int] | None = None) -> None:
        """Trains the published objective over a segmented data set; ``replication`` repeats training rows."""
        train, held = split_held_out(len(rows), self.options.held_out_share, seed=self.options.seed)
        # replicate only after the split, so that no copy of a held-out row is trained on
        train = [i for i in train for _ in range(replication[i] if replication else 1)]

        def batch_of(
            indices: Sequence[int], rng: random.Random | None
        ) -> tuple[FusedBatch, BatchLesson | None]:
            chosen = [(rows[i].ids, rows[i].prompt_tokens, rows[i].segments) for i in indices]
            return collate(chosen, self.architecture.max_micro_steps), None

        is_new, before = not self._load_state(), self.step
        fused_stage(self, train, batch_of, [len(row.ids) for row in rows], epochs=self.recipe.epochs)
        if not is_new and self.step == before and self._has_ended(held):
            return
        if self.accelerator.is_main_process:
            self.held_out = held_out_losses(self, held, batch_of) if held else {}
            self.save(None)

    def train_corpus(self, corpus: Corpus, notes: CorpusNotes) -> None:
        """Trains the distilling objective, stage by stage, over the base's lessons.

        Raises:
            ModelError: If a run is resumed that learned from other lessons.
        """
        lessons = Lessons(
            corpus,
            self.recipe,
            self.architecture.max_micro_steps,
            train=notes.train(corpus.num_sequences, written_times=self.recipe.written_times),
            held=notes.held_out,
            written=notes.written(corpus.num_sequences),
        )
        self.data = describe(corpus, notes)
        is_new = not self._load_state()
        before = self._stage, self.step
        self.accelerator.wait_for_everyone()
        if is_new and self.accelerator.is_main_process:
            # a run that is stopped before its next save has used its time for data all the same
            self._save_state(None)
        for number in range(self._stage, len(self.recipe.stages)):
            if number > self._stage:
                self._stage, self.step, self._optimizer_state = number, 0, None
            if self.recipe.cut_by_stop_head and (self._started_from or self._has_finished("micro")):
                lessons.cut_by_stop_head(self.grafts)
            self._run_stage(lessons)
            if not is_new and (number, self.step) == before and self._has_ended(lessons.held):
                return
            self._steps_by_stage[self.stage] = self.step
            if self.accelerator.is_main_process:
                self.save(None)
        if self.accelerator.is_main_process:
            self._finish(lessons)

    def _has_ended(self, held: Sequence[int]) -> bool:
        """Finds out whether the folder has the weights of the last stage's last step, with their held-out losses."""
        path = self.options.out
        config = read_config(path) if (path / CONFIG_NAME).is_file() else {}
        provenance = config.get("provenance")
        told = provenance if isinstance(provenance, dict) else {}
        steps = {**self._steps_by_stage, self.stage: self.step}
        is_last = self._stage == len(self.recipe.stages) - 1
        # saves on the way have no figures yet
        self.was_finished = is_last and told.get("steps") == steps and bool(told.get("held_out") or not held)
        if self.was_finished:
            self.held_out = told.get("held_out") or {}
        return self.was_finished

    @property
    def idle_stages(self) -> list[Stage]:
        """Stages that took no step, though more than none were asked for: their time was over when they began."""
        stages = [name for name, _ in self.recipe.stages]
        return [
            name for name in stages if not self._steps_by_stage.get(name) and self.options.steps_of(name) != 0
        ]

    def _has_finished(self, stage: str) -> bool:
        return any(name == stage for name, _ in self.recipe.stages[: self._stage])

    def _run_stage(self, lessons: Lessons) -> None:
        recipe = self.recipe
        if self.stage == "micro":
            micro_stage(self, lessons)
        elif self.stage == "student":
            student_stage(self, lessons)
        elif self.stage == "reader":
            reader_stage(self, lessons)
        else:
            fused_stage(self, lessons.train, lessons.batch_of, lessons.lengths, epochs=recipe.epochs)

    def _finish(self, lessons: Lessons) -> None:
        """Calibrates on half of the held-out sequences, computes the losses on the other half, writes the checkpoint.

        The resumable state stays as it was before the calibration, because a longer run must calibrate anew.
        """
        held = lessons.held
        if self.recipe.calibrate and len(held) > 1:
            fitted = calibrate(self, lessons, held[::2])
            self._calibration = {} if fitted is None else dataclasses.asdict(fitted)
            held = held[1::2]
        self.files.write_held_out(map(lessons.corpus.sequence, held))
        self.held_out = held_out_losses(self, held, lessons.batch_of) if held else {}
        save(self.checkpoint(), self.options.out)

    def out_of_time(self) -> bool:
        """True if the stage has used up its share of the budget."""
        return self.clock.is_past(self.recipe.stages[self._stage][1])

    def _stage_done(self) -> float:
        """Returns the completed share of the stage's time; 0 without a budget."""
        begins = self.recipe.stages[self._stage - 1][1] if self._stage else self.recipe.data_ends
        ends = self.recipe.stages[self._stage][1]
        return (self.clock.share - begins) / max(1e-9, ends - begins)

    def apply(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], done: float) -> None:
        """Takes an optimiser step; ``done`` is the completed share of the stage's steps."""
        done = max(done, self._stage_done())
        share = learning_rate_share(self.recipe, self.step, done)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
        nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Restores a new optimiser from the save that the run resumes from, once."""
        if self._optimizer_state is not None:
            optimizer.load_state_dict(self._optimizer_state)
            self._optimizer_state = None

    def record(self, values: dict[str, float], optimizer: torch.optim.Optimizer) -> None:
        """Appends a line to the curve, and saves if a save is due."""
        if not self.accelerator.is_main_process:
            return
        if self.step % 10 == 0 or self.step == 1:
            line = {
                "stage": self.stage,
                "step": self.step,
                "seconds": round(self.clock.seconds, 1),
                **{name: round(value, 4) for name, value in values.items()},
            }
            self.files.add_to_curve(line)
            if self.options.progress:
                print("  ".join(f"{name} {value}" for name, value in line.items()), flush=True)
        if time.monotonic() - self._saved > 60 * self.options.save_minutes:
            self.save(optimizer)

    def _trainable(self) -> dict[str, Tensor]:
        base = {f"model.{n}": p for n, p in self.student.model.named_parameters() if p.requires_grad}
        return {**base, **{f"grafts.{n}": p for n, p in self.grafts.named_parameters()}}

    def save(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Writes the resumable state, then the current checkpoint; an interruption loses only later work."""
        self._save_state(optimizer)
        save(self.checkpoint(), self.options.out)
        self._saved = time.monotonic()

    def _save_state(self, optimizer: torch.optim.Optimizer | None) -> None:
        self.files.save_state(
            self._trainable(),
            stage=self._stage,
            step=self.step,
            seconds=self.clock.seconds,
            optimizer=None if optimizer is None else optimizer.state_dict(),
            steps_by_stage=self._steps_by_stage,
            data=self.data,
        )

    def _load_state(self) -> bool:
        """Goes on from the last save if the run is resumed; returns whether it is."""
        state = self.files.load_state(self._trainable(), resume=self.options.resume)
        if state is not None:
            self._stage, self.step = state["stage"], state["step"]
            self._optimizer_state = state["optimizer"]
            self._steps_by_stage = state["steps_by_stage"]
            if state["data"] != self.data:
                raise ModelError(
                    f"{self.options.out} holds a run on other data ({state['data']}, now {self.data}); "
                    "resume it with the options that it was begun with"
                )
            self.clock.resume(state["seconds"])
        return state is not None

    def reference(self) -> BaseReference:
        """Returns the identity of the base."""
        return BaseReference(
            name=self.model_name,
            fingerprint=fingerprint(weight_files(self.folder)),
            sizes=sizes_of(self.shape),
        )

    def checkpoint(self) -> Checkpoint:
        """Returns the current weights, in bfloat16 unless the base is in float32."""
        dtype = (
            torch.bfloat16 if self.model.dtype != torch.float32 or self.recipe.lora_rank else torch.float32
        )
        tensors = {name: t.detach().to(dtype).cpu() for name, t in self.grafts.state_dict().items()}
        if self.recipe.lora_rank:
            tensors |= {n: t.to(dtype) for n, t in low_rank_tensors(self.student.model).items()}
            kind: BaseWeights = "fused_lora" if self.recipe.adapt_fused_slots_only else "lora"
        else:
            base = {f"base.{n}": t.detach().to(dtype).cpu() for n, t in self.model.state_dict().items()}
            if self.shape.tie_embeddings:
                base.pop("base.lm_head.weight", None)
            tensors |= base
            kind = "full"
        return Checkpoint(
            architecture=self.architecture,
            base=self.reference(),
            base_weights=kind,
            lora_scale=LORA_SCALE,
            tensors=tensors,
            provenance={
                "recipe": dataclasses.asdict(self.recipe),
                "seed": self.options.seed,
                "minutes": self.options.minutes,
                "steps_asked": self.options.steps,
                "seconds": round(self.clock.seconds),
                "facts": dict(self.options.facts),
                "start_from": self._started_from,
                "data": self.data,
                "stage": self.stage,
                "steps": {**self._steps_by_stage, self.stage: self.step},
                "calibration": self._calibration,
                "held_out": self.held_out,
            },
        )


def largest_divisor(number: int, most: int) -> int:
    """Returns the largest divisor of ``number`` that is at most ``most``."""
    return max(d for d in range(1, most + 1) if number % d == 0)
