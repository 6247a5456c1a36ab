"""The losses of axis-aligned boxes: one short function each, over the geometry that they share.

A loss of the form 1 - IoU + penalties registers its penalties, which modifiers and metrics use too; any other loss
registers its value; IoU, having both forms, registers both. Formulas, parameters and papers are in the specifications,
`boxloss.losses`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from boxloss.losses import AlphaIoU, CIoU, DIoU, EIoU, FocalEIoU, GIoU, IoU, Loss, SmoothL1
from boxloss_server.losses.geometry import Geometry, power, ratio

Function = TypeVar("Function", bound=Callable[..., Any])

PENALTIES: dict[type[Loss], Callable[[Geometry, Any], tuple[Tensor, ...]]] = {}
"""Penalty terms by specification, for losses of the form 1 - IoU + penalties."""

VALUES: dict[type[Loss], Callable[[Geometry, Any], Tensor]] = {}
"""Values by specification, for every other loss."""


def evaluate(geometry: Geometry, loss: Loss) -> Tensor:
    """The loss of each pair, with the shape of the geometry's planes; differentiable once."""
    if loss.modifiable:
        return 1 - geometry.iou + sum(penalties(geometry, loss))
    return VALUES[type(loss)](geometry, loss)


def similarity(geometry: Geometry, loss: Loss) -> Tensor:
    """The metric that belongs to a loss of the form 1 - IoU + penalties: IoU - penalties."""
    return geometry.iou - sum(penalties(geometry, loss))


def penalties(geometry: Geometry, loss: Loss) -> tuple[Tensor, ...]:
    """The penalty terms of a loss of the form 1 - IoU + penalties."""
    return PENALTIES[type(loss)](geometry, loss)


def _registers(registry: dict[type[Loss], Any], loss: type[Loss]) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        registry[loss] = function
        return function

    return register


@_registers(VALUES, SmoothL1)
def smooth_l1(geometry: Geometry, loss: SmoothL1) -> Tensor:
    return smooth_l1_loss(geometry.prediction, geometry.target, reduction="none", beta=loss.beta).sum(0)


@_registers(PENALTIES, IoU)
def iou(geometry: Geometry, loss: IoU) -> tuple[Tensor, ...]:
    return ()


@_registers(VALUES, IoU)
def log_iou(geometry: Geometry, loss: IoU) -> Tensor:
    return 0 - torch.where(geometry.iou > loss.floor, geometry.iou, loss.floor).log()  # Never -0.


@_registers(PENALTIES, GIoU)
def giou(geometry: Geometry, loss: GIoU) -> tuple[Tensor, ...]:
    return (geometry.uncovered,)


@_registers(PENALTIES, DIoU)
def diou(geometry: Geometry, loss: DIoU) -> tuple[Tensor, ...]:
    return (geometry.distance,)


@_registers(PENALTIES, CIoU)
def ciou(geometry: Geometry, loss: CIoU) -> tuple[Tensor, ...]:
    iou, v = geometry.iou, geometry.aspect_difference
    alpha = torch.where(iou >= loss.gate, ratio(v, 1 - iou + v), 0)
    return (geometry.distance, alpha.detach() * v)


@_registers(PENALTIES, EIoU)
def eiou(geometry: Geometry, loss: EIoU) -> tuple[Tensor, ...]:
    return (geometry.distance, geometry.width_difference, geometry.height_difference)


@_registers(VALUES, FocalEIoU)
def focal_eiou(geometry: Geometry, loss: FocalEIoU) -> Tensor:
    weight = power(geometry.iou, loss.gamma)
    return (weight.detach() if loss.detach_weight else weight) * evaluate(geometry, EIoU())


@_registers(VALUES, AlphaIoU)
def alpha_iou(geometry: Geometry, loss: AlphaIoU) -> Tensor:
    terms = penalties(geometry, loss.base)
    return 1 - power(geometry.iou, loss.alpha) + sum(power(term, loss.alpha) for term in terms)
