"""The losses of boxloss.losses.iou, which documents them with their formulas.

A loss of the form 1 - IoU + penalties registers its penalties, which modifiers and similarities use too; any other
loss registers its value; IoU, having both forms, registers both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boxloss.losses import CIoU, DIoU, EIoU, GIoU, IoU, MPDIoU, PIoU, PIoUv2, ShapeIoU, SIoU, WIoU
from boxloss_server.losses.geometry import Geometry, power, ratio
from boxloss_server.losses.registry import computes_penalties, computes_value, evaluate


@computes_penalties(IoU)
def iou(geometry: Geometry, loss: IoU) -> tuple[Tensor, ...]:
    return ()


@computes_value(IoU)
def iou_of_another_form(geometry: Geometry, loss: IoU) -> Tensor:
    if loss.form == "square":
        return 1 - geometry.iou**2
    return 0 - torch.where(geometry.iou > loss.floor, geometry.iou, loss.floor).log()  # Never -0.


@computes_penalties(GIoU)
def giou(geometry: Geometry, loss: GIoU) -> tuple[Tensor, ...]:
    return (geometry.uncovered,)


@computes_penalties(DIoU)
def diou(geometry: Geometry, loss: DIoU) -> tuple[Tensor, ...]:
    return (geometry.distance,)


@computes_penalties(CIoU)
def ciou(geometry: Geometry, loss: CIoU) -> tuple[Tensor, ...]:
    iou, v = geometry.iou, geometry.aspect_difference
    alpha = torch.where(iou >= loss.gate, ratio(v, 1 - iou + v), 0)
    return (geometry.distance, alpha.detach() * v)


@computes_penalties(EIoU)
def eiou(geometry: Geometry, loss: EIoU) -> tuple[Tensor, ...]:
    return (
        geometry.distance,
        ratio((geometry.width - geometry.target_width) ** 2, geometry.enclosing_width**2),
        ratio((geometry.height - geometry.target_height) ** 2, geometry.enclosing_height**2),
    )


@computes_penalties(SIoU)
def siou(geometry: Geometry, loss: SIoU) -> tuple[Tensor, ...]:
    sharpness = 2 - ratio(2 * (geometry.dx * geometry.dy).abs(), geometry.squared_distance)
    x = ratio(geometry.dx, geometry.enclosing_width) ** 2
    y = ratio(geometry.dy, geometry.enclosing_height) ** 2
    distance = -torch.expm1(-sharpness * x) - torch.expm1(-sharpness * y)
    width, height = geometry.relative_differences
    shape = power(-torch.expm1(-width), loss.theta) + power(-torch.expm1(-height), loss.theta)
    return (distance / 2, shape / 2)


@computes_value(WIoU)
def wiou(geometry: Geometry, loss: WIoU) -> Tensor:
    attention = ratio(geometry.squared_distance, geometry.squared_diagonal.detach()).exp()
    value = attention * (1 - geometry.iou)
    if loss.version == 1:
        return value
    outlier = (1 - geometry.iou).detach() / geometry.running_mean
    if loss.version == 2:
        return power(outlier, loss.gamma) * value
    return outlier / (loss.delta * loss.alpha ** (outlier - loss.delta)) * value


@computes_penalties(MPDIoU)
def mpdiou(geometry: Geometry, loss: MPDIoU) -> tuple[Tensor, ...]:
    left, top, right, bottom = geometry.differences("corners") ** 2
    return ((left + top) / geometry.squared_image_diagonal, (right + bottom) / geometry.squared_image_diagonal)


@computes_penalties(PIoU)
def piou(geometry: Geometry, loss: PIoU) -> tuple[Tensor, ...]:
    return (-torch.expm1(-(geometry.edge_difference**2)),)


@computes_value(PIoUv2)
def piou_v2(geometry: Geometry, loss: PIoUv2) -> Tensor:
    x = loss.attention * (-geometry.edge_difference).exp()
    return 3 * x * (-(x**2)).exp() * evaluate(geometry, PIoU())


@computes_penalties(ShapeIoU)
def shape_iou(geometry: Geometry, loss: ShapeIoU) -> tuple[Tensor, ...]:
    x, y = geometry.dx**2, geometry.dy**2
    width, height = geometry.relative_differences
    sides = power(geometry.target_width, loss.scale), power(geometry.target_height, loss.scale)
    wide, high = (2 * ratio(side, sides[0] + sides[1]) for side in sides)
    shape = power(-torch.expm1(-high * width), 4) + power(-torch.expm1(-wide * height), 4)
    return (ratio(high * x + wide * y, geometry.squared_diagonal), shape / 2)
