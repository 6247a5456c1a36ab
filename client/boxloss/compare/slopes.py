"""What the gradients of a loss do to pairs, told without units.

A slope is the norm of a gradient in the label's frame: what the loss changes by for each side of the label that the box
moves, or each by which it grows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from boxloss.contract.arrays import Array

FLAT = 0.01
"""A slope below counts as none."""
DONE = 0.95
"""IoU from which on a pair needs no gradient."""

_ROUNDING = 1e-9


class Slopes(NamedTuple):
    """Over the pairs with an IoU below `DONE`; NaN where there are none.

    Attributes:
        flat: share of these pairs whose slope is below `FLAT`: their gradient has vanished.
        against: share of these pairs that a small step against the gradient makes worse: their IoU falls, or, where
            they do not overlap, their centers move apart.
        spread: 95th percentile of the slopes over their median, those that are flat aside: how much harder the loss
            pulls at few pairs than at most.
    """

    flat: float
    against: float
    spread: float


def slopes(gradient: Array, iou_gradient: Array, offsets: Array, iou: Array) -> Slopes:
    """Judges the gradients of a loss.

    Args:
        gradient: of the loss in the labels' frames, of shape (N, 4).
        iou_gradient: of 1 - IoU in the labels' frames, of shape (N, 4).
        offsets: of the centers, of shape (N, 2).
        iou: of the pairs.
    """
    todo = iou < DONE
    if not todo.any():
        return Slopes(np.nan, np.nan, np.nan)
    gradient, iou_gradient, offsets, iou = gradient[todo], iou_gradient[todo], offsets[todo], iou[todo]
    norms = np.linalg.norm(gradient, axis=1)
    better = np.where((iou > 0)[:, None], iou_gradient, np.pad(offsets, ((0, 0), (0, 2))))
    along = (gradient * better).sum(axis=1)
    against = along < -_ROUNDING * norms * np.linalg.norm(better, axis=1)
    steep = norms[norms >= FLAT]
    spread = float(np.quantile(steep, 0.95) / np.median(steep)) if len(steep) else np.nan
    return Slopes(float((norms < FLAT).mean()), float(against.mean()), spread)
