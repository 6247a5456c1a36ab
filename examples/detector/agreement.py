"""How well two ways of computing the box loss agree: step by step on one way through training, and on two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from examples.detector.model import Detector
from examples.detector.training import Batch, LossFunction, loss_of
from torch import Tensor


class Agreement:
    """Watches a training: at each step, computes loss and gradients of all weights in both ways.

    Args:
        one: a way of computing the box loss.
        other: another.

    Attributes:
        losses: of each step, the difference of the losses over the loss.
        gradients: of each step, the length of the difference of the gradients over the length of the gradient.
    """

    def __init__(self, one: LossFunction, other: LossFunction) -> None:
        self._ways = one, other
        self.losses: list[float] = []
        self.gradients: list[float] = []

    def __call__(self, model: Detector, batch: Batch) -> None:
        """Compares a step; leaves the model as it was."""
        (loss, gradient), (other_loss, other_gradient) = (_slope(model, batch, way) for way in self._ways)
        self.losses.append(relative(loss.item(), other_loss.item()))
        self.gradients.append(float((other_gradient - gradient).norm() / gradient.norm()))


@dataclass(frozen=True)
class Curves:
    """The losses of trainings at each step; they differ in who computes the box loss.

    Attributes:
        here: this process.
        served: the service.
        nudged: this process, off by a rounding.
        agreement: of this process and the service, on the way of the first.
    """

    here: list[float]
    served: list[float]
    nudged: list[float]
    agreement: Agreement

    def rows(self) -> dict[str, list[float]]:
        """Everything by name, for a file."""
        return {
            "in_process": self.here,
            "by_the_service": self.served,
            "off_by_a_rounding": self.nudged,
            "same_weights_loss_difference": self.agreement.losses,
            "same_weights_gradient_difference": self.agreement.gradients,
        }


def nudge(box_loss: LossFunction) -> LossFunction:
    """The same loss, larger by the least that its type can tell."""
    return lambda predictions, targets: box_loss(predictions, targets) * (1 + torch.finfo(predictions.dtype).eps)


def relative(value: float, other: float) -> float:
    """By what share of the first number the second differs."""
    return abs(other - value) / abs(value)


def apart(losses: Sequence[float], others: Sequence[float]) -> list[float]:
    """How far two curves are apart at each step, relatively."""
    return [relative(*pair) for pair in zip(losses, others, strict=True)]


def _slope(model: Detector, batch: Batch, box_loss: LossFunction) -> tuple[Tensor, Tensor]:
    loss = loss_of(model(batch.pixels), batch.targets, box_loss)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])
