"""Box formats: their geometry, and which boxes are valid. Boxes are planes of shape (K, ...), a plane for a number."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from boxloss.contract.words import COLUMNS, BoxFormat
from boxloss_server.losses import Geometry, OrientedGeometry
from boxloss_server.losses.polygons import rectangle_corners

LARGEST = {torch.float32: 1e15, torch.float64: 1e150}
"""Coordinates beyond these would let an area overflow."""

_UNIT_BOX: dict[int, list[float]] = {
    4: [0, 0, 1, 1],
    5: [0, 0, 1, 1, 0],
    8: [0, 0, 1, 0, 1, 1, 0, 1],
}


def unit_box(box_format: BoxFormat) -> list[float]:
    """A valid box of the format."""
    return _UNIT_BOX[COLUMNS[box_format]]


def geometry_of(
    prediction: Tensor,
    target: Tensor,
    box_format: BoxFormat,
    squared_image_diagonal: Tensor | float = math.nan,
    running_mean: Tensor | float = math.nan,
) -> Geometry | OrientedGeometry:
    """The geometry of pairs; differentiating through it gives gradients in the format."""
    if COLUMNS[box_format] == 4:
        boxes = _corners(prediction, box_format), _corners(target, box_format)
        return Geometry(*boxes, squared_image_diagonal, running_mean)
    return OrientedGeometry(_polygon(prediction, box_format), _polygon(target, box_format))


def unusable(planes: Tensor) -> Tensor:
    """Which boxes are not finite or beyond `LARGEST`, shape (...)."""
    return ~(planes.abs().amax(0) <= LARGEST[planes.dtype])


def misshapen(planes: Tensor, box_format: BoxFormat) -> Tensor:
    """Which boxes are usable numbers and yet no boxes of their format, shape (...)."""
    match box_format:
        case "xyxy":
            return (planes[2] < planes[0]) | (planes[3] < planes[1])
        case "xywh" | "cxcywh":
            return (planes[2] < 0) | (planes[3] < 0)
        case "cxcywha_degrees" | "cxcywha_radians":
            return (planes[2] <= 0) | (planes[3] <= 0)
        case "quad":
            return ~_convex(planes.double())


def _corners(planes: Tensor, box_format: BoxFormat) -> Tensor:
    """Left, top, right and bottom of axis-aligned boxes."""
    match box_format:
        case "xywh":
            return torch.cat([planes[:2], planes[:2] + planes[2:]])
        case "cxcywh":
            half = planes[2:] / 2
            return torch.cat([planes[:2] - half, planes[:2] + half])
    return planes


def _polygon(planes: Tensor, box_format: BoxFormat) -> Tensor:
    """The corners of oriented boxes, shape (8, ...)."""
    match box_format:
        case "cxcywha_degrees":
            return rectangle_corners(torch.cat([planes[:4], planes[4:] * (math.pi / 180)]))
        case "cxcywha_radians":
            return rectangle_corners(planes)
    return planes


def _convex(planes: Tensor) -> Tensor:
    """Which quadrilaterals turn to the same side at all four corners; crossing ones turn to both."""
    corners = planes.reshape(4, 2, *planes.shape[1:])
    edges = corners.roll(-1, 0) - corners
    following = edges.roll(-1, 0)
    turns = (edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0]).sign()
    return turns.sum(0).abs() == 4
