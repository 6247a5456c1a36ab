"""The losses of boxloss.losses.modifiers, which documents them with their formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from boxloss.losses import AlphaIoU, EIoU, Focal, FocalEIoU, Focaler, Inner
from boxloss_server.losses.geometry import Geometry, power
from boxloss_server.losses.registry import Terms, computes_terms, computes_value, evaluate, terms


@computes_value(AlphaIoU)
def alpha_iou(geometry: Geometry, loss: AlphaIoU) -> Tensor:
    iou, penalties = terms(geometry, loss.base)
    return 1 - power(iou, loss.alpha) + sum(power(penalty, loss.alpha) for penalty in penalties)


@computes_value(Focal)
def focal(geometry: Geometry, loss: Focal) -> Tensor:
    return _weight(geometry, loss) * evaluate(geometry, loss.base)


@computes_value(FocalEIoU)
def focal_eiou(geometry: Geometry, loss: FocalEIoU) -> Tensor:
    return _weight(geometry, loss) * evaluate(geometry, EIoU())


@computes_terms(Inner)
def inner(geometry: Geometry, loss: Inner) -> Terms:
    iou, penalties = terms(geometry, loss.base)
    return iou - geometry.iou + geometry.scaled(loss.ratio).iou, penalties


@computes_terms(Focaler)
def focaler(geometry: Geometry, loss: Focaler) -> Terms:
    iou, penalties = terms(geometry, loss.base)
    plain = geometry.iou
    stretched = (plain - loss.lower) / (loss.upper - loss.lower)
    stretched = torch.where(plain < loss.lower, 0, torch.where(plain > loss.upper, 1, stretched))
    return iou - plain + stretched, penalties


def _weight(geometry: Geometry, loss: Focal | FocalEIoU) -> Tensor:
    weight = power(geometry.iou, loss.gamma)
    return weight.detach() if loss.detach_weight else weight
