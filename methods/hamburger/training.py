"""Training from data to a checkpoint folder: stages, saves, resuming, the curve.

A run folder holds ``corpus.safetensors`` (the base's lessons, ``distil`` only), ``state.pt`` (the last save),
``curve.jsonl`` (a line every few steps) and, at the end of every save, the checkpoint itself.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hambench.checkpoint import weight_files
from hambench.errors import DataError, ModelError
from hambench.llama import LlamaShape
from hambench.methods.hamburger.architecture import Architecture, BaseReference
from hambench.methods.hamburger.base import LORA_SCALE, add_low_rank, load_base, low_rank_tensors
from hambench.methods.hamburger.checkpoint import Checkpoint, fingerprint, save, sizes_of
from hambench.methods.hamburger.fused import FusedBatch, collate
from hambench.methods.hamburger.grafts import Grafts
from hambench.methods.hamburger.initial import start_sane
from hambench.methods.hamburger.losses import micro_loss
from hambench.methods.hamburger.microstage import MicroBatches
from hambench.methods.hamburger.objectives import BatchLesson, Student
from hambench.methods.hamburger.recipes import Recipe
from hambench.methods.hamburger.segment import Segmented
from hambench.methods.hamburger.teacher import Corpus
from hambench.models import locate

_BUDGET_SHARES = {"micro": 0.4, "reader": 0.7, "fused": 1.0}
"""When each stage of ``distil`` ends, as a share of the minutes given."""
STATE_NAME, CURVE_NAME = "state.pt", "curve.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run needs beside its recipe and data."""

    out: Path
    seed: int = 0
    steps: int | None = None
    """Optimiser steps of each stage over fused inputs; by default the recipe's epochs."""
    minutes: float | None = None
    """Wall-clock budget of the whole run; whichever limit comes first ends it."""
    save_minutes: float = 5.0
    resume: bool = False
    held_out_share: float = 0.05
    progress: bool = False


