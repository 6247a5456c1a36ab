"""The losses of boxloss.losses.oriented, which documents them with their formulas.

With r the ratio of the areas, a = r + 1 / r - 2 and b = tr(P^-1 T) - 2 for Gaussians scaled to the same area, both
exactly 0 for equal covariances, det(P + T) is (4 + a + b) sqrt(det P det T); so are the other terms simple in them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boxloss.losses import BCD, GWD, KLD, KFIoU, ProbIoU
from boxloss.losses.oriented import Transform
from boxloss_server.losses.geometry import power
from boxloss_server.losses.polygons import OrientedGeometry
from boxloss_server.losses.registry import computes_value


@computes_value(ProbIoU)
def prob_iou(geometry: OrientedGeometry, loss: ProbIoU) -> Tensor:
    # A variance of w^2 / 12, a third of the geometry's.
    distance = _bhattacharyya(geometry, 3)
    return distance if loss.form == "bhattacharyya" else power(-torch.expm1(-distance), 0.5)


@computes_value(GWD)
def gwd(geometry: OrientedGeometry, loss: GWD) -> Tensor:
    return _tamed(geometry.wasserstein, loss.transform, loss.tau)


@computes_value(KLD)
def kld(geometry: OrientedGeometry, loss: KLD) -> Tensor:
    ratio = geometry.size_ratio
    forward = (geometry.target_offset + geometry.target_shape_difference) / 2 + _excess(ratio**2)
    backward = (geometry.prediction_offset + geometry.prediction_shape_difference) / 2 + _excess((1 / ratio) ** 2)
    match loss.form:
        case "prediction_target":
            divergence = forward
        case "target_prediction":
            divergence = backward
        case "minimum":
            divergence = torch.minimum(forward, backward)
        case "maximum":
            divergence = torch.maximum(forward, backward)
        case "jeffreys":
            divergence = (forward + backward) / 2
    return _tamed(divergence, loss.transform, loss.tau)


@computes_value(BCD)
def bcd(geometry: OrientedGeometry, loss: BCD) -> Tensor:
    return _tamed(_bhattacharyya(geometry, 1), loss.transform, loss.tau)


@computes_value(KFIoU)
def kf_iou(geometry: OrientedGeometry, loss: KFIoU) -> Tensor:
    sizes = 4 + geometry.size_difference
    overlap = 1 / (sizes**0.5 * (sizes + geometry.shape_difference) ** 0.5 - 1)
    return torch.log1p(geometry.target_offset) + 1 - 3 * overlap


def _bhattacharyya(geometry: OrientedGeometry, precision: int) -> Tensor:
    """Bhattacharyya distance of Gaussians whose covariances are the geometry's over the precision."""
    difference = geometry.size_difference + geometry.shape_difference
    offset = geometry.common_offset / (4 + difference)  # m^T (P + T)^-1 m
    return precision * offset / 4 + torch.log1p(difference / 4) / 2


def _excess(r: Tensor) -> Tensor:
    """How far r - 1 exceeds ln r; near 1, where digits would cancel, by way of r - 1."""
    near = (r - 1).abs() < 0.5
    return r - 1 - torch.where(near, torch.log1p(torch.where(near, r - 1, 0)), r.log())


def _tamed(distance: Tensor, transform: Transform, tau: float) -> Tensor:
    """1 - 1 / (tau + f(distance)), without losing the digits of a small distance."""
    if transform == "log":
        distance = torch.log1p(distance)
    elif transform == "sqrt":
        distance = power(distance, 0.5)
    return (tau - 1 + distance) / (tau + distance)
