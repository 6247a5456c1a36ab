"""Box formats: rows in any format to corner planes, and gradients back."""

from __future__ import annotations

import numpy as np

from boxloss_server.engine.pairs import Array, BoxFormat, Rows


def write_corners(planes: Array, boxes: Array, box_format: BoxFormat, masked: Rows) -> None:
    """Writes boxes of shape (N, 4) as left, top, right and bottom planes of shape (4, N).

    Masked rows become unit boxes, so that nothing they hold can reach the computation.
    """
    match box_format:
        case "xyxy":
            planes[:] = boxes.T
        case "xywh":
            corner, size = boxes.T[:2], boxes.T[2:]
            planes[:2] = corner
            np.add(corner, size, out=planes[2:])
        case "cxcywh":
            centre, half = boxes.T[:2], boxes.T[2:] / 2
            np.subtract(centre, half, out=planes[:2])
            np.add(centre, half, out=planes[2:])
    if len(masked):
        planes[:2, masked] = 0
        planes[2:, masked] = 1


def gradient_rows(planes: Array, box_format: BoxFormat) -> Array:
    """Turns gradients with respect to corners, shape (4, N), into rows (N, 4) with respect to the format's numbers."""
    near, far = planes[:2], planes[2:]
    rows = np.empty((planes.shape[1], 4), planes.dtype)
    match box_format:
        case "xyxy":
            rows[:] = planes.T
        case "xywh":
            rows.T[:2] = near + far
            rows.T[2:] = far
        case "cxcywh":
            rows.T[:2] = near + far
            rows.T[2:] = (far - near) / 2
    return rows
