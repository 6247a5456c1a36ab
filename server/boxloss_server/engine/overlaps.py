"""How much the boxes of many images overlap, in one computation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from boxloss.audit.overlaps import Overlaps
from boxloss_server.engine.pairs import Array


@dataclass(frozen=True)
class Overlap:
    """What is computed for the boxes of images; all share a batch."""


class ImageBoxes(NamedTuple):
    """The boxes of one image as rows (x1, y1, x2, y2) in float64, and which labels are crowds."""

    predictions: Array
    labels: Array
    crowd: NDArray[np.bool_]

    @property
    def pairs(self) -> int:
        """How many pairs of boxes are compared."""
        return (len(self.predictions) + len(self.labels)) * len(self.labels)


def overlaps(images: Sequence[ImageBoxes], device: torch.device) -> list[Overlaps]:
    """The overlaps of each image, the same to the last bit as `boxloss.audit.overlaps` computes them."""
    counts = [len(image.predictions) + len(image.labels) for image in images]
    starts = list(accumulate(counts, initial=0))
    boxes = np.concatenate([part for image in images for part in image[:2]])
    crowd = np.concatenate([part for image in images for part in (np.zeros(len(image.predictions), bool), image.crowd)])
    rows, columns, compared = [], [], []
    for (start, end), image in zip(pairwise(starts), images, strict=True):
        first = start + len(image.predictions)
        rows.append(np.repeat(np.arange(start, end), end - first))
        columns.append(np.tile(np.arange(first, end), end - start))
        compared.append(np.repeat(np.arange(start, end) < first, end - first))
    ratios = _ratios(
        torch.from_numpy(boxes).to(device),
        torch.from_numpy(crowd).to(device),
        torch.from_numpy(np.concatenate(rows)).to(device),
        torch.from_numpy(np.concatenate(columns)).to(device),
        torch.from_numpy(np.concatenate(compared)).to(device),
    )
    bounds = accumulate((image.pairs for image in images), initial=0)
    return [
        _split(ratios[first:last].reshape(count, len(image.labels)), len(image.predictions))
        for (first, last), count, image in zip(pairwise(bounds), counts, images, strict=True)
    ]


def _ratios(boxes: Tensor, crowd: Tensor, rows: Tensor, columns: Tensor, predicted: Tensor) -> Array:
    """The IoU of each pair; of a prediction and a crowd, over the prediction's area."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    one, other = boxes[rows], boxes[columns]
    sides = (torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])).clamp(min=0)
    intersection = sides[:, 0] * sides[:, 1]
    whole = torch.where(crowd[columns] & predicted, areas[rows], areas[rows] + areas[columns] - intersection)
    ratios: Array = torch.where(whole > 0, intersection / whole, 0.0).cpu().numpy()
    return ratios


def _split(ratios: Array, predictions: int) -> Overlaps:
    return Overlaps(ratios[:predictions], ratios[predictions:])
