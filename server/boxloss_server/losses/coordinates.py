"""The losses of boxloss.losses.coordinates, which documents them with their formulas.

torch's own Smooth L1 and Huber losses take no tensor for where the parabola meets the line, as compiled functions do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boxloss.losses import L1, L2, NWD, BalancedL1, BoundedIoU, Huber, SmoothL1
from boxloss_server.losses.geometry import Geometry, power, ratio
from boxloss_server.losses.registry import computes_value


@computes_value(L1)
def l1(geometry: Geometry, loss: L1) -> Tensor:
    return geometry.differences(loss.coordinates).abs().sum(0)


@computes_value(L2)
def l2(geometry: Geometry, loss: L2) -> Tensor:
    return (geometry.differences(loss.coordinates) ** 2).sum(0)


@computes_value(SmoothL1)
def smooth_l1(geometry: Geometry, loss: SmoothL1) -> Tensor:
    return _smooth_l1(geometry.differences(loss.coordinates), loss.beta).sum(0)


@computes_value(Huber)
def huber(geometry: Geometry, loss: Huber) -> Tensor:
    return loss.delta * _smooth_l1(geometry.differences(loss.coordinates), loss.delta).sum(0)


@computes_value(BalancedL1)
def balanced_l1(geometry: Geometry, loss: BalancedL1) -> Tensor:
    alpha, gamma, beta = loss.alpha, loss.gamma, loss.beta
    size = geometry.differences(loss.coordinates).abs()
    b = torch.expm1(size.new_zeros(()) + gamma / alpha)
    small = torch.where(size < beta, size, 0)  # Others could overflow, and their NaN would reach the gradient.
    near = alpha / b * (b * small + beta) * torch.log1p(b * small / beta) - alpha * small
    return torch.where(size < beta, near, gamma * size + gamma * beta / b - alpha * beta).sum(0)


@computes_value(BoundedIoU)
def bounded_iou(geometry: Geometry, loss: BoundedIoU) -> Tensor:
    width, height = geometry.target_width, geometry.target_height
    reach = [
        ratio(size - 2 * offset.abs(), size + 2 * offset.abs())
        for size, offset in ((width, geometry.dx), (height, geometry.dy))
    ]
    shares = [
        *(torch.maximum(share, torch.zeros_like(share)) for share in reach),
        torch.minimum(_share(geometry.width, width), _share(width, geometry.width)),
        torch.minimum(_share(geometry.height, height), _share(height, geometry.height)),
    ]
    return _smooth_l1(1 - torch.stack(shares), loss.beta).sum(0)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Part / whole, and 1 where it were more, which could overflow."""
    above = (part > whole) & (whole >= torch.finfo(whole.dtype).tiny)
    return ratio(torch.where(above, 1, part), torch.where(above, 1, whole))


@computes_value(NWD)
def nwd(geometry: Geometry, loss: NWD) -> Tensor:
    width, height = geometry.width - geometry.target_width, geometry.height - geometry.target_height
    squared = geometry.squared_distance + (width**2 + height**2) / 4
    return -torch.expm1(-power(squared, 0.5) / loss.constant)


def _smooth_l1(difference: Tensor, beta: Tensor | float) -> Tensor:
    size = difference.abs()
    beta = (size.new_zeros(()) + beta).clamp(min=torch.finfo(size.dtype).tiny)
    near = size < beta
    return torch.where(near, torch.where(near, difference, 0) ** 2 / (2 * beta), size - beta / 2)
