"""How much the boxes of an image overlap."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from boxloss.audit.image import Flags, Image
from boxloss.contract.arrays import Array


class Overlaps(NamedTuple):
    """IoU matrices of one image, in float64. A box without area overlaps nothing.

    Attributes:
        predictions: of predictions (rows) and labels (columns); in a crowd's column the intersection over the area of
            the prediction, as COCO has it.
        labels: of labels and labels.
    """

    predictions: Array
    labels: Array


def overlaps_of(image: Image) -> Overlaps:
    """Computes an image's overlaps."""
    labels = image.labels
    predicted = np.empty((0, 4)) if image.predictions is None else image.predictions.boxes
    return Overlaps(ious(predicted, labels.boxes, labels.crowd), ious(labels.boxes, labels.boxes))


def ious(rows: Array, columns: Array, crowd: Flags | None = None) -> Array:
    """The IoU of all rows and all columns, (x1, y1, x2, y2) each; in a crowd's column over the area of the row."""
    sides = np.minimum(rows[:, None, 2:], columns[None, :, 2:]) - np.maximum(rows[:, None, :2], columns[None, :, :2])
    intersection = np.prod(np.maximum(sides, 0), axis=2)
    areas, others = _areas(rows)[:, None], _areas(columns)[None, :]
    whole = areas + others - intersection
    if crowd is not None:
        whole = np.where(crowd, areas, whole)
    ratios: Array = np.divide(intersection, whole, out=np.zeros_like(intersection), where=whole > 0)
    return ratios


def _areas(boxes: Array) -> Array:
    areas: Array = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas
