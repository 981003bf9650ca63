"""Trains through merged inputs, over the whole base or as many of its layers as an objective needs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hambench.methods.hamburger.training.merged_forward import FusedBatch
from hambench.methods.hamburger.training.objectives import BatchLesson
from hambench.methods.hamburger.training.vocabulary import Shortlist

if TYPE_CHECKING:
    from hambench.methods.hamburger.training.lessons import Lessons
    from hambench.methods.hamburger.training.trainer import Trainer

BatchMaker = Callable[[Sequence[int], "random.Random | None"], tuple[FusedBatch, "BatchLesson | None"]]
"""Builds a batch from indices of sequences, cuts segments with the random generator, and adds the base's lesson."""


def fused_stage(
    run: Trainer,
    train: Sequence[int],
    batch_of: BatchMaker,
    lengths: Sequence[int],
    *,
    epochs: float,
    is_reading: bool = False,
    shortlist: Shortlist | None = None,
) -> None:
    """Trains the student over batches of sequences of similar length.

    Args:
        run: Run whose student to train.
        train: Sequences to draw from.
        batch_of: Builds a batch from sequences.
        lengths: Number of tokens of each sequence.
        epochs: Passes over ``train``, unless the run's options give steps.
        is_reading: Train as :func:`reader_stage` does: no further than its objective needs.
        shortlist: The part of the vocabulary over which ``reader`` compares distributions; by default all.
    """
    recipe, accelerator = run.recipe, run.accelerator
    per_step = recipe.batch_size * recipe.accumulate * accelerator.num_processes
    total = max(1, math.ceil(epochs * len(train) / per_step))
    asked = run.options.steps_of("reader" if is_reading else "fused")
    if asked is not None:
        total = asked
    trained = [p for p in run.student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        _parameter_groups(run),
        lr=recipe.graft_lr,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    student = accelerator.prepare_model(run.student)
    run.restore(optimizer)
    student.train()
    while run.step < total and not run.out_of_time():
        rng = random.Random(f"step {run.options.seed} {run.step}")
        for micro in range(recipe.accumulate):
            # every process draws the same list of batches and takes its own share
            drawn = _draw(train, recipe.batch_size * accelerator.num_processes, rng, lengths)
            mine = drawn[accelerator.process_index :: accelerator.num_processes]
            batch, lesson = batch_of(mine, rng)
            batch, lesson = batch.to(accelerator.device), lesson and lesson.to(accelerator.device)
            with run.autocast():
                part = None if shortlist is None else shortlist.draw()
                losses = student(batch, lesson, is_reading=is_reading, vocabulary=part)
            torch.autograd.backward(losses["loss"] / recipe.accumulate)
            if micro == recipe.accumulate - 1:
                run.apply(optimizer, trained, run.step / total)
        run.record({name: float(value.detach()) for name, value in losses.items()}, optimizer)


def reader_stage(run: Trainer, lessons: Lessons, batch_of: BatchMaker | None = None) -> None:
    """Trains the embedder and the low-rank changes to read merged slots.

    Args:
        run: Run whose student to train.
        lessons: Lessons of the unmerged base.
        batch_of: Builds a batch from sequences, instead of ``lessons``.
    """
    recipe = run.recipe
    shortlist: Shortlist | None = None
    if recipe.reader_token_weight:
        head = run.base.get_output_embeddings().weight.detach().to(run.accelerator.device)
        shortlist = Shortlist.of(recipe, head, lessons.corpus)
    fused_stage(
        run,
        lessons.train,
        batch_of or lessons.batch_of,
        lessons.lengths,
        epochs=recipe.reader_epochs,
        is_reading=True,
        shortlist=shortlist,
    )


@torch.no_grad()
def held_out_losses(run: Trainer, held: Sequence[int], batch_of: BatchMaker) -> dict[str, float]:
    """Returns the mean losses over held-out responses, with the whole base and merged inputs."""
    run.student.eval()
    totals: dict[str, float] = {}
    size = run.recipe.batch_size
    chunks = [held[i : i + size] for i in range(0, len(held), size)]
    for chunk in chunks:
        batch, lesson = batch_of(chunk, None)
        batch, lesson = batch.to(run.accelerator.device), lesson and lesson.to(run.accelerator.device)
        with run.autocast():
            losses = run.student(batch, lesson)
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + float(value) / len(chunks)
    run.student.train()
    return {name: round(value, 4) for name, value in totals.items()}


def _parameter_groups(run: Trainer) -> list[dict[str, Any]]:
    recipe = run.recipe
    base = [p for p in run.student.model.parameters() if p.requires_grad]
    # the base learns to read the embedder, so the embedder trains at the base's pace if that is low-rank
    embedder = list(run.grafts.embedder.parameters())
    others = [p for n, p in run.grafts.named_parameters() if not n.startswith("embedder.")]
    merged_lr = recipe.base_lr if recipe.lora_rank else recipe.graft_lr
    return [
        {
            "params": base,
            "peak": recipe.base_lr,
            "weight_decay": 0.0 if recipe.lora_rank else recipe.weight_decay,
        },
        {"params": embedder, "peak": merged_lr},
        {"params": others, "peak": recipe.graft_lr},
    ]


def _draw(train: Sequence[int], num: int, rng: random.Random, lengths: Sequence[int]) -> list[int]:
    """Draws ``num`` sequences of similar length, to pad little: one at random and its neighbours in a random sample."""
    sample = sorted(rng.choices(train, k=max(num, 8 * num)), key=lambda i: lengths[i])
    start = rng.randrange(len(sample) - num + 1)
    return sample[start : start + num]