def split_held_out(num: int, share: float, *, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out, before anything is replicated; the same for the same seed.

    Raises:
        DataError: If nothing is left to train on.
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
        model_name: The base: a name, folder or hub id.
        recipe: How to train.
        options: Where, how long.
        architecture: By default the recipe's, for this base.
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
        from accelerate.utils import DistributedDataParallelKwargs, set_seed

        set_seed(options.seed)
        self.recipe, self.options = recipe, options
        on_cpu = not torch.cuda.is_available()
        self.accelerator = Accelerator(
            mixed_precision="bf16",
            cpu=on_cpu,
            # the stage over the first layers gives the grafts behind them no gradient
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
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
        student_model: nn.Module = self.model
        if recipe.lora_rank:
            first = self.architecture.feature_layers[0] + 1
            student_model = add_low_rank(
                self.model, recipe.lora_rank, num_layers=first if recipe.adapt_first_layers_only else None
            )
        self.student = Student(student_model, self.grafts, recipe)
        self.began = self._saved = time.monotonic()
        self.step = 0
        self._optimizer_state: dict[str, Any] | None = None
        self.stage = "fused"
        if recipe.objective == "distil":
            self.stage = "micro" if recipe.micro_epochs else "reader"

    @property
    def base(self) -> Any:
        """The transformers model, adapters inside it."""
        return self.model

    def train_segmented(self, rows: Sequence[Segmented], *, replication: Sequence[int] | None = None) -> None:
        """The published objective over a segmented data set; ``replication`` repeats rows that are trained on."""
        train, held = split_held_out(len(rows), self.options.held_out_share, seed=self.options.seed)
        # only now, so that no copy of a held-out row is ever trained on
        train = [i for i in train for _ in range(replication[i] if replication else 1)]

        def batch_of(
            indices: Sequence[int], rng: random.Random | None
        ) -> tuple[FusedBatch, BatchLesson | None]:
            chosen = [(rows[i].ids, rows[i].prompt_tokens, rows[i].segments) for i in indices]
            return collate(chosen, self.architecture.max_micro_steps), None

        self._load_state()
        self._fused_stage(train, held, batch_of, [len(row.ids) for row in rows])

    def train_corpus(self, corpus: Corpus, *, replication: Sequence[int] | None = None) -> None:
        """The distilling objective over the base's lessons; see :meth:`train_segmented`."""
        train, held = split_held_out(
            corpus.num_sequences, self.options.held_out_share, seed=self.options.seed
        )
        train = [i for i in train for _ in range(replication[i] if replication else 1)]
        batches = MicroBatches(corpus, self.architecture.max_micro_steps)
        sample = torch.randperm(corpus.num_rows)[:4096]
        spread = corpus.features[sample].float().std(0).clamp(min=1e-3)

        def batch_of(
            indices: Sequence[int], rng: random.Random | None
        ) -> tuple[FusedBatch, BatchLesson | None]:
            batch = collate([self._cut(corpus, i, rng) for i in indices], self.architecture.max_micro_steps)
            rows = corpus.row_offsets[torch.tensor(indices)][batch.sources[:, 0]] + batch.starts
            return batch, BatchLesson(batches.features(rows), spread, batches.targets(rows))

        self._load_state()
        if self.stage == "micro":
            self._micro_stage(corpus, batches, train, spread)
            self.stage, self.step = "reader", 0
        lengths = corpus.offsets.diff().tolist()
        if self.stage == "reader":
            if self.recipe.reader_epochs:
                self._fused_stage(train, [], batch_of, lengths)
            self.stage, self.step, self._optimizer_state = "fused", 0, None
        self._fused_stage(train, held, batch_of, lengths)

    def _cut(self, corpus: Corpus, index: int, rng: random.Random | None) -> tuple[list[int], int, list[int]]:
        """A sequence with segments; a threshold of its own if there is an ``rng`` and the recipe says so."""
        ids, prompt = corpus.sequence(index)
        values = corpus.entropies[corpus.row_offsets[index] : corpus.row_offsets[index + 1]].tolist()
        strategy = self.recipe.strategy
        if rng is not None and self.recipe.thresholds is not None:
            low, high = map(math.log, self.recipe.thresholds)
            strategy = dataclasses.replace(strategy, threshold=math.exp(rng.uniform(low, high)))
        return ids.tolist(), prompt, strategy.cut(values)

    def _micro_stage(
        self, corpus: Corpus, batches: MicroBatches, train: Sequence[int], spread: Tensor
    ) -> None:
        grafts, recipe = self.grafts.to(self.accelerator.device), self.recipe
        rows = torch.cat([torch.arange(*corpus.row_offsets[i : i + 2].tolist()) for i in train])
        rows = rows[batches.remaining[rows] > 1]
        steps = max(1, math.ceil(recipe.micro_epochs * len(rows) / recipe.micro_batch))
        parameters = [p for n, p in grafts.named_parameters() if not n.startswith("embedder.")]
        optimizer = torch.optim.AdamW(
            parameters, lr=recipe.graft_lr, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        embedding = self.base.get_input_embeddings().weight.detach().to(self.accelerator.device)
        head = self.base.get_output_embeddings().weight.detach().to(self.accelerator.device)
        for chosen in self._micro_draws(rows, steps):
            features = batches.features(chosen).float()
            features += recipe.feature_noise * spread * torch.randn(features.shape)
            lesson = BatchLesson(features.bfloat16(), spread, batches.targets(chosen)).to(embedding.device)
            with self.accelerator.autocast():
                out = micro_loss(grafts, lesson.features, lesson.targets, embedding=embedding, head=head)
            tokens, stop = out.tokens / out.num_tokens.clamp(min=1), out.stop / out.num_stops.clamp(min=1)
            self.accelerator.backward(tokens + recipe.stop_weight * stop)
            self._apply(optimizer, parameters, self.step / steps)
            self._record({"stage": 0.0, "micro": float(tokens.detach()), "stop": float(stop.detach())})

    def _micro_draws(self, rows: Tensor, steps: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.options.seed)
        waiting = rows[:0]
        for number in range(steps):
            while len(waiting) < self.recipe.micro_batch:
                waiting = torch.cat([waiting, rows[torch.randperm(len(rows), generator=generator)]])
            chosen, waiting = waiting[: self.recipe.micro_batch], waiting[self.recipe.micro_batch :]
            # a resumed run passes over what it has seen
            if number >= self.step and not self._out_of_time():
                yield chosen

    def _fused_stage(
        self,
        train: Sequence[int],
        held: Sequence[int],
        batch_of: Callable[[Sequence[int], random.Random | None], tuple[FusedBatch, BatchLesson | None]],
        lengths: Sequence[int],
    ) -> None:
        recipe, accelerator = self.recipe, self.accelerator
        per_step = recipe.batch_size * recipe.accumulate * accelerator.num_processes
        reading = self.stage == "reader"
        epochs = recipe.reader_epochs if reading else recipe.epochs
        total = max(1, math.ceil(epochs * len(train) / per_step))
        if self.options.steps is not None:
            total = self.options.steps
        trained = [p for p in self.student.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            self._parameter_groups(), lr=recipe.graft_lr, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        student = accelerator.prepare_model(self.student)
        if self._optimizer_state is not None:
            optimizer.load_state_dict(self._optimizer_state)
        student.train()
        while self.step < total and not self._out_of_time():
            rng = random.Random(f"step {self.options.seed} {self.step}")
            for micro in range(recipe.accumulate):
                # every process draws the same batch list and takes its own share
                drawn = _draw(train, recipe.batch_size * accelerator.num_processes, rng, lengths)
                mine = drawn[accelerator.process_index :: accelerator.num_processes]
                batch, lesson = batch_of(mine, rng)
                batch, lesson = batch.to(accelerator.device), lesson and lesson.to(accelerator.device)
                with accelerator.autocast():
                    losses = student(batch, lesson, first_layers_only=reading)
                accelerator.backward(losses["loss"] / recipe.accumulate)
                if micro == recipe.accumulate - 1:
                    self._apply(optimizer, trained, self.step / total)
            self._record(
                {
                    "stage": 1.0 if reading else 2.0,
                    **{name: float(value.detach()) for name, value in losses.items()},
                },
                optimizer,
            )
        if not reading:
            self._finish(held, batch_of, optimizer)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        recipe = self.recipe
        base = [p for p in self.student.model.parameters() if p.requires_grad]
        # the embedder learns to be read by the base, so it goes at the base's pace when that is low-rank
        embedder = list(self.grafts.embedder.parameters())
        others = [p for n, p in self.grafts.named_parameters() if not n.startswith("embedder.")]
        merged_lr = recipe.base_lr if recipe.lora_rank else recipe.graft_lr
        return [
            {
                "params": base,
                "peak": recipe.base_lr,
                "lr": recipe.base_lr,
                "weight_decay": 0.0 if recipe.lora_rank else recipe.weight_decay,
            },
            {"params": embedder, "peak": merged_lr, "lr": merged_lr},
            {"params": others, "peak": recipe.graft_lr, "lr": recipe.graft_lr},
        ]

    def _apply(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], done: float) -> None:
        recipe = self.recipe
        if self.options.minutes is not None and self.stage == "fused":
            done = max(done, (time.monotonic() - self.began) / (60 * self.options.minutes))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        share = recipe.final_lr_share + (1 - recipe.final_lr_share) * cosine
        warm = min(1.0, (self.step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
        for group in optimizer.param_groups:
            group["lr"] = group.get("peak", recipe.graft_lr) * share * warm
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def _out_of_time(self) -> bool:
        """Whether the stage has used up its share of the budget."""
        minutes = self.options.minutes
        share = _BUDGET_SHARES[self.stage] if self.recipe.objective == "distil" else 1.0
        return minutes is not None and time.monotonic() - self.began > 60 * minutes * share

    def _record(self, values: dict[str, float], optimizer: torch.optim.Optimizer | None = None) -> None:
        """A line of the curve, and a save when one is due."""
        if not self.accelerator.is_main_process:
            return
        if self.step % 10 == 0 or self.step == 1:
            elapsed = round(time.monotonic() - self.began, 1)
            line = {"step": self.step, "seconds": elapsed, **{n: round(v, 4) for n, v in values.items()}}
            with (self.options.out / CURVE_NAME).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            if self.options.progress:
                shown = "  ".join(f"{name} {value:g}" for name, value in line.items())
                print(shown, flush=True)
        if time.monotonic() - self._saved > 60 * self.options.save_minutes:
            self._save(optimizer)

    def _finish(
        self,
        held: Sequence[int],
        batch_of: Callable[[Sequence[int], random.Random | None], tuple[FusedBatch, BatchLesson | None]],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Held-out losses, the last save, the checkpoint."""
        if not self.accelerator.is_main_process:
            return
        self.held_out = self.evaluate(held, batch_of) if held else {}
        self._save(optimizer)

    @torch.no_grad()
    def evaluate(
        self,
        held: Sequence[int],
        batch_of: Callable[[Sequence[int], random.Random | None], tuple[FusedBatch, BatchLesson | None]],
    ) -> dict[str, float]:
        """Mean losses over the held-out responses."""
        self.student.eval()
        totals: dict[str, float] = {}
        size = self.recipe.batch_size
        chunks = [held[i : i + size] for i in range(0, len(held), size)]
        for chunk in chunks:
            batch, lesson = batch_of(chunk, None)
            batch, lesson = batch.to(self.accelerator.device), lesson and lesson.to(self.accelerator.device)
            with self.accelerator.autocast():
                losses = self.student(batch, lesson)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + float(value) / len(chunks)
        self.student.train()
        return {name: round(value, 4) for name, value in totals.items()}

    def _trainable(self) -> dict[str, Tensor]:
        base = {f"model.{n}": p for n, p in self.student.model.named_parameters() if p.requires_grad}
        return {**base, **{f"grafts.{n}": p for n, p in self.grafts.named_parameters()}}

    def _save(self, optimizer: torch.optim.Optimizer | None) -> None:
        """State to resume from, then the checkpoint as it stands; an interruption loses what came after."""
        state = {
            "stage": self.stage,
            "step": self.step,
            "seconds": time.monotonic() - self.began,
            "trained": {name: p.detach().cpu() for name, p in self._trainable().items()},
            "optimizer": None if optimizer is None else optimizer.state_dict(),
        }
        partial = self.options.out / f"{STATE_NAME}.partial"
        torch.save(state, partial)
        partial.replace(self.options.out / STATE_NAME)
        save(self.checkpoint(), self.options.out)
        self._saved = time.monotonic()

    def _load_state(self) -> None:
        path = self.options.out / STATE_NAME
        if not self.options.resume:
            if path.is_file():
                raise ModelError(f"{self.options.out} holds a training run; give --resume to go on with it")
            return
        if not path.is_file():
            raise ModelError(f"{self.options.out} holds no training run to resume")
        state = torch.load(path, map_location="cpu", weights_only=True)
        trained = self._trainable()
        if set(trained) != set(state["trained"]):
            raise ModelError(f"{path} belongs to a run with another recipe or base")
        with torch.no_grad():
            for name, value in state["trained"].items():
                trained[name].copy_(value)
        self.stage, self.step = state["stage"], state["step"]
        self._optimizer_state = state["optimizer"]

    def checkpoint(self) -> Checkpoint:
        """The weights as they stand, in bfloat16 unless the base is in float32."""
        dtype = (
            torch.bfloat16 if self.model.dtype != torch.float32 or self.recipe.lora_rank else torch.float32
        )
        tensors = {name: t.detach().to(dtype).cpu() for name, t in self.grafts.state_dict().items()}
        if self.recipe.lora_rank:
            tensors |= {n: t.to(dtype) for n, t in low_rank_tensors(self.student.model).items()}
        else:
            base = {f"base.{n}": t.detach().to(dtype).cpu() for n, t in self.model.state_dict().items()}
            if self.shape.tie_embeddings:
                base.pop("base.lm_head.weight", None)
            tensors |= base
        return Checkpoint(
            architecture=self.architecture,
            base=BaseReference(
                name=self.model_name,
                fingerprint=fingerprint(weight_files(self.folder)),
                sizes=sizes_of(self.shape),
            ),
            base_weights="lora" if self.recipe.lora_rank else "full",
            lora_scale=LORA_SCALE,
            tensors=tensors,
            provenance={
                "recipe": dataclasses.asdict(self.recipe),
                "seed": self.options.seed,
                "stage": self.stage,
                "steps": self.step,
                "held_out": getattr(self, "held_out", {}),
            },
        )


def _draw(train: Sequence[int], num: int, rng: random.Random, lengths: Sequence[int]) -> list[int]:
    """``num`` sequences of like length: a random one and its neighbours in a random sample, to pad little."""
    sample = sorted(rng.choices(train, k=max(num, 8 * num)), key=lambda i: lengths[i])
    start = rng.randrange(len(sample) - num + 1)
    return sample[start : start + num]


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of ``number`` that is at most ``most``."""
    return max(d for d in range(1, most + 1) if number % d == 0)
