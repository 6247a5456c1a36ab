"""The cases: every anchor box with every target, as the paper draws them."""

from __future__ import annotations

import math

import numpy as np

from boxloss.contract.arrays import Array
from boxloss.contract.words import BoxFormat

POINTS = 5000
CENTER = 10.0
"""Of all targets, in x and in y."""
RADIUS = 3.0
"""Of the disc around it that the centers of the anchors lie in."""
SHAPES = (1 / 4, 1 / 3, 1 / 2, 1.0, 2.0, 3.0, 4.0)
"""Width over height, of targets and of anchors."""
AREAS = (0.5, 0.67, 0.75, 1.0, 1.33, 1.5, 2.0)
"""Of anchors; that of targets is 1."""
PER_POINT = len(SHAPES) * len(AREAS) * len(SHAPES)


def scatter(count: int = POINTS, seed: int = 0) -> Array:
    """Points drawn uniformly from the disc, shape (count, 2)."""
    rng = np.random.default_rng(seed)
    radius, angle = RADIUS * np.sqrt(rng.random(count)), 2 * math.pi * rng.random(count)
    return CENTER + np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def cases_at(points: Array) -> tuple[Array, Array]:
    """Anchors and targets as center, width and height: 343 rows for each point."""
    kinds = np.array([(shape, area, target) for target in SHAPES for area in AREAS for shape in SHAPES])
    shape, area, target = np.tile(kinds, (len(points), 1)).T
    centers = np.repeat(points, PER_POINT, axis=0)
    anchors = np.column_stack([centers, np.sqrt(area * shape), np.sqrt(area / shape)])
    targets = np.column_stack([np.full_like(centers, CENTER), np.sqrt(target), np.sqrt(1 / target)])
    return anchors, targets


def centered(boxes: Array, box_format: BoxFormat) -> Array:
    """Boxes of a format as center, width and height."""
    if box_format == "cxcywh":
        return boxes
    return np.hstack([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]])


def written(boxes: Array, box_format: BoxFormat) -> Array:
    """Boxes of center, width and height in a format."""
    if box_format == "cxcywh":
        return boxes
    return np.hstack([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2])
