"""What a detector finds in a picture, and how good that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from examples.detector.model import Detector
from examples.detector.pictures import CLASSES, Picture
from numpy.typing import NDArray
from torch import Tensor

import boxloss
from boxloss.audit.matching import NONE, match
from boxloss_server import losses

CONFIDENT = 0.5
"""The score from which on a detection counts without regard to its rank."""
_LEAST_SCORE = 0.05
_SAME = 0.5
"""The IoU from which on a detection finds an object, and above which a weaker one of its class repeats another."""


@dataclass(frozen=True)
class Detections:
    """What was found in a picture: boxes of shape (N, 4), classes and scores of shape (N,), the best first."""

    boxes: Tensor
    classes: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Quality:
    """How good detections are.

    Attributes:
        ap50: average precision at an IoU of 0.5, the mean over the classes.
        mean_iou: of each object with the detection that found it at a score of 0.5 or more; 0 where none did.
    """

    ap50: float
    mean_iou: float


@torch.no_grad()
def detect(model: Detector, seen: Sequence[Picture]) -> list[Detections]:
    """Finds objects in pictures."""
    weights = next(model.parameters())
    predictions = model(torch.stack([picture.pixels for picture in seen]).to(weights.dtype))
    scores, classes = predictions.classes.softmax(dim=2).max(dim=2)
    scores = (scores * predictions.objectness.sigmoid()).float()
    found = []
    for each in zip(predictions.boxes.float(), classes, scores, strict=True):
        order = each[2].argsort(descending=True, stable=True)
        order = order[each[2][order] >= _LEAST_SCORE]
        boxes, labels, sure = (values[order] for values in each)
        kept = without_repeats(boxes, labels)
        found.append(Detections(boxes[kept], labels[kept], sure[kept]))
    return found


def without_repeats(boxes: Tensor, classes: Tensor) -> list[int]:
    """The rows of boxes, the best first, that are not about the same object as a better one of their class."""
    repeats = losses.box_similarity(boxes, boxes, boxloss.IoU()) > _SAME
    repeats &= classes[:, None] == classes
    kept: list[int] = []
    for row in range(len(boxes)):
        if not repeats[row, kept].any():
            kept.append(row)
    return kept


def quality(found: Sequence[Detections], seen: Sequence[Picture]) -> Quality:
    """Holds detections against what is in the pictures."""
    pairs = list(zip(found, seen, strict=True))
    scores = np.concatenate([each.scores.numpy() for each in found])
    classes = np.concatenate([each.classes.numpy() for each in found])
    hits = np.concatenate([_matched(*pair)[0] != NONE for pair in pairs])
    objects = np.bincount(np.concatenate([each.classes.numpy() for each in seen]), minlength=len(CLASSES))
    precisions = [
        average_precision(scores[classes == number], hits[classes == number], int(objects[number]))
        for number in range(len(CLASSES))
    ]
    return Quality(fmean(precisions), sum(_overlap(*pair) for pair in pairs) / int(objects.sum()))


def average_precision(scores: NDArray[np.float32], hits: NDArray[np.bool_], objects: int) -> float:
    """The area under precision as a function of recall; precision is the best at this recall or a higher one.

    Args:
        scores: of all detections of a class.
        hits: whether each found an object that no better one has found.
        objects: how many there are to find.
    """
    found = np.cumsum(hits[np.argsort(-scores, kind="stable")])
    precision = found / np.arange(1, 1 + len(found))
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best * np.diff(found, prepend=0)).sum() / objects)


def _matched(found: Detections, picture: Picture) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each detection its object or NONE, as COCO matches; and the IoUs of detections (rows) and objects."""
    ious = losses.box_similarity(found.boxes, picture.boxes, boxloss.IoU()).double().numpy()
    allowed = (found.classes[:, None] == picture.classes).numpy()
    free = np.zeros(len(picture.boxes), bool)
    return match(ious, found.scores.numpy(), allowed, free, _SAME, "greedy"), ious


def _overlap(found: Detections, picture: Picture) -> float:
    """The sum of the IoUs of objects and the confident detections that found them."""
    matched, ious = _matched(found, picture)
    rows = np.flatnonzero((matched != NONE) & (found.scores >= CONFIDENT).numpy())
    return float(ious[rows, matched[rows]].sum())
