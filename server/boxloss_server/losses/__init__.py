"""Bounding-box regression losses as pure torch functions, usable without the service.

>>> import torch, boxloss
>>> from boxloss_server import losses
>>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]], requires_grad=True)
>>> losses.box_loss(boxes, torch.tensor([[1.0, 2.0, 5.0, 8.0]]), boxloss.CIoU()).sum().backward()
>>> boxes.grad
tensor([[-0.0197, -0.0339, -0.0593, -0.1171]])
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from boxloss.losses import Loss
from boxloss_server.losses import coordinates, iou, modifiers, oriented
from boxloss_server.losses.geometry import Geometry, ratio
from boxloss_server.losses.polygons import OrientedGeometry
from boxloss_server.losses.registry import evaluate, similarity

__all__ = [
    "Geometry",
    "OrientedGeometry",
    "box_loss",
    "box_similarity",
    "coordinates",
    "evaluate",
    "iou",
    "modifiers",
    "oriented",
    "ratio",
    "similarity",
]


def box_loss(
    prediction: Tensor,
    target: Tensor,
    loss: Loss,
    *,
    image_size: tuple[float, float] = (math.nan, math.nan),
    running_mean: float = math.nan,
) -> Tensor:
    """The loss of each pair of axis-aligned boxes.

    Args:
        prediction: boxes of shape (N, 4) as left, top, right, bottom, not inverted.
        target: boxes of the same shape; the loss is differentiable once with respect to both.
        loss: what to compute.
        image_size: width and height of the image, for losses that need it.
        running_mean: of 1 - IoU, for losses that need it.

    Returns:
        Losses of shape (N,); in float32 where the boxes are in half precision. NaN where a loss lacks what it needs.
    """
    diagonal = image_size[0] ** 2 + image_size[1] ** 2
    return evaluate(Geometry(_upcast(prediction).T, _upcast(target).T, diagonal, running_mean), loss)


def box_similarity(rows: Tensor, columns: Tensor, loss: Loss) -> Tensor:
    """The similarity that belongs to a loss, between all rows and all columns.

    Args:
        rows: boxes of shape (N, 4) as left, top, right, bottom, not inverted.
        columns: boxes of shape (M, 4).
        loss: whose similarity; `IoU()` gives the plain IoU.

    Returns:
        A matrix of shape (N, M), 1 for identical boxes.
    """
    return similarity(Geometry(_upcast(rows).T[:, :, None], _upcast(columns).T[:, None, :]), loss)


def _upcast(boxes: Tensor) -> Tensor:
    """Half precision overflows at 256 x 256 pixels."""
    return boxes.float() if boxes.dtype in (torch.float16, torch.bfloat16) else boxes
