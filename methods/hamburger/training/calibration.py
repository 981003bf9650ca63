"""Making P(continue) a probability: Platt's scale and shift of the stop head's logit, fitted on held-out responses.

Training makes the stop head sure of what the micro-step decoder knows by heart; on text it has not seen it is right
less often. Two numbers, fitted by maximum likelihood on answers that neither has seen, mend that without changing any
order of confidence, and are folded into the head's last layer.
"""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hambench.methods.hamburger.grafts import StopHead
from hambench.methods.hamburger.training.losses import micro_loss
from hambench.methods.hamburger.training.micro_stage import student_lesson

if TYPE_CHECKING:
    from hambench.methods.hamburger.training.lessons import Lessons
    from hambench.methods.hamburger.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was fitted, and what it did where it was fitted."""

    scale: float
    shift: float
    asked: int
    """Decisions it was fitted on."""
    loss_before: float
    """Mean negative log-likelihood of the decisions, nats."""
    loss_after: float


def fit(logits: Tensor, stops: Tensor) -> Calibration:
    """The scale and shift of ``logits`` ``[N]`` that make ``stops`` ``[N]`` (0 or 1) most likely.

    A scale below zero would turn the order round, so that it is kept above a hundredth.
    """
    logits, stops = logits.double(), stops.double()
    log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale, shift], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        return F.binary_cross_entropy_with_logits(log_scale.clamp(min=-4.6).exp() * logits + shift, stops)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    before = loss().item()
    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return Calibration(
        scale=log_scale.clamp(min=-4.6).exp().item(),
        shift=shift.item(),
        asked=len(logits),
        loss_before=round(before, 4),
        loss_after=round(loss().item(), 4),
    )


@torch.no_grad()
def fold(head: StopHead, calibration: Calibration) -> None:
    """Puts a calibration into a stop head's last layer."""
    last = head.layers[-1]
    last.weight.mul_(calibration.scale)  # type: ignore[operator]
    last.bias.mul_(calibration.scale).add_(calibration.shift)  # type: ignore[operator]


@torch.no_grad()
def decisions(
    run: Trainer, lessons: Lessons, sequences: list[int], rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Stop logits ``[N]`` where decoding would ask, and whether stopping is right, over fused responses."""
    run.student.eval()
    device = run.accelerator.device
    pool = student_lesson(run, lessons, sequences, rng)
    logits, stops = [], []
    for rows in torch.split(torch.arange(len(pool.features)), run.recipe.micro_batch):
        lesson = pool.rows(rows).to(device)
        with run.accelerator.autocast():
            out = micro_loss(
                run.grafts,
                lesson.features,
                lesson.targets,
                embedding=run.base.get_input_embeddings().weight,
                head=run.base.get_output_embeddings().weight,
            )
        logits.append(out.stop_logits[:, :-1][out.asked].float().cpu())
        stops.append(~out.right[:, 1:][out.asked].cpu())
    run.student.train()
    return torch.cat(logits), torch.cat(stops)


def calibrate(run: Trainer, lessons: Lessons, sequences: list[int]) -> Calibration | None:
    """Fits on ``sequences`` and folds the result into the run's stop head; ``None`` if it is never asked there."""
    rng = random.Random(f"calibration {run.options.seed}")
    logits, stops = decisions(run, lessons, sequences, rng)
    if not len(logits):
        return None
    fitted = fit(logits, stops)
    fold(run.grafts.stop_head, fitted)
    return fitted
