"""What is true of the pairs, whatever the loss."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from boxloss.audit.image import Flags
from boxloss.compare.distribution import Distribution
from boxloss.compare.frame import framed
from boxloss.compare.pairs import Pairs
from boxloss.compare.slopes import DONE
from boxloss.contract.arrays import Array

OFF = 0.2
"""Share by which a side, or the ratio of the sides, may be off before it counts."""
LOW = 0.3
"""IoU below which a pair may be none."""


class Facts(NamedTuple):
    """Shares run from 0 to 1.

    Attributes:
        pairs: how many there are.
        iou: of the pairs.
        apart: share that does not overlap.
        done: share with an IoU of `boxloss.compare.slopes.DONE` or more.
        low: share with an IoU below `LOW`.
        sides_off: share whose width or height is off by more than `OFF`.
        ratio_off: share whose ratio of width to height is off by more than `OFF`.
        side: median of the labels' sides, the roots of their areas.
        moved: IoU of the median label with itself, moved by one pixel right and down; None where the boxes are parts
            of their images.
    """

    pairs: int
    iou: Distribution
    apart: float
    done: float
    low: float
    sides_off: float
    ratio_off: float
    side: float
    moved: float | None

    @classmethod
    def of(cls, pairs: Pairs, iou: Array) -> Facts:
        """The facts of one pair or more."""
        sides = framed(pairs.predictions, pairs.targets)[:, 2:]
        width, height = sides.T
        pixels = pairs.targets[:, 2:] - pairs.targets[:, :2]
        left = np.maximum(pixels - 1, 0).prod(axis=1)
        return cls(
            len(pairs),
            Distribution.of(iou),
            float((iou == 0).mean()),
            float((iou >= DONE).mean()),
            float((iou < LOW).mean()),
            float((_differ(width, 1.0) | _differ(height, 1.0)).mean()),
            float(_differ(width, height).mean()),
            float(np.median(np.sqrt(pixels.prod(axis=1)))),
            None if pairs.targets.max() <= 1 else float(np.median(left / (2 * pixels.prod(axis=1) - left))),
        )


def _differ(a: Array, b: Array | float) -> Flags:
    """Where two numbers differ by more than `OFF` of the larger."""
    differ: Flags = np.abs(a - b) > OFF * np.maximum(a, b)
    return differ
