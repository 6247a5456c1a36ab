"""Box formats: rows in any format to planes, and gradients back.

Axis-aligned boxes are computed as corners, so that requests in different formats share a batch. Oriented boxes are
computed in their own format, whose corners are part of what is differentiated.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from boxloss.words import COLUMNS, BoxFormat
from boxloss_server.engine.pairs import Array, Layout, Rows
from boxloss_server.losses.polygons import rectangle_corners

_UNIT_BOX: dict[int, list[float]] = {
    4: [0, 0, 1, 1],
    5: [0, 0, 1, 1, 0],
    8: [0, 0, 1, 0, 1, 1, 0, 1],
}


def layout_of(box_format: BoxFormat) -> Layout:
    """What boxes of a format are computed as."""
    return "corners" if COLUMNS[box_format] == 4 else box_format  # type: ignore[return-value]


def write_planes(planes: Array, boxes: Array, box_format: BoxFormat, masked: Rows) -> None:
    """Writes boxes of shape (N, K) as planes of shape (K, N) of the format's layout.

    Masked rows become unit boxes, so that nothing they hold can reach the computation.
    """
    match box_format:
        case "xywh":
            corner, size = boxes.T[:2], boxes.T[2:]
            planes[:2] = corner
            np.add(corner, size, out=planes[2:])
        case "cxcywh":
            centre, half = boxes.T[:2], boxes.T[2:] / 2
            np.subtract(centre, half, out=planes[:2])
            np.add(centre, half, out=planes[2:])
        case _:
            planes[:] = boxes.T
    if len(masked):
        planes[:, masked] = np.array(_UNIT_BOX[len(planes)])[:, None]


def polygon_corners(planes: Tensor, layout: Layout) -> Tensor:
    """The corners of oriented boxes: planes of shape (8, ...)."""
    match layout:
        case "cxcywha_degrees":
            return rectangle_corners(torch.cat([planes[:4], planes[4:] * (math.pi / 180)]))
        case "cxcywha_radians":
            return rectangle_corners(planes)
    return planes


def gradient_rows(planes: Array, box_format: BoxFormat) -> Array:
    """Turns gradients with respect to planes, shape (K, N), into rows (N, K) with respect to the format's numbers."""
    rows = np.empty(planes.shape[::-1], planes.dtype)
    near, far = planes[:2], planes[2:4]
    match box_format:
        case "xywh":
            rows.T[:2] = near + far
            rows.T[2:] = far
        case "cxcywh":
            rows.T[:2] = near + far
            rows.T[2:] = (far - near) / 2
        case _:
            rows[:] = planes.T
    return rows
