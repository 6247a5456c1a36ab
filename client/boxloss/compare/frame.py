"""Boxes and gradients in the frame of their label: its center is the origin, its width and height are the units.

So a step means the same for small boxes and large ones, as it does to a detector that predicts offsets from anchors.
"""

from __future__ import annotations

import numpy as np

from boxloss.contract.arrays import Array


def framed(boxes: Array, targets: Array) -> Array:
    """(x, y, width, height) of the boxes, x and y of their centers, in the frames of the targets."""
    sides = targets[..., 2:] - targets[..., :2]
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2 - (targets[..., :2] + targets[..., 2:]) / 2
    return np.concatenate([centers / sides, (boxes[..., 2:] - boxes[..., :2]) / sides], axis=-1)


def unframed(framed_boxes: Array, targets: Array) -> Array:
    """The corners of boxes in the frames of the targets; undoes `framed`."""
    sides = targets[..., 2:] - targets[..., :2]
    centers = (targets[..., :2] + targets[..., 2:]) / 2 + framed_boxes[..., :2] * sides
    reach = framed_boxes[..., 2:] * sides / 2
    return np.concatenate([centers - reach, centers + reach], axis=-1)


def framed_gradient(gradient: Array, targets: Array) -> Array:
    """Gradients with respect to corners as gradients with respect to what `framed` returns."""
    sides = targets[..., 2:] - targets[..., :2]
    first, second = gradient[..., :2], gradient[..., 2:]
    return np.concatenate([(first + second) * sides, (second - first) / 2 * sides], axis=-1)
