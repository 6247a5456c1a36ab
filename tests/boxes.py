"""Random boxes, and the formats they are written in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMATS = ("xyxy", "xywh", "cxcywh")


def random_boxes(rng: np.random.Generator, count: int, size: float = 100.0) -> NDArray[Any]:
    """Corner boxes of shape (count, 4), sides of 1/100 to all of `size`, many of which overlap."""
    center = rng.uniform(0, size, (count, 2))
    half = rng.uniform(size / 200, size / 2, (count, 2))
    return np.hstack([center - half, center + half])


def from_corners(boxes: NDArray[Any], box_format: str) -> NDArray[Any]:
    """Corner boxes in another format."""
    near, far = boxes[:, :2], boxes[:, 2:]
    match box_format:
        case "xywh":
            return np.hstack([near, far - near])
        case "cxcywh":
            return np.hstack([(near + far) / 2, far - near])
    return boxes


def corner_slopes(box_format: str) -> NDArray[Any]:
    """Derivatives of the corners (rows) with respect to the format's numbers (columns)."""
    match box_format:
        case "xywh":
            return np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1.0]])
        case "cxcywh":
            return np.array([[1, 0, -0.5, 0], [0, 1, 0, -0.5], [1, 0, 0.5, 0], [0, 1, 0, 0.5]])
    return np.eye(4)
