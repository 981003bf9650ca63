"""Trains the micro-step decoder and the stop head from fixed features, without a backward pass through the base.

There are two stages. ``micro`` uses the unmerged base's cached features; ``student`` uses those of the base that reads
merged inputs, and recomputes them for a few sequences at a time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hambench.methods.hamburger.training.losses import micro_loss
from hambench.methods.hamburger.training.merged_forward import base_features
from hambench.methods.hamburger.training.objectives import BatchLesson
from hambench.methods.hamburger.training.vocabulary import Shortlist

if TYPE_CHECKING:
    from hambench.methods.hamburger.training.lessons import Lessons
    from hambench.methods.hamburger.training.trainer import Trainer

_POOL_SEQUENCES = 24
"""Sequences to read at once in ``student``: enough for several steps and a shuffle among them."""


def micro_stage(run: Trainer, lessons: Lessons) -> int:
    """Trains on macro-steps that start at every response token; returns their number."""
    recipe = run.recipe
    rows = lessons.trained_rows()
    total = max(1, math.ceil(recipe.micro_epochs * len(rows) / recipe.micro_batch))
    asked = run.options.steps_of("micro")
    if asked is not None:
        total = asked
    noise = torch.Generator().manual_seed(run.options.seed)
    steps = _Steps(run, lessons, recipe.graft_lr)
    for number, chosen in enumerate(_draws(rows, recipe.micro_batch, total, seed=run.options.seed)):
        if run.out_of_time():
            break
        # a resumed run skips the batches it has seen
        if number >= run.step:
            lesson = lessons.lesson(chosen)
            features = lesson.features.float()
            features += recipe.feature_noise * lessons.spread * torch.randn(features.shape, generator=noise)
            lesson.features = features.bfloat16()
            steps.take(lesson, run.step / total)
    return steps.num_macro_steps


def student_stage(run: Trainer, lessons: Lessons) -> int:
    """Trains on the macro-steps of merged sequences, with the base as trained so far; returns their number."""
    recipe = run.recipe
    total = max(1, math.ceil(recipe.student_epochs * len(lessons.trained_rows()) / recipe.micro_batch))
    asked = run.options.steps_of("student")
    if asked is not None:
        total = asked
    rng = random.Random(f"student {run.options.seed} {run.step}")
    steps = _Steps(run, lessons, recipe.student_lr)
    while run.step < total and not run.out_of_time():
        chosen = rng.sample(lessons.train, min(_POOL_SEQUENCES, len(lessons.train)))
        pool = student_lesson(run, lessons, chosen, rng)
        order = torch.randperm(len(pool.features))
        for part in torch.split(order, recipe.micro_batch):
            if run.step < total and not run.out_of_time():
                steps.take(pool.rows(part), run.step / total)
    return steps.num_macro_steps


@torch.no_grad()
def student_lesson(
    run: Trainer, lessons: Lessons, chosen: list[int], rng: random.Random | None
) -> BatchLesson:
    """Returns the macro-steps of some sequences with the features that the base computes from merged inputs."""
    parts = []
    by_length = sorted(chosen, key=lambda i: lessons.lengths[i])
    size = run.recipe.batch_size
    for first in range(0, len(by_length), size):
        batch, lesson = lessons.batch_of(by_length[first : first + size], rng)
        with run.autocast():
            features = base_features(
                run.student.model, run.grafts, batch.to(run.accelerator.device), run.student.gate
            )
        lesson.features = features.to(torch.bfloat16).cpu()
        parts.append(lesson)
    return BatchLesson.joined(parts)


class _Steps:
    """Runs optimiser steps on the micro-step decoder and the stop head."""

    def __init__(self, run: Trainer, lessons: Lessons, peak: float) -> None:
        self.run, recipe = run, run.recipe
        self.num_macro_steps = 0
        self.grafts = run.grafts.to(run.accelerator.device).train()
        self.parameters = [p for n, p in self.grafts.named_parameters() if not n.startswith("embedder.")]
        self.optimizer = torch.optim.AdamW(
            [{"params": self.parameters, "peak": peak}],
            lr=peak,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        run.restore(self.optimizer)
        self.embedding = run.base.get_input_embeddings().weight.detach().to(run.accelerator.device)
        self.head = run.base.get_output_embeddings().weight.detach().to(run.accelerator.device)
        self.shortlist = Shortlist.of(recipe, self.head, lessons.corpus)

    def take(self, lesson: BatchLesson, done: float) -> None:
        """Takes one step on M macro-steps."""
        run = self.run
        self.num_macro_steps += len(lesson.features)
        lesson = lesson.to(run.accelerator.device)
        with run.autocast():
            out = micro_loss(
                self.grafts,
                lesson.features,
                lesson.targets,
                embedding=self.embedding,
                head=self.head,
                shortlist=self.shortlist,
            )
        tokens, stop = out.tokens / out.num_tokens.clamp(min=1), out.stop / out.num_stops.clamp(min=1)
        torch.autograd.backward(tokens + run.recipe.stop_weight * stop)
        run.apply(self.optimizer, self.parameters, done)
        second = out.right[:, 1].float().sum() / lesson.targets.valid[:, 1].float().sum().clamp(min=1)
        run.record(
            {"micro": float(tokens.detach()), "stop": float(stop.detach()), "second": float(second)},
            self.optimizer,
        )


def _draws(rows: Tensor, size: int, num_steps: int, *, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    waiting = rows[:0]
    for _ in range(num_steps):
        while len(waiting) < size:
            waiting = torch.cat([waiting, rows[torch.randperm(len(rows), generator=generator)]])
        chosen, waiting = waiting[:size], waiting[size:]
        yield chosen
