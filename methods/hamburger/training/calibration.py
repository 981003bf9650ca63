"""Calibrates P(continue): fits Platt's scale and shift of the stop head's logit on held-out responses.

Training makes the stop head confident about text that the micro-step decoder has memorised; on new text it is right
less often. Two numbers fix that. They are fitted by maximum likelihood on answers that neither part was trained on,
keep the order of confidences, and are folded into the head's last layer.
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
    """Fitted scale and shift, with their effect on the decisions they were fitted on."""

    scale: float
    shift: float
    asked: int
    """Number of decisions in the fit."""
    loss_before: float
    """Mean negative log-likelihood of the decisions before the fit, in nats."""
    loss_after: float


def fit(logits: Tensor, stops: Tensor) -> Calibration:
    """Returns the scale and shift of ``logits`` ``[N]`` that make ``stops`` ``[N]`` (0 or 1) most likely.

    A negative scale would reverse the order, so the scale is kept above a hundredth.
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
    """Folds a calibration into a stop head's last layer."""
    last = head.layers[-1]
    last.weight.mul_(calibration.scale)  # type: ignore[operator]
    last.bias.mul_(calibration.scale).add_(calibration.shift)  # type: ignore[operator]


@torch.no_grad()
def decisions(
    run: Trainer, lessons: Lessons, sequences: list[int], rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Returns stop logits ``[N]`` where decoding would ask, and whether stopping is right, over merged responses."""
    run.student.eval()
    device = run.accelerator.device
    pool = student_lesson(run, lessons, sequences, rng)
    logits, stops = [], []
    for rows in torch.split(torch.arange(len(pool.features)), run.recipe.micro_batch):
        lesson = pool.rows(rows).to(device)
        with run.autocast():
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
    """Fits on ``sequences`` and folds the result into the run's stop head; ``None`` if they never ask the head."""
    rng = random.Random(f"calibration {run.options.seed}")
    logits, stops = decisions(run, lessons, sequences, rng)
    if not len(logits):
        return None
    fitted = fit(logits, stops)
    fold(run.grafts.stop_head, fitted)
    return fitted
